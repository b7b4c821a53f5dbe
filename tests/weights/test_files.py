"""Files of weights: read without torch and without running anything in them, or refused with the cause."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import GOLDEN, number
from safetensors.numpy import save_file

import jclip
from jclip.weights import WeightsError
from jclip.weights.io.files import open_tensors
from jclip.weights.io.torch_archive import open_torch_archive


class Bomb:
    """A pickle that runs a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def archive(path: Path, root: Any, storages: dict[str, bytes]) -> Path:
    """A zip as torch.save writes it."""
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("archive/data.pkl", root if isinstance(root, bytes) else pickle.dumps(root, protocol=2))
        for key, data in storages.items():
            out.writestr(f"archive/data/{key}", data)
        out.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize(("file", "dtype"), [("state_dict", np.float32), ("torchscript", np.float16)])
def test_archives_of_torch_are_read_without_torch(file: str, dtype: Any) -> None:
    tensors = {name.removeprefix("module."): array for name, array in open_torch_archive(GOLDEN / f"{file}.pt").items()}
    for name, shape in (("weight", (3, 4)), ("bias", (4,)), ("scalar", ()), ("inner.weight", (3, 4)), ("inner.scalar", ())):
        expected = number(name if "." in name else f"outer.{name}", shape).astype(dtype)
        np.testing.assert_array_equal(tensors[name], expected, strict=True)
    assert tensors["steps"] == 7
    if file == "state_dict":
        np.testing.assert_array_equal(tensors["turned"], tensors["weight"].T)
        np.testing.assert_allclose(tensors["brain"].astype(np.float32), tensors["weight"], rtol=2**-8)


def test_a_tensor_beyond_its_numbers_is_refused(tmp_path: Path) -> None:
    whole = zipfile.ZipFile(GOLDEN / "state_dict.pt")
    contents = {info.filename: whole.read(info) for info in whole.infolist()}
    first = next(name for name in contents if name.endswith("/data/0"))
    for change, message in ((b"", "cut short"), (contents[first][:-4], "cut short")):
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as out:
            for name, data in contents.items():
                out.writestr(name, change if name == first else data)
        with pytest.raises(WeightsError, match=message):
            open_torch_archive(tmp_path / "bad.pt")
    whole.close()


def test_pickles_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Bomb(mark)))
    archive(tmp_path / "zip.pt", {"a": Bomb(mark)}, {})
    for name, message in (("bare.pt", "a bare pickle"), ("zip.pt", "not to be trusted")):
        with pytest.raises(WeightsError, match=message):
            jclip.load(tmp_path / name, architecture_name="ViT-tiny-test")
    assert not mark.exists()


def test_archives_that_are_none_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as out:
        out.writestr("readme.txt", "hello")
    for root, message in (({"a": 1}, "holds no tensor"), (b"\x80\x02garbage", "cannot be read")):
        archive(tmp_path / "bad.pt", root, {})
        with pytest.raises(WeightsError, match=message):
            open_torch_archive(tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match="no torch checkpoint"):
        open_torch_archive(tmp_path / "other.pt")
    whole = (tmp_path / "other.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-30])
    with pytest.raises(WeightsError, match="cut short"):
        open_torch_archive(tmp_path / "cut.pt")


def changed(path: Path, **members: bytes) -> Path:
    """The state dict with other contents of some files."""
    with zipfile.ZipFile(GOLDEN / "state_dict.pt") as whole, zipfile.ZipFile(path, "w") as out:
        for info in whole.infolist():
            out.writestr(info.filename, members.get(info.filename.rpartition("/")[2], whole.read(info)))
    return path


def test_numbers_in_another_order_of_bytes_are_refused(tmp_path: Path) -> None:
    assert open_torch_archive(changed(tmp_path / "little.pt", byteorder=b"little"))
    with pytest.raises(WeightsError, match="its numbers are b'big' endian"):
        open_torch_archive(changed(tmp_path / "big.pt", byteorder=b"big"))


def test_a_pickle_of_a_few_bytes_takes_no_memory(tmp_path: Path) -> None:
    for place in (2**16, 2**24, 2**32 - 1):
        archive(tmp_path / "memo.pt", b"\x80\x02]r" + place.to_bytes(4, "little") + b".", {})
        with pytest.raises(WeightsError, match=f"remembers something at place {place}: this file is not to be trusted"):
            open_torch_archive(tmp_path / "memo.pt")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one", "b": "two", "c": "two"}, r"two has no c$"),
        ({"a": "one"}, ""),
        ({"a": "one", "b": "one"}, "one has no b"),
        ({"b": "two", "a": "two"}, "two has no a"),
        ({"a": "both", "b": "two"}, "both has b, which is not listed"),
        ({"a": 3}, "names 3, which is no file of its own folder"),
        ({"a": "../one"}, r"names '\.\./one', which is no file"),
        ({"a": "three"}, "three: there is no such file"),
        (["one"], r"its weight_map is \['one'\]; it must say of each tensor in which file it is"),
        ({}, "its weight_map is {}"),
        (None, "its weight_map is None"),
    ],
)
def test_an_index_lists_what_its_files_hold(weight_map: Any, message: str, tmp_path: Path) -> None:
    a, b = np.zeros(2, np.float32), np.ones(3, np.float32)
    for name, content in (("one", {"a": a}), ("two", {"b": b}), ("both", {"a": a + 1, "b": b})):
        save_file(content, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    if message:
        with pytest.raises(WeightsError, match=message):
            open_tensors(index)
    else:
        np.testing.assert_array_equal(open_tensors(index)["a"], a)
