"""Every test runs on the CPU with 8 emulated devices, and with JAX's own checks switched on."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs here are compiled once and run for milliseconds: without LLVM's optimizations they take half as long, and without the
# emitters of fusions another quarter less, in the jaxlib whose flag that is.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# What one test has compiled, another need not, nor a process that a test starts.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jclip-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest
from once import everything_made_once

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


HEAVY = (
    "test_objectives",
    "test_readme",
    "test_docs",
    "test_processes",
    "test_train",
    "test_config_fuzz",
    "test_buckets",
    "test_init_from",
    "test_models",
    "test_step",
    "test_weights",
    "test_cli",
    "test_stopping",
    "test_transforms",
    "test_evaluate",
    "test_resume",
    "test_stages",
    "test_optim_methods",
    "test_gpu_suite",
    "test_compile",
    "test_attention",
    "test_losses",
    "test_distillation",
    "test_captioning",
    "test_caption",
    "test_examples",
)
"""Files of tests that take longest, first: with one of them last, other processes would wait for it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files keep their tests together, and each goes to one process; see `--dist loadfile`."""
    place = {name: i for i, name in enumerate(HEAVY)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True, scope="module")
def _everything_made_once() -> Iterator[None]:
    with everything_made_once():
        yield
