"""Compiled programs are kept where compilation takes long, unless it is said otherwise."""

from pathlib import Path

import jax
import pytest

from jclip.compiled import keep_compiled


@pytest.mark.parametrize(
    ("platform", "given", "kept"),
    [("tpu", None, "compiled"), ("gpu", "/elsewhere", "/elsewhere"), ("cpu", None, None), ("pod", None, None)],
)
def test_programs_for_accelerators_are_kept(
    platform: str, given: str | None, kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    monkeypatch.setattr("jax.process_count", lambda: 2 if platform == "pod" else 1)
    try:
        jax.config.update("jax_compilation_cache_dir", given)
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir == (str(tmp_path / "compiled") if kept == "compiled" else kept)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
