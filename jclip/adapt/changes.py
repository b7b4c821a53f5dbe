"""Parameters of towers with changes, where the unchanged ones stay the very same arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jclip.config import ConfigError
from jclip.tree import flatten, unflatten


def with_changes(params: Mapping[str, Any], changed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Nested parameters in which those of `changed`, by path, are new; each lies where the old one did.

    Raises:
        ConfigError: there is no such parameter, or it has another shape.
    """
    flat = flatten(params)
    for path, array in changed.items():
        if path not in flat or flat[path].shape != array.shape:
            found = f"of shape {flat[path].shape}" if path in flat else "no parameter of the model"
            raise ConfigError(f"adapt: {path}, adapted with shape {array.shape}, is {found}; load the model that was adapted")
        flat[path] = jax.device_put(np.asarray(array, flat[path].dtype), flat[path].sharding)
    return unflatten(flat)
