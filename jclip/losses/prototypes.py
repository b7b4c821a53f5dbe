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
    weights: Array,
    *,
    temperature: float,
    teacher_temperature: float,
    block: int,
) -> Array:
    """-sum_i w_i sum_k q_ik log p_ik, f32 [] (Caron et al. 2021, DINO, equations 1 and 2).

    p_i = softmax(s_i . P / temperature), q_i = softmax((t_i . T - centre) / teacher_temperature), which no gradient reaches. The
    distributions of n rows are never in memory together, forward or backward: those of a block are made again for its gradient.

    Args:
        student: f32 [n, F], s, unit vectors.
        teacher: f32 [n, F], t, unit vectors.
        prototypes: f32 [F, K], P, unit columns.
        targets: f32 [F, K], T, unit columns.
        centre: f32 [K].
        weights: f32 [n]; rows of weight 0 do not count.
        temperature: of the student.
        teacher_temperature: of the teacher.
        block: how many rows are computed at a time.
    """
    teacher, targets, centre = jax.lax.stop_gradient((teacher, targets, centre))

    @jax.checkpoint
    def some(s: Array, t: Array, weights: Array) -> Array:
        log_p = jax.nn.log_softmax(s @ prototypes / temperature)
        q = jax.nn.softmax((t @ targets - centre[None]) / teacher_temperature)
        return -(weights * (q * log_p).sum(axis=1)).sum()

    count = min(block, len(student))
    whole = len(student) // count * count
    parts = tuple(x[:whole].reshape(-1, count, *x.shape[1:]) for x in (student, teacher, weights))
    total, _ = jax.lax.scan(lambda total, part: (total + some(*part), None), jnp.zeros(()), parts)
    return total if whole == len(student) else total + some(student[whole:], teacher[whole:], weights[whole:])
