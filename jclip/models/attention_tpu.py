"""A TPU kernel of attention for short sequences: the keys, values and logits of a head fit a core's fast memory.

That makes it simple. A program of the grid has a few examples, and of them as many heads as fill the 128 lanes of a register: for
each example and head it computes the logits, their softmax and the output in fast memory. The backward pass computes the logits
again and keeps nothing of the forward pass.

    lanes    0 ... 63 | 64 ... 127          Heads of 64 numbers share the lanes by twos. To multiply the queries of one head with
    q        head 0   | head 1              its keys, the other head's lanes of the queries are set to 0 and all 128 are
    q_0      head 0   |   0                 contracted: the matrix unit is 128 deep anyway, and no lane has to move.

q, k and v are read as the dense layers before them wrote them, [b, l, heads * d]: nothing is transposed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

HIDDEN = -1e30
LANES = 128
LONGEST = 640
"""Tokens of which the logits of a head and their gradients, f32 [l, l], fit beside each other in 16 MiB."""
PROGRAM_TOKENS = 2048
"""Tokens of a program of the grid: enough to hide the time it takes to start one."""


def fits(q: Array) -> bool:
    """True where the kernel takes queries and as many keys [b, l, heads, d]."""
    _, length, heads, size = q.shape
    return length <= LONGEST and LANES % size == 0 and heads * size % LANES == 0


def attend(q: Array, k: Array, v: Array, lengths: Array | None, *, causal: bool, interpret: bool = False) -> Array:
    """The kernel's `attention.attend`, for bf16 [b, l, heads, d] that `fits`; `interpret` runs it without a TPU."""
    b, length, heads, size = q.shape
    form = Form(size, causal, lengths is not None, interpret)
    if lengths is None:
        lengths = jnp.full((b,), length, jnp.int32)
    flat = (x.reshape(b, length, heads * size) for x in (q, k, v))
    return _attend(form, *flat, lengths).reshape(q.shape)


class Form(NamedTuple):
    """Facts that are known when the kernel is compiled."""

    size: int
    """Numbers of a head."""
    causal: bool
    masked: bool
    """Some examples are shorter than the others."""
    interpret: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form: Form, q: Array, k: Array, v: Array, lengths: Array) -> Array:
    return _call(form, _forward_kernel, 1, 4, lengths, q, k, v)[0]


def _forward(form: Form, q: Array, k: Array, v: Array, lengths: Array) -> tuple[Array, Any]:
    return _attend(form, q, k, v, lengths), (q, k, v, lengths)


def _backward(form: Form, residuals: Any, dout: Array) -> tuple[Any, ...]:
    q, k, v, lengths = residuals
    return (*_call(form, _backward_kernel, 3, 10, lengths, q, k, v, dout), None)


_attend.defvjp(_forward, _backward)


def _call(form: Form, kernel: Callable[..., None], outputs: int, products: int, lengths: Array, *inputs: Array) -> Any:
    """Runs a kernel on blocks of examples and lanes: [b, l, heads * d] -> as many of these as there are outputs."""
    b, length, width = inputs[0].shape
    examples = max(n for n in range(1, b + 1) if b % n == 0 and (n == 1 or n * length <= PROGRAM_TOKENS))
    block = pl.BlockSpec((examples, length, LANES), lambda i, j, *_: (i, 0, j))
    heads = width // form.size
    cost = pl.CostEstimate(  # as it is done, with all lanes of a register
        flops=products * b * heads * length * round_up(length) * LANES,
        transcendentals=b * heads * length * round_up(length),
        bytes_accessed=(len(inputs) + outputs) * inputs[0].size * inputs[0].dtype.itemsize,
    )
    return pl.pallas_call(
        partial(kernel, form),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b // examples, width // LANES),
            in_specs=[block] * len(inputs),
            out_specs=[block] * outputs,
        ),
        out_shape=[jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype)] * outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=cost,
        interpret=form.interpret,
    )(lengths, *inputs)


def round_up(length: int) -> int:
    """The lanes that as many numbers take."""
    return -(-length // LANES) * LANES


def _forward_kernel(form: Form, lengths: Any, q: Any, k: Any, v: Any, out: Any) -> None:
    first = pl.program_id(0) * out.shape[0]

    def example(i: Array, _: None) -> None:
        length = lengths[first + i]
        total = jnp.zeros(out.shape[1:], jnp.float32)
        for lanes in _heads(form, out.shape[1:]):
            weights = _softmax(form, length, _only(q[i], lanes), k[i])
            total += jnp.where(lanes, _dot(weights.astype(v.dtype), v[i], (1, 0)), 0)
        out[i] = total.astype(out.dtype)

    jax.lax.fori_loop(0, out.shape[0], example, None)


def _backward_kernel(form: Form, lengths: Any, q: Any, k: Any, v: Any, dout: Any, dq: Any, dk: Any, dv: Any) -> None:
    """Gradients, with p the weights and g the gradient of the output (Dao et al. 2022, appendix B.2):

    dv = p^T g,   dp = g v^T,   ds = p (dp - sum_l p dp) / sqrt(d),   dq = ds k,   dk = ds^T q.
    """

    first = pl.program_id(0) * dq.shape[0]

    def example(i: Array, _: None) -> None:
        length = lengths[first + i]
        totals = [jnp.zeros(dq.shape[1:], jnp.float32) for _ in range(3)]
        for lanes in _heads(form, dq.shape[1:]):
            own_q, own_g = _only(q[i], lanes), _only(dout[i], lanes)
            p = _softmax(form, length, own_q, k[i])
            dp = _dot(own_g, v[i], (1, 1))
            ds = (p * (dp - (p * dp).sum(axis=1, keepdims=True)) * form.size**-0.5).astype(q.dtype)
            parts = jnp.where(lanes, _dot(ds, k[i], (1, 0)), 0), _dot(ds, own_q, (0, 0)), _dot(p.astype(q.dtype), own_g, (0, 0))
            totals = [total + part for total, part in zip(totals, parts, strict=True)]
        for ref, total in zip((dq, dk, dv), totals, strict=True):
            ref[i] = total.astype(ref.dtype)

    jax.lax.fori_loop(0, dq.shape[0], example, None)


def _heads(form: Form, shape: tuple[int, ...]) -> list[Array]:
    """The lanes of each head of the block, bool [l, 128]."""
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return [(lane >= start) & (lane < start + form.size) for start in range(0, LANES, form.size)]


def _only(x: Array, lanes: Array) -> Array:
    return jnp.where(lanes, x, jnp.zeros_like(x))


def _softmax(form: Form, length: Array, q: Array, k: Array) -> Array:
    """The weights of one head of one example, f32 [l, l]."""
    logits = _dot(q, k, (1, 1)) * form.size**-0.5
    if form.masked or form.causal:
        row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
        if form.causal:
            logits = jnp.where(column <= row, logits, HIDDEN)
        if form.masked:
            logits = jnp.where(column < length, logits, HIDDEN)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _dot(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    return jax.lax.dot_general(x, y, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32)
