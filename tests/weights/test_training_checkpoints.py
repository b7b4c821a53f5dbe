"""Files as training programs leave them: wrappers' prefixes, and checkpoints with much beside the weights."""

import argparse
import collections
import io
import logging
import pickle
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_files import Bomb

from jclip.config import architecture
from jclip.weights import WeightsError, open_clip, read_weights, tower_shapes
from jclip.weights.io.torch_archive import open_torch_archive
from jclip.weights.layout import SCALE, to_theirs
from jclip.weights.prefixes import without_prefix

NAME = "ViT-tiny-test"


class Pickler(pickle._Pickler):
    """Writes tensors as torch.save does, without torch: the numbers apart, under keys in the order they come."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=2)
        self.storages: list[bytes] = []

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[misc]

    def save_array(self, array: np.ndarray) -> None:
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        self.write(b"(")
        self.save("storage")
        self.write(b"ctorch\nFloatStorage\n")
        for part in (str(len(self.storages)), "cpu", array.size):
            self.save(part)
        self.write(b"tQ")
        strides = tuple(step // 4 for step in array.strides)
        for part in (0, array.shape, strides, False, collections.OrderedDict()):
            self.save(part)
        self.write(b"tR")
        self.storages.append(np.ascontiguousarray(array).tobytes())


class Tensor:
    """An array to be written as a tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


Pickler.dispatch[Tensor] = lambda self, tensor: self.save_array(tensor.array)  # type: ignore[index]


def torch_save(path: Path, root: Any) -> Path:
    """A file like torch.save's, of arrays in dicts."""
    file = io.BytesIO()
    pickler = Pickler(file)
    pickler.dump(root)
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("archive/data.pkl", file.getvalue())
        for key, data in enumerate(pickler.storages):
            out.writestr(f"archive/data/{key}", data)
    return path


@cache
def theirs() -> dict[str, np.ndarray]:
    """Weights of the model by open_clip's names."""
    model = architecture(NAME)
    shapes = tower_shapes(model) | {SCALE: ()}
    ours = {path: np.random.default_rng(i).normal(size=shape) for i, (path, shape) in enumerate(shapes.items())}
    return to_theirs(open_clip.rules(model, ours), ours)


def state_dict(prefix: str = "") -> dict[str, Tensor]:
    return collections.OrderedDict((f"{prefix}{name}", Tensor(array)) for name, array in theirs().items())


def same(path: Path) -> bool:
    """True where it holds the weights of `theirs`."""
    read = dict(read_weights(path, NAME))
    return np.array_equal(read["image/cls"], theirs()["visual.class_embedding"]) and np.array_equal(
        read["text/blocks/attn/out/kernel"][1], theirs()["transformer.resblocks.1.attn.out_proj.weight"].T
    )


PREFIXES = ("module.", "_orig_mod.", "model.", "base_model.model.", "module._orig_mod.", "trunk.a.b.", "teacher.backbone.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_taken_off_and_said(prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file({f"{prefix}{name}": array for name, array in theirs().items()}, tmp_path / "w.safetensors")
    torch_save(tmp_path / "w.pt", {"epoch": 3, "state_dict": state_dict(prefix)})
    for file in ("w.safetensors", "w.pt"):
        caplog.clear()
        assert same(tmp_path / file)
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path / file}: all names begin with {prefix!r}, which is taken off"
        ]


def test_no_prefix_is_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    torch_save(tmp_path / "w.pt", state_dict())
    assert same(tmp_path / "w.pt")
    assert not caplog.records


def test_a_prefix_of_most_names_is_named(tmp_path: Path) -> None:
    mixed = {f"student.{name}": array for name, array in theirs().items()} | {"n_averaged": np.zeros(1, np.float32)}
    save_file(mixed, tmp_path / "w.safetensors")
    message = r"w\.safetensors: .*do not fit .*\(names here begin with 'student\.', but not all: save those of the model alone\)"
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "w.safetensors", NAME)


@pytest.mark.parametrize("keys", [("model_state_dict",), ("model",), ("state_dict",), ("module",), ("model", "state_dict")])
def test_a_state_dict_may_lie_under_a_key_of_training_programs(keys: tuple[str, ...], tmp_path: Path) -> None:
    root: Any = state_dict("module.")
    for key in reversed(keys):
        root = {"epoch": 3, key: root, "optimizer": {"state": {0: {"exp_avg": Tensor(np.ones(3, np.float32))}}}}
    assert same(torch_save(tmp_path / "w.pt", root))


def test_of_two_state_dicts_the_one_that_is_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {name: Tensor(-tensor.array) for name, tensor in state_dict().items()}
    assert same(torch_save(tmp_path / "w.pt", {"model": other, "state_dict": state_dict()}))
    assert caplog.messages == [f"{tmp_path / 'w.pt'}: holds 'state_dict' and 'model'; 'state_dict' is read"]


BESIDE = {
    "a numpy scalar": np.float64(0.5),
    "a numpy array": np.arange(3.0),
    "arguments": argparse.Namespace(lr=1e-3, path=Path("/data")),
    "a path": Path("/data/x"),
    "a defaultdict": collections.defaultdict(list, {"x": [1]}),
    "a set": {1, 2},
    "a deque": collections.deque([1, 2]),
    "a class": argparse.Namespace,
    "a counter": collections.Counter("abc"),
    "a complex number": 1j,
    "a slice": slice(1, 2),
    "a named tuple": argparse.Namespace(x=(1, [2, {"y": np.int64(3)}])),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_lies_beside_a_state_dict_is_not_looked_at(what: str, tmp_path: Path) -> None:
    groups = {"param_groups": [{"lr": BESIDE[what], "params": [0]}], "state": {0: {"step": BESIDE[what]}}}
    root = {"args": BESIDE[what], "state_dict": state_dict(), "optimizer": groups, "scaler": [BESIDE[what]]}
    assert same(torch_save(tmp_path / "w.pt", root))


def test_what_is_called_beside_a_state_dict_is_not_called(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert same(torch_save(tmp_path / "w.pt", {"args": Bomb(mark), "state_dict": state_dict()}))
    assert not mark.exists()


def test_a_state_dict_of_something_else_is_refused_with_the_file_and_the_name(tmp_path: Path) -> None:
    for wrong, kind in ((np.ones(3), r"numpy.*_reconstruct"), (argparse.Namespace(a=1), r"argparse\.Namespace")):
        torch_save(tmp_path / "w.pt", {"state_dict": {**state_dict(), "visual.proj": wrong}})
        with pytest.raises(WeightsError, match=rf"w\.pt: visual\.proj is a {kind}, which is no tensor"):
            open_torch_archive(tmp_path / "w.pt")


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    one, two = (Tensor(np.full(2, x, np.float32)) for x in (1, 2))
    torch_save(tmp_path / "w.pt", {"a": {"b": one}, "a.b": two})
    with pytest.raises(WeightsError, match=r"w\.pt: two tensors have the name a\.b"):
        open_torch_archive(tmp_path / "w.pt")


def test_a_prefix_is_taken_off_only_where_that_makes_names_known_and_no_longer_than_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def without(names: list[str], known: set[str]) -> list[str]:
        return list(without_prefix(Path("w.pt"), dict.fromkeys(names), lambda given: known & set(given)))

    theirs = ["foo.bar.a", "foo.bar.b"]
    assert without(theirs, {"x", "y"}) == theirs  # nothing is known either way
    assert without(theirs, set(theirs)) == theirs
    assert not caplog.text
    assert without(theirs, {"bar.a", "bar.b"}) == ["bar.a", "bar.b"]
    assert without(theirs, {"bar.a", "a"}) == ["bar.a", "bar.b"]  # of equal ones the shorter
    assert "all names begin with 'foo.', which is taken off" in caplog.text
