"""Compiled ahead of time: what fits, what does not and why, and what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jclip import compile, topology
from jclip.config import Config, ConfigError
from jclip.estimate import program_text

HERE = Path(__file__).parent


def jclip_compile(*arguments: str, recipe: str = str(HERE / "recipe_tiny.py")) -> subprocess.CompletedProcess[str]:
    """`jclip compile` as a user starts it, whatever the devices of this process."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment |= {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "COLUMNS": "200"}
    command = [sys.executable, "-m", "jclip.cli", "compile", recipe, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_config_that_fits_is_reported_with_all_its_numbers() -> None:
    done = jclip_compile("--topology", "cpu:8", "--mesh.fsdp", "4")
    assert done.returncode == 0, done.stderr
    out = " ".join(done.stdout.split())
    assert "batch 16, on 8 x cpu" in out
    assert "floating-point operations a step" in out
    for line in ("arguments", "temporaries", "output", "all-gather", "fits: "):
        assert line in out, line


@pytest.mark.slow
def test_a_config_that_does_not_fit_says_so() -> None:
    done = jclip_compile("--topology", "cpu:8", "--batch-size", "80000000", "--eval-batch-size", "8")
    assert done.returncode == 1, done.stderr
    out = " ".join(done.stdout.split())
    assert "does not fit, because " in out
    # What goes into GELU in the first of two blocks, 8 * 128 * 80e6 * 4 / 8 / 2^30; the last block keeps less.
    assert "38.147 GiB a device text keeps float32[1,80000000,8,128]" in out
    assert "GiB a device batch" in out


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v4:2x2x1", r"topology 'v4:2x2x1' is unknown; use cpu:8, or like v5e:16x16: v5e, v5p, v6e"),
        ("v5e", r"topology 'v5e' is unknown"),
        ("cpu:0", r"topology 'cpu:0' is unknown"),
    ],
)
def test_an_unknown_topology_is_refused(topology: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile.main(Config(), topology)


def test_an_unknown_option_is_answered_by_the_command_that_was_given() -> None:
    done = jclip_compile("--no-such-option")
    assert done.returncode == 2
    assert "jclip compile" in done.stderr
    assert "jclip train" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named() -> None:
    done = jclip_compile("--topology", "v5e:4x4")
    assert done.returncode == 1
    assert "pip install 'jclip[tpu]'" in done.stderr


def test_a_libtpu_of_another_jax_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With libtpu 0.0.52 jaxlib 0.10.2 reads the programs of a v5e, and fails on those of a v5p and a v6e."""

    class Unread:
        def as_text(self) -> str:
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    installed = "0.0.42.1"
    monkeypatch.setattr(topology, "requires", lambda _: ["jaxlib<=0.10.2", 'libtpu==0.0.42.*; extra == "tpu"'])
    monkeypatch.setattr(topology, "version", lambda _: installed)
    assert topology.other_libtpu() == ""
    with pytest.raises(jax.errors.JaxRuntimeError):
        program_text(Unread())
    installed = "0.0.421"
    assert "libtpu 0.0.421 is installed" in topology.other_libtpu()
    with pytest.raises(
        ConfigError, match=r"cannot read the compiled program; libtpu 0.0.421 is installed.* wants 0.0.42: .*jclip\[tpu\]"
    ):
        program_text(Unread())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_slice_of_tpus_has_a_clock_and_wires(tmp_path: Path) -> None:
    """The report says what the row of a sweep does, and the transfers between four chips take time."""
    one, rows = ("--model.dtype", "bfloat16", "--batch-size", "1024"), tmp_path / "rows.json"
    swept = jclip_compile("--topology", "v5e:2x2", *one, "--sweep", "mesh.fsdp=1,3", "--json", str(rows))
    assert swept.returncode == 0, swept.stderr
    fits, wrong = json.loads(rows.read_text())
    assert fits["missing"] == 0
    assert 0 < fits["computing"] < fits["step"] < 1
    assert fits["rate"] == pytest.approx(256 / fits["step"])
    assert wrong["problem"] == "mesh.fsdp 3 does not divide 4 devices"
    report = jclip_compile("--topology", "v5e:2x2", *one)
    assert report.returncode == 0, report.stderr
    out = " ".join(report.stdout.split())
    assert f"estimated step {fits['computing']:.3f} s" in out
    assert f"with the transfers {fits['step']:.3f} s {fits['rate']:,.0f} pairs/s a chip, MFU {fits['mfu']:.1%}" in out
