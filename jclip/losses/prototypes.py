"""Cross-entropy of two distributions over prototypes, some rows at a time."""

import jax
import jax.numpy as jnp
from jax import Array


def prototype_cross_entropy(
    student: Array,
    teacher: Array,
    prototypes: Array,
    targets: Array,
    centre: Array,
    *,
    temperature: float,
    teacher_temperature: float,
    block: int,
) -> Array:
    """-sum_ij sum_k q_ijk log p_ijk, f32 [] (Caron et al. 2021, DINO, equations 1 and 2).

    p = softmax(s . P / temperature), q = softmax((t . T - centre) / teacher_temperature), which no gradient reaches. All
    distributions are never in memory together, forward or backward: those of a block, some of every image, are made again for
    its gradient.

    Args:
        student: f32 [b, m, F], s, unit vectors, sharded on b in any way.
        teacher: f32 [b, m, F], t, unit vectors.
        prototypes: f32 [F, K], P, unit columns.
        targets: f32 [F, K], T, unit columns.
        centre: f32 [K].
        temperature: of the student.
        teacher_temperature: of the teacher.
        block: parts or patches of an image that are computed at a time.
    """
    teacher, targets, centre = jax.lax.stop_gradient((teacher, targets, centre))

    @jax.checkpoint
    def some(s: Array, t: Array) -> Array:
        log_p = jax.nn.log_softmax(s @ prototypes / temperature)
        q = jax.nn.softmax((t @ targets - centre[None, None]) / teacher_temperature)
        return -(q * log_p).sum()

    count = min(block, student.shape[1])
    whole = student.shape[1] // count * count
    blocks = (x[:, :whole].reshape(len(x), -1, count, x.shape[2]).swapaxes(0, 1) for x in (student, teacher))
    total, _ = jax.lax.scan(lambda total, block: (total + some(*block), None), jnp.zeros(()), tuple(blocks))
    return total if whole == student.shape[1] else total + some(student[:, whole:], teacher[:, whole:])
