"""Settings of the computation of a tower: its types, its loops, what it keeps, and the device it is compiled for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, PartitionSpec

from jclip.config import Model

Params = dict[str, Any]

F = Callable[..., Any]


class Backend(NamedTuple):
    """The device a program is compiled for. It decides between forms of a layer that compute the same, to rounding."""

    platform: str = "cpu"
    """"cpu", "gpu" or "tpu"."""
    fused_attention: bool = False
    """Attention never writes its logits to memory, where shapes and types allow it; see `attention.attend`."""
    mesh: Mesh | None = None
    """The devices among which the rows of a batch are split over all axes, where a kernel of our own must be told so."""

    @classmethod
    def of(cls, mesh: Mesh, attention: str = "auto") -> "Backend":
        """The backend of the devices of a mesh; `attention` as in `Model`."""
        device = mesh.devices.flat[0]
        capability = str(getattr(device, "compute_capability", "9.0"))  # a described device, of a topology, has none
        # cuDNN's attention needs NVIDIA's Ampere or later; AMD's devices call themselves "gfx...".
        able = device.platform == "tpu" or (device.platform == "gpu" and capability[:1].isdigit() and float(capability) >= 8)
        return cls(device.platform, able and attention == "auto", mesh)

    def recomputed(self, f: F) -> F:
        """f, of which nothing but the arguments is kept for the backward pass: it is computed again there.

        On a CPU behind a barrier, or XLA would keep what is cheap to compute and dear to keep; accelerators fuse it.
        """
        return jax.checkpoint(f, prevent_cse=self.platform == "cpu")

    def by_rows(self, f: F) -> F:
        """f of arrays [b, ...], on each device of its own rows: for kernels that the partitioner cannot split."""
        if self.mesh is None or self.mesh.size == 1:
            return f
        rows = PartitionSpec(self.mesh.axis_names)
        return jax.shard_map(f, mesh=self.mesh, in_specs=rows, out_specs=rows, check_vma=False)

    def row_major(self, x: Array) -> Array:
        """x, laid out in memory as it is written. XLA for GPUs may choose the batch as the fastest axis of the residual stream,
        for the sake of the last block's single token, and then every norm and every product transposes it: a tenth of a step, by
        the bytes it moves.
        """
        return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if self.platform == "gpu" else x


class Taps(NamedTuple):
    """Blocks of a tower whose outputs are asked for."""

    blocks: tuple[int, ...]
    """Their indices, from 0 on, in ascending order."""
    attention: bool = False
    """Attention weights too, which are then computed apart from the attention."""


class Compute(NamedTuple):
    """Settings of the computation of a tower; its parameters do not depend on them, nor its output beyond rounding."""

    dtype: Any = jnp.float32
    """Type of activations and products."""
    scan: bool = False
    """Loop over one compiled block, or unroll: then the last block computes no more than is asked for. With `gather` always a
    loop, or a compiler would gather all blocks at once."""
    remat: str | tuple[str, ...] = "none"
    """Results that a block keeps for the backward pass: "none", a policy of jax.checkpoint_policies by name, or names of layers;
    see `Model.remat`."""
    gather: Callable[[Params, Any, Any], Params] | None = None
    """(parameters of one block, `dtype`, `reduce`) -> the same, whole on every device: done before the block forward and again
    backward, kept never."""
    backend: Backend = Backend()
    """The device that the program is compiled for."""
    reduce: Any = jnp.float32
    """Type in which the gradients of kernels leave their products; see `Model.reduce_dtype`."""
    taps: Taps | None = None
    """Blocks that leave a Tap each in the variable "blocks" of the collection "taps", which must be mutable."""

    @classmethod
    def of(cls, model: Model, mesh: Mesh | None) -> "Compute":
        """Settings of the heads of a model, on the devices of a mesh; None: only their parameters are asked for."""
        backend = Backend() if mesh is None else Backend.of(mesh, model.attention)
        return cls(jnp.dtype(model.dtype), backend=backend, reduce=jnp.dtype(model.reduce_dtype))

    @property
    def widens(self) -> bool:
        """True where gradients of kernels have a wider type than the activations they are made of."""
        return bool(jnp.promote_types(self.dtype, self.reduce) != self.dtype)

    @property
    def policy(self) -> Callable[..., bool]:
        """`remat` as a policy of jax.checkpoint."""
        if not isinstance(self.remat, str):
            named = jax.checkpoint_policies.save_only_these_names(*self.remat)
            return jax.checkpoint_policies.save_from_both_policies(named, cudnn_attention) if "attention" in self.remat else named
        policy: Callable[..., bool] = getattr(
            jax.checkpoint_policies, "everything_saveable" if self.remat == "none" else self.remat
        )
        return policy


def cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Checkpoint policy: keep what cuDNN's attention makes, beside its result the sums of its softmax. The backward pass needs
    both: were the result kept alone, it would be computed again for the sums.
    """
    return str(primitive.name).startswith("dot_product_attention_fwd")
