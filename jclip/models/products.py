"""Operations of activations and parameters: products, convolutions and sums, and the types in which parameters get their
gradients.

A gradient of a parameter is a sum over all rows of the batch. Each device sums its own rows in float32, whatever the type of the
activations; the type in which that sum leaves the layer is the one in which it goes on to the other devices.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jclip.models.compute import Compute


def product(x: Array, kernel: Array, how: Compute) -> Array:
    """x [..., d] times kernel [d, f], in the type of `how`: [..., f]. The kernel's gradient comes in `how.reduce`."""
    return (_widening_product if how.widens else _product)(x.astype(how.dtype), kernel)


def _product(x: Array, kernel: Array) -> Array:
    return x @ kernel.astype(x.dtype)


_widening_product = jax.custom_vjp(_product)


def _product_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    dx = lax.dot_general(dy, kernel.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())))
    return dx, lax.dot_general(x, dy, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype)


_widening_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


def convolution(x: Array, kernel: Array, stride: int, padding: int, how: Compute) -> Array:
    """x [b, h, w, c] under windows of kernel [s, s, c, f], `stride` apart, over `padding` zeros around: [b, h', w', f].

    In the type of `how`; the kernel's gradient comes in `how.reduce`.
    """
    return (_widening_convolution if how.widens else _convolution)(x.astype(how.dtype), kernel, stride, padding)


def _convolution(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    around, layout = 2 * [(padding, padding)], ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel.astype(x.dtype), 2 * (stride,), around, dimension_numbers=layout)


_widening_convolution = jax.custom_vjp(_convolution, nondiff_argnums=(2, 3))


def _convolution_backward(stride: int, padding: int, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """The gradient of the kernel is itself a convolution: of x, whose examples are its channels, under the window dy, whose
    numbers lie `stride` apart."""
    x, kernel = kept
    _, back = jax.vjp(lambda x: _convolution(x, kernel, stride, padding), x)
    around = [
        (padding, size + (n - 1) * stride - length - padding)
        for size, n, length in zip(kernel.shape, dy.shape[1:3], x.shape[1:3], strict=False)
    ]
    dkernel = lax.conv_general_dilated(
        x,
        dy,
        (1, 1),
        around,
        rhs_dilation=2 * (stride,),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=kernel.dtype,
    )
    return *back(dy), dkernel


_widening_convolution.defvjp(lambda x, kernel, *how: (_convolution(x, kernel, *how), (x, kernel)), _convolution_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def broadcast(w: Array, rows: tuple[int, ...], dtype: Any) -> Array:
    """A parameter f32 [...] for each of some rows, [*rows, ...] in `dtype`; its gradient is summed in float32 always."""
    return _broadcast(w, rows, dtype)


def _broadcast(w: Array, rows: tuple[int, ...], dtype: Any) -> Array:
    return jnp.broadcast_to(w.astype(dtype), (*rows, *w.shape))


broadcast.defvjp(
    lambda w, rows, dtype: (_broadcast(w, rows, dtype), None),
    lambda rows, _, __, dy: (dy.astype(jnp.float32).sum(tuple(range(len(rows)))),),
)
