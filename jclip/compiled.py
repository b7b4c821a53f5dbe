"""Compiled programs, kept from one start to the next: on an accelerator compilation takes minutes."""

import jax

from jclip.data.caches import cache_folder


def keep_compiled() -> None:
    """Keeps programs for accelerators in the folder "compiled" of jclip's cache; to be called before the first is compiled.

    JAX names them by all that they depend on, and never removes one. Where JAX_COMPILATION_CACHE_DIR names a folder they lie
    there; JAX_ENABLE_COMPILATION_CACHE=false keeps none. Of several processes the first alone writes: such runs keep
    programs in a folder that is named, which all hosts share. Programs for a CPU compile in seconds and are not kept.
    """
    chosen: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen is None and jax.default_backend() != "cpu" and jax.process_count() == 1:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
