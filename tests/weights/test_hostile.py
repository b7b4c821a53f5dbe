"""Hostile and damaged files: one line that names the file, and nothing in the process is changed, called or filled."""

import io
import json
import pickle
import random
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from foreign import GOLDEN, MODELS
from test_files import archive
from test_weights import write_folder

from jclip.config import ConfigError, architecture
from jclip.weights import WeightsError, read_weights, write_weights
from jclip.weights.io import torch_archive
from jclip.weights.io.files import open_tensors, read_json
from jclip.weights.io.torch_archive import MAKERS, STORAGES, open_torch_archive


def process() -> Any:
    """State that a pickle could reach: the functions and types that reading uses, the modules, and numbers of odd types."""
    functions = [value for value in {**vars(torch_archive), **MAKERS}.values() if callable(value)]
    kept = [
        (getattr(f, "__defaults__", None), getattr(f, "__code__", None), repr(vars(f)))
        for f in functions
        if hasattr(f, "__dict__")
    ]
    numbers = [(name, dtype.itemsize, dtype.kind, dtype.str, dtype.metadata) for name, dtype in STORAGES.items()]
    one = np.array([1.5, -2], ml_dtypes.bfloat16)
    modules = {name for name in sys.modules if not name.startswith("encodings.")}
    return kept, numbers, one.tobytes(), one.astype(np.float32).tolist(), modules, sorted(vars(np)), sorted(dir(dict))


NAMES = (
    *MAKERS,
    *(f"torch.{name}" for name in STORAGES),
    "collections.OrderedDict",
    "__torch__.torch.nn.Module",
    "builtins.dict",
    "builtins.setattr",
    "numpy.dtype",
    "ml_dtypes.bfloat16",
    "jclip.weights.io.torch_archive.STORAGES",
    "os.environ",
)
STATES = ({"__defaults__": (3,)}, (None, {"__defaults__": (3,), "dtype": 3}), {"x": 1}, (3, "<", None, None, None, -1, -1, 0))


def test_writing_into_what_a_pickle_names_changes_nothing(tmp_path: Path) -> None:
    open_torch_archive(GOLDEN / "state_dict.pt")
    before = process()
    for name in NAMES:
        module, _, attribute = name.rpartition(".")
        named = b"\x80\x02c" + f"{module}\n{attribute}\n".encode()
        for state in STATES:
            body = pickle.dumps(state, protocol=2)[2:-1]
            for made in (b"", b")R", b")\x81"):  # the name itself, what a call returns, a new object
                for write in (body + b"b", body + b"a", b"(" + body + b"e", b"U\x01k" + body + b"s", b"(" + body + b"\x90"):
                    archive(tmp_path / "w.pt", named + made + write + b".", {})
                    with pytest.raises(WeightsError, match=r"^[^\n]*w\.pt: [^\n]*$"):
                        open_torch_archive(tmp_path / "w.pt")
    assert process() == before


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some changed, moved, doubled or cut."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(changed))
        match rng.randrange(5):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at:at] = bytes(changed[(start := rng.randrange(len(changed))) : start + rng.randrange(20)])
            case 3:
                del changed[at : at + rng.randrange(1, 20)]
            case _:
                changed[at:at] = rng.choice(
                    (b"b", b"R", b"\x81", b"0", b"2", b"a", b"s", b"Q", b"cbuiltins\nexec\n", b"(", b"t", b"}")
                )
        if not changed:
            return b""
    return bytes(changed)


def test_200_mutated_archives_are_read_or_refused_in_a_line_and_change_nothing(tmp_path: Path) -> None:
    open_torch_archive(GOLDEN / "state_dict.pt")
    rng, before = random.Random(0), process()
    said: list[str] = []
    wholes = []
    for file in ("state_dict", "torchscript"):
        with zipfile.ZipFile(GOLDEN / f"{file}.pt") as whole:
            wholes.append({info.filename: whole.read(info) for info in whole.infolist()})
    tracemalloc.start()
    for i in range(200):
        contents = dict(rng.choice(wholes))
        pickled = next(name for name in contents if name.endswith("/data.pkl"))
        if i % 4:
            contents[pickled] = mutated(contents[pickled], rng)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as written:
            for name, data in contents.items():
                written.writestr(name, data)
        (tmp_path / "w.pt").write_bytes(out.getvalue() if i % 4 else mutated(out.getvalue(), rng))
        try:
            for array in open_tensors(tmp_path / "w.pt").values():
                np.asarray(array).astype(np.float32)
        except WeightsError as error:
            said.append(str(error))
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    assert process() == before
    assert 100 < len(said) < 200
    assert [line for line in said if "\n" in line or not line.startswith(f"{tmp_path / 'w.pt'}: ")] == []


def test_a_file_of_a_zip_that_unpacks_to_much_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        with out.open("archive/byteorder", "w") as file:
            for _ in range(300):
                file.write(bytes(2**20))
    assert (tmp_path / "bomb.pt").stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"bomb\.pt: its numbers are b'\\x00.* endian"):
        open_torch_archive(tmp_path / "bomb.pt")
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "[" * 5000 + "]" * 5000 + "}", "\udcff", "", "[]", "{"]
)
def test_json_that_is_deep_or_none_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WeightsError, match=r"^[^\n]*config\.json: [^\n]{1,200}$"):
        read_json(tmp_path / "config.json")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match=r"^[^\n]*config\.json: [^\n]{1,200}$"):
        read_weights(tmp_path)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def put(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[at[0]] = put(copy[at[0]], at[1:], value)
    return copy


ODD = (None, True, 0, -1, 1e300, float("nan"), 10**30, "", "x", [], {}, [1], {"a": 1}, [[]], 1.5, [None], {"": None})


def test_200_mutated_configurations_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    rng = random.Random(0)
    names = ("open_clip", "open_clip_clipa", "hugging_face", "hugging_face_siglip", "open_clip_worldwide")
    folders = [write_folder(tmp_path / name, name) for name in names if name in MODELS]
    write_weights(tmp_path / "own", "jclip", architecture("ViT-tiny-test"), zeros("ViT-tiny-test"))
    said: list[str] = []
    for _ in range(200):
        files = sorted(file for folder in (*folders, tmp_path / "own") for file in folder.glob("*.json"))
        file = rng.choice([file for file in files if file.stat().st_size < 10**5])
        whole = file.read_bytes()
        if rng.random() < 0.6:
            data = json.loads(whole)
            file.write_text(json.dumps(put(data, rng.choice(places(data)), rng.choice(ODD))))
        else:
            file.write_bytes(mutated(whole, rng))
        try:
            read_weights(file.parent)
        except (WeightsError, ConfigError) as error:
            said.append(str(error))
        file.write_bytes(whole)
    assert len(said) > 100
    assert [line for line in said if "\n" in line] == []


def zeros(name: str) -> dict[str, Any]:
    from jclip.weights import tower_shapes

    shapes = tower_shapes(architecture(name)) | {"image_text/logit_scale": ()}
    return {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
