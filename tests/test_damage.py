"""Checkpoints that are not what was saved: never loaded in silence, and always refused in one line that says the way on."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from programs import load_program

from jclip.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from jclip.config import MeshConfig
from jclip.digests import BLOCK, array_paths, begin_digests, digest, tree_digests
from jclip.sharding import make_mesh, param_shardings
from jclip.state import abstract, param_shapes

ORBAX = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what its errors leave behind


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_program("damage_checkpoints")


def mixed(x: int) -> int:
    """MurmurHash3's finalizer, in Python's own integers."""
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def expected(words: list[int]) -> list[int]:
    a = [mixed(word ^ place * 0x9E3779B9 % 2**32) for place, word in enumerate(words, 1)]
    return [sum(a) % 2**32, sum((2 * place + 1) * x for place, x in enumerate(a, 1)) % 2**32]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_a_digest_is_the_sum_of_its_mixed_words(dtype: str, shape: tuple[int, ...]) -> None:
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=shape) * 9, dtype=dtype)
    raw = np.asarray(x)
    words = raw.astype(np.uint32) if dtype == "bool" else raw.view(f"u{raw.dtype.itemsize}")
    assert digest(x).tolist() == expected(words.ravel().tolist())
    assert begin_digests([x]).result().tolist() == [expected(words.ravel().tolist())]


@pytest.mark.parametrize(
    "shape", [(0,), (3, 0), (BLOCK + 3,), (2, BLOCK), (3, 2 * BLOCK + 1), (2, 3, BLOCK // 2), (7, BLOCK // 3, 2)]
)
def test_a_digest_that_the_host_computes_in_blocks_is_that_of_the_device(shape: tuple[int, ...]) -> None:
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=shape), np.float32)
    assert begin_digests([x]).result().tolist() == [digest(x).tolist()]


def test_a_digest_is_of_what_was_there_although_the_next_step_is_given_the_memory() -> None:
    x = [jax.numpy.asarray(np.random.default_rng(i).normal(size=(300, 1000)), np.float32) for i in range(8)]
    want = np.asarray(tree_digests(x)).tolist()
    found = begin_digests(x)
    step = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0.5, x), donate_argnums=0)
    jax.block_until_ready(step(step(x)))
    assert found.result().tolist() == want


def test_digests_are_the_same_on_every_mesh() -> None:
    whole = {"a": np.arange(64, dtype=np.float32).reshape(8, 8), "b": [np.float32(3)]}
    want = np.asarray(tree_digests(jax.tree.map(jax.numpy.asarray, whole)))
    for data, fsdp in ((8, 1), (1, 4), (2, 4)):
        mesh = make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
        placed = {
            "a": jax.device_put(whole["a"], NamedSharding(mesh, PartitionSpec("fsdp", "data"))),
            "b": [jax.device_put(whole["b"][0], NamedSharding(mesh, PartitionSpec()))],
        }
        np.testing.assert_array_equal(tree_digests(placed), want)
        np.testing.assert_array_equal(begin_digests(placed).result(), want)
    assert array_paths(whole) == ["a", "b/0"]


def test_words_that_change_places_and_zeros_of_another_sign_change_the_digest() -> None:
    x = jax.numpy.asarray([1.0, 2.0, 0.0, 4.0])
    others = [[2.0, 1.0, 0.0, 4.0], [1.0, 2.0, -0.0, 4.0], [1.0, 2.0, 4.0, 0.0], [1.0, 2.0, 0.0]]
    assert len({tuple(digest(jax.numpy.asarray(y)).tolist()) for y in [x, *others]}) == 5


@pytest.mark.slow
@ORBAX
def test_no_random_damage_is_silent_and_each_is_one_line(tool: ModuleType, tmp_path: Path) -> None:
    counts = tool.experiment(tmp_path, damages=14, seed=1)
    assert all(not row["silent"] and not row["raw"] for row in counts.values()), counts
    assert sum(row["found"] for row in counts.values()) > 4


@pytest.fixture(scope="module")
def saved(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("saved")
    tool.save_one(workdir)
    return workdir


def test_a_damaged_array_is_named_by_its_path_on_any_mesh(tool: ModuleType, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "0" / "digests" / "digests.json"
    content = json.loads(path.read_text())
    at = "params/image/blocks/attn/q/kernel"
    shape, hexadecimal = content["arrays"][at].split(" ")
    content["arrays"][at] = f"{shape} {int(hexadecimal, 16) ^ 1:016x}"  # as if the array had another bit
    path.write_text(json.dumps(content))
    config = tool.small_config()
    for data, fsdp in ((8, 1), (1, 1), (2, 2)):
        mesh = make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
        shapes = param_shapes(config)
        wanted = {"params": abstract(shapes, param_shardings(shapes, MeshConfig(data, fsdp), mesh))}
        with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(DamagedCheckpoint) as error:
            checkpoints.restore(0, wanted)
        assert f"1 of {len(jax.tree.leaves(shapes))} arrays are not what was saved: {at}" in str(error.value)
        with Checkpoints(saved, read_only=True) as checkpoints:
            checkpoints.restore(0, wanted)


def test_a_changed_option_in_the_record_is_found(tool: ModuleType, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "0" / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert '"batch_size": 8,' in text
    path.write_text(text.replace('"batch_size": 8,', '"batch_size": 9,'))
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(CheckpointError, match="not what was saved"):
        checkpoints.config(0)
    path.write_text(text.replace('"format"', '"fermat"'))  # as if an older jclip without digests had saved it
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(CheckpointError, match="not what was saved"):
        checkpoints.config(0)


def test_digests_that_are_gone_as_a_whole_are_missed(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "0" / "digests")
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(DamagedCheckpoint, match=r"digests/digests\.json"):
        checkpoints.record(0)


@pytest.mark.parametrize(("damaged", "last"), [({16}, 12), ({16, 12}, 8), ({4, 8, 12, 16}, None)])
def test_the_last_whole_checkpoint_is_the_latest_of_the_earlier_ones_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: set[int], last: int | None
) -> None:
    def restore(self: Checkpoints, step: int, parts: object) -> dict[str, object]:
        if step in damaged:
            raise DamagedCheckpoint(f"checkpoint {step}")
        return {}

    monkeypatch.setattr(Checkpoints, "restore", restore)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        checkpoints.steps = [4, 8, 12, 16, 20]
        assert checkpoints.last_whole(16, {}) == last
