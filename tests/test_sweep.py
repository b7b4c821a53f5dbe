"""A sweep's rows are those of the configurations it names, the best first, and none is compiled twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from jclip import sweep
from jclip.config import Config, ConfigError
from jclip.config.recipes import load
from jclip.estimate import Estimate, OutOfMemoryError, missing_bytes
from jclip.memory import GIB
from jclip.sweep import SweepRow
from jclip.topology import CHIPS, Topology

RECIPE = Path(__file__).with_name("recipe_tiny.py")


def configured(overrides: list[str]) -> Config:
    return load(RECIPE, overrides)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that were compiled, none of which really is: a device has 1 GiB, a pair takes 32 MiB and 1 ms, what is
    kept by blocks another 32 MiB, and one batch more than the compiler bears."""
    compiled: list[Config] = []

    def estimate(config: Config, topology: Topology) -> Estimate:
        compiled.append(config)
        if config.batch_size == 128:
            raise OutOfMemoryError("Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm.")
        pairs = config.batch_size // 8
        peak = pairs * 2**25 * (2 if config.model.remat == "none" else 1)
        return Estimate(
            0, 0, 0, peak, {}, {"all-reduce": 0.001}, {"MLP": 0.001 * pairs * (1 if config.model.remat == "none" else 2)}
        )

    devices = [object()] * 8
    monkeypatch.setattr(sweep, "describe", lambda name: Topology(devices, GIB, CHIPS["v5e"], (2, 4)))  # type: ignore[arg-type]
    monkeypatch.setattr(sweep, "make_mesh", lambda config, devices: None)
    monkeypatch.setattr(sweep, "make_program", lambda config, mesh, **steps: config)
    monkeypatch.setattr(sweep, "estimate", estimate)
    return compiled


AXES = ["model.remat=none,q+k", "batch_size=64,100,128,256"]


def test_every_combination_is_a_row_and_the_best_comes_first(asked: list[Config], capsys: Any) -> None:
    assert sweep.main(configured, ["--eval-batch-size", "8"], AXES, "v5e:2x4", None)
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == "1 of 8: model.remat=none batch_size=64: fits with 0.50 GiB a device, 0.009 s, 889 pairs/s a device"
    table = said[9:17]
    assert "".join(said[8:9]) == "GiB a device step with transfers pairs/s a device MFU"
    # 8 pairs in 9 ms are more a second than 32 in 65, and these more than 8 in 17; what is missing least comes next.
    assert [row.split(" ")[:2] for row in table] == [
        [f"model.remat={remat}", f"batch_size={batch}"]
        for remat, batch in (
            ("none", 64),
            ("q+k", 256),
            ("q+k", 64),
            ("none", 256),
            ("none", 128),
            ("q+k", 128),
            ("none", 100),
            ("q+k", 100),
        )
    ]
    assert table[0].split(" ", 2)[2].startswith("0.50 0.008 s 0.009 s 889 ")
    assert table[0].endswith("fits")
    assert table[3].endswith("does not fit by 1.00 GiB a device")
    assert table[4].endswith("does not fit by 5.75 GiB a device")
    assert table[6].endswith("batch_size 100 is not divisible by 8 devices; use 96 or 104")
    assert len(asked) == 6


def test_what_is_kept_in_a_file_is_not_compiled_again(asked: list[Config], tmp_path: Path, capsys: Any) -> None:
    def run(*axes: str) -> str:
        sweep.main(configured, ["--eval-batch-size", "8"], axes, "v5e:2x4", str(tmp_path / "rows.json"))
        return str(capsys.readouterr().out)

    run("batch_size=64,96")
    run("batch_size=64,96,256")
    assert [config.batch_size for config in asked] == [64, 96, 256]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["change"] for row in rows] == ["batch_size=64", "batch_size=96", "batch_size=256"]
    run("seed=1")  # another configuration
    assert len(asked) == 4
    (tmp_path / "rows.json").write_text('{"loss": 1}')
    with pytest.raises(ConfigError, match=r"was not written by --sweep"):
        run("batch_size=64")


def test_a_sweep_without_axes_is_around_the_recipe() -> None:
    config = tiny_config(batch_size=64, **{"mesh.fsdp": 4})
    assert sweep.default_axes(config) == {
        "model.remat": ["none", "q+k+v+attention+out", "attention", "nothing_saveable"],
        "batch_size": ["64", "128"],
        "mesh.fsdp": ["1", "4"],
    }
    for value in sweep.default_axes(config)["model.remat"]:
        configured(["--model.remat", *value.split("+")])


@pytest.mark.parametrize("axis", ["batch_size", "batch_size=", "=64", "batch_size=64,,96"])
def test_an_axis_that_cannot_be_read_is_refused(axis: str) -> None:
    with pytest.raises(ConfigError, match="is not PATH=VALUE,VALUE"):
        sweep.main(configured, [], [axis], "cpu:8", None)


def test_a_value_that_is_none_of_its_field_is_refused_before_anything_is_compiled(asked: list[Config]) -> None:
    with pytest.raises(SystemExit):
        sweep.main(configured, [], ["model.remat=none,some"], "v5e:2x4", None)
    assert not asked


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        ("the total memory required for HLO temporaries (54.23G) exceeds available HBM (15.75G).", 38.48),
        ("Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. Exceeded hbm capacity by 5.75G.", 5.75),
        ("Ran out of memory in memory space vmem. Used 16.00G of 512.00M vmem.", 15.5),
        ("something else", None),
    ],
)
def test_what_is_missing_is_read_from_the_words_of_the_compiler(message: str, missing: float | None) -> None:
    assert missing_bytes(message) == (missing if missing is None else pytest.approx(missing * GIB))


@pytest.mark.slow
def test_rows_of_this_machine_have_memory_and_no_time(capsys: Any) -> None:
    assert sweep.main(configured, [], ["model.remat=none,q+k+v", "batch_size=16,80000000"], None, None)
    out = capsys.readouterr().out
    assert out.count("does not fit by ") == 4
    assert "no clock" in out
    assert "pairs/s" not in out


def test_rows_are_ordered_by_speed_then_memory_then_what_is_missing() -> None:
    rows = [
        SweepRow("fast", "", peak=9, missing=0, rate=2.0),
        SweepRow("slow", "", peak=1, missing=0, rate=1.0),
        SweepRow("small, of unknown speed", "", peak=1, missing=0),
        SweepRow("large, of unknown speed", "", peak=2, missing=0),
        SweepRow("nearly fits", "", peak=9, missing=1),
        SweepRow("does not fit", "", peak=9, missing=2),
        SweepRow("contradicts itself", "", problem="no"),
    ]
    assert sorted(rows[3:] + rows[:3], key=lambda row: row.order) == rows
