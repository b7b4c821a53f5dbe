"""Parameters are put into our order whatever their size and the order of their numbers, and not copied once more by JAX."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jclip.weights.io.files import open_tensors
from jclip.weights.layout import LINEAR, STRIP, Rule, to_ours


@pytest.mark.parametrize("shape", [(STRIP, STRIP), (STRIP + 1, 2 * STRIP + 3), (3 * STRIP - 1, STRIP), (2, STRIP**2), (3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_large_matrices_are_transposed_number_by_number(shape: tuple[int, int], dtype: str) -> None:
    theirs = {f"layers.{i}.weight": np.random.default_rng(i).random(shape).astype(dtype) for i in range(3)}
    rules = [Rule("blocks/kernel", "layers.{}.weight", LINEAR)]
    ((path, ours),) = to_ours(rules, theirs, {"blocks/kernel": (3, *shape[::-1])})
    assert path == "blocks/kernel"
    expected = np.stack([array.T for array in theirs.values()]).astype(np.float32)
    np.testing.assert_array_equal(ours, expected, strict=True)


def test_jax_uses_the_memory_of_a_parameter_as_it_is() -> None:
    ((_, ours),) = to_ours([Rule("a", "b")], {"b": np.ones((7, 5), np.float32)}, {"a": (7, 5)})
    assert jax.device_put(ours, jax.devices("cpu")[0]).unsafe_buffer_pointer() == ours.ctypes.data


def test_safetensors_of_all_types_are_mapped(tmp_path: Path) -> None:
    import ml_dtypes

    types = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", ml_dtypes.bfloat16)
    arrays = {str(np.dtype(kind)): np.arange(6).reshape(2, 3).astype(kind) for kind in types}
    arrays |= {"scalar": np.full((), 3, np.float32), "empty": np.zeros((0, 4), np.float32)}
    save_file(arrays, tmp_path / "w.safetensors", {"format": "pt"})
    read = open_tensors(tmp_path / "w.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].shape == array.shape
        np.testing.assert_array_equal(np.asarray(read[name]), array, strict=True)
