"""The cross-entropy of words over a vocabulary, whose logits are never whole, on any mesh."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from jclip.losses.placing import split_rows, whole
from jclip.losses.tiles import dot, varying


def word_cross_entropy(
    features: Array,
    vocabulary: Array,
    targets: Array,
    real: Array,
    *,
    label_smoothing: float = 0.0,
    block: int = 8,
    mesh: Mesh | None = None,
    axes: str | Sequence[str] = ("data",),
) -> tuple[Array, Array]:
    """The cross-entropy of each text's words, mean of those that are real.

    With logits s = features @ vocabulary of a position, its target y and label smoothing e, a position has

        log sum_v exp s_v - (1 - e) s_y - e mean_v s_v

    Of a device's logits, b L V numbers, there are never more than b x `block` x V: they are computed again for the backward pass,
    which takes a third more multiply-adds. Every device holds the whole vocabulary and, once, the gradient of it.

    Args:
        features: [B, L, d], f32 or bf16, sharded on B over `axes` of `mesh`.
        vocabulary: f32 [d, V].
        targets: i32 [B, L], the word of each position, such as the one that follows it.
        real: bool [B, L], which of these count.
        label_smoothing: share of the target that is spread over the vocabulary.
        block: positions of a text whose logits are held at a time.
        mesh: mesh of the devices; None computes on one.
        axes: axes of the mesh that B is sharded over.

    Returns:
        f32 [B] the loss of each text, 0 of one without real words, and the share f32 [B] of its words of largest logit.
    """
    fn = partial(_of_device, block=block, label_smoothing=label_smoothing)
    if mesh is None:
        return fn(features, vocabulary, targets, real)
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    rows, everywhere = PartitionSpec(axes), PartitionSpec()

    def on_device(features: Array, vocabulary: Array, targets: Array, real: Array) -> tuple[Array, Array]:
        # Made a device's own here, outside of the loop, so that its gradient is summed over the devices once and not every turn.
        return fn(features, varying(vocabulary, axes), targets, real)

    features, targets, real = split_rows((features, targets, real), mesh, axes)
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, everywhere, rows, rows), out_specs=(rows, rows))
    return mapped(features, whole(vocabulary, mesh), targets, real)


def _of_device(
    features: Array, vocabulary: Array, targets: Array, real: Array, *, block: int, label_smoothing: float
) -> tuple[Array, Array]:
    length = features.shape[1]
    block = min(block, length)
    more = -length % block  # up to whole blocks, of positions that are not real
    padded = (jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2))) for x in (features, targets, real))
    blocks = [jnp.moveaxis(x.reshape(len(x), -1, block, *x.shape[2:]), 1, 0) for x in padded]
    vocabulary = vocabulary.astype(features.dtype)

    @jax.checkpoint
    def visit(sums: tuple[Array, Array], part: list[Array]) -> tuple[tuple[Array, Array], None]:
        x, target, counts = part
        logits = dot(x.reshape(-1, x.shape[2]), vocabulary, (1, 0)).reshape(*target.shape, -1)
        right = jnp.take_along_axis(logits, target[:, :, None], axis=2)[:, :, 0]
        loss = jax.nn.logsumexp(logits, axis=2) - (1 - label_smoothing) * right
        if label_smoothing:
            loss = loss - label_smoothing * logits.mean(axis=2)
        first = logits.argmax(axis=2) == target
        return (sums[0] + jnp.where(counts, loss, 0).sum(axis=1), sums[1] + (counts & first).sum(axis=1)), None

    nothing = jnp.zeros_like(features[:, 0, 0], jnp.float32)
    (loss, first), _ = lax.scan(visit, (nothing, nothing), blocks)
    count = jnp.maximum(real.sum(axis=1), 1)
    return loss / count, first / count
