"""Runs that do not fit are refused with the estimate, before anything is allocated."""

import resource
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

from jclip import train
from jclip.config import ConfigError, check
from jclip.memory import require_memory, share, size_text
from jclip.program import make_program
from jclip.sharding import make_mesh


def test_parameters_moments_and_batch_are_counted_by_device() -> None:
    config = tiny_config(**{"mesh.fsdp": 4, "mesh.rules": ((".*", "fsdp"),)})
    parts = make_program(config, make_mesh(config.mesh), warmup_steps=1, total_steps=2).parts()
    assert share(parts["batch"]) == 16 // 8 * (16 * 16 * 3 + 8 * 4)  # u8 [2, 16, 16, 3] and i32 [2, 8]
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(parts["parameters"]))
    assert whole / 4 <= share(parts["parameters"]) < whole / 3.5  # what does not divide is on every device
    assert share(parts["embeddings"]) == 2 * (16 // 8) * config.model.embed_dim * 4
    moments = sum(leaf.size * 4 for leaf in jax.tree.leaves(parts["optimizer"]) if leaf.dtype == "float32")
    assert moments == 2 * whole


def test_what_is_more_than_a_device_has_is_refused_with_its_parts() -> None:
    config = tiny_config()
    parts = make_program(config, make_mesh(config.mesh), warmup_steps=1, total_steps=2).parts()
    need = sum(map(share, parts.values()))
    require_memory(parts, need)
    require_memory(parts, None)
    message = r"would hold .* MiB \(parameters .*, optimizer .*, batch .*, embeddings .*\) and has .* MiB, .* smaller model"
    with pytest.raises(ConfigError, match=message):
        require_memory(parts, need - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2**30, "model.towers.image.image_size": 256},
        {"model.towers.text.width": 2**20, "model.towers.text.heads": 1},
        {"model.towers.image.depth": 10_000, "model.towers.image.width": 2**14, "model.towers.image.heads": 1},
        {"model.embed_dim": 2**20, "batch_size": 2**24},
        {"model.towers.image.image_size": 2**13, "model.towers.image.patch_size": 8, "batch_size": 2**20},
    ],
    ids=str,
)
def test_huge_but_possible_sizes_are_refused_at_once(changes: dict[str, int]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = tiny_config(**changes)
    check(config, devices=8)
    parts = make_program(config, make_mesh(config.mesh), warmup_steps=1, total_steps=2).parts()
    with pytest.raises(ConfigError, match=r"a device would hold [\d,.]+ GiB \(parameters .*, optimizer .*, batch "):
        require_memory(parts, 2**36)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 2**10


def test_training_refuses_what_does_not_fit_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a device would hold [\d,.]+ GiB .*batch "):
        train.main(tiny_config(batch_size=2**30), tmp_path / "W")
    assert not (tmp_path / "W" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.50 KiB"), (3 * 2**20, "3.00 MiB"), (2**41, "2,048.00 GiB")],
)
def test_a_size_has_the_unit_that_it_fills(size: int, text: str) -> None:
    assert size_text(size) == text
