"""L-BFGS in JAX for convex objectives whose Hessian has a known diagonal, in f32."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

_REFRESH = 16  # iterations after which the diagonal is computed anew
_MEMORY = 16  # pairs of steps and gradients that are remembered
_TRIALS = 25  # of a line search

_dot = partial(jnp.vdot, precision="highest")
_Objective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Optimum(NamedTuple):
    """The optimum, or where the iterations ended."""

    theta: jax.Array
    loss: jax.Array
    error: jax.Array
    """sqrt(g . g / h / weight) of the gradient g and the Hessian's diagonal h: the size of Newton's next step.

    Where the Hessian is a mean over examples of p (1 - p) x x', and `weight` is the mean of p (1 - p), this is the change of the
    scores, root mean square, in which the examples count that are undecided.
    """
    iterations: jax.Array


class _Point(NamedTuple):
    """State of L-BFGS; steps and changes of the gradient are remembered in a ring."""

    theta: jax.Array
    loss: jax.Array
    gradient: jax.Array
    inverse: jax.Array
    """One over the diagonal of the Hessian, not more than `_REFRESH` iterations old."""
    weight: jax.Array
    """Weights of the error by `diagonal`."""
    steps: jax.Array
    changes: jax.Array
    products: jax.Array
    """One over step . change."""
    size: jax.Array
    """Factor on `inverse`."""
    iterations: jax.Array
    stuck: jax.Array
    """Line searches in turn that found nothing."""


def minimize(
    objective: _Objective,
    diagonal: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    theta: jax.Array,
    *,
    aim: float,
    iterations: jax.Array | int,
) -> Optimum:
    """L-BFGS (Nocedal & Wright, algorithms 7.4 and 7.5) from theta on, until `Optimum.error` is at most `aim`.

    To be called in a jitted function. It also ends where two line searches in turn find nothing: the gradient is noise there.

    Args:
        objective: from parameters to the loss, convex, and its gradient.
        diagonal: from parameters to one over the Hessian's diagonal, positive, and the `weight` of `Optimum.error`, positive.
        theta: where to begin, of any shape.
        aim: see above.
        iterations: at most.
    """

    def unfinished(p: _Point) -> jax.Array:
        return (_error(p) > aim) & (p.iterations < iterations) & (p.stuck < 2)

    def iterate(p: _Point) -> _Point:
        direction = -_two_loops(p)
        direction = jnp.where(_dot(direction, p.gradient) < 0, direction, -p.inverse * p.gradient)
        theta, loss, gradient, found = _line_search(objective, p, direction)
        step, change = theta - p.theta, gradient - p.gradient
        product = _dot(step, change)
        remembered = found & (product > 0)
        at = p.iterations % _MEMORY

        def put(ring: jax.Array, value: jax.Array) -> jax.Array:
            value = jnp.where(remembered, value, 0.0)
            return jnp.where(found, ring.at[at].set(value), jnp.zeros_like(ring))  # nothing found: begin with an empty memory

        due = (p.iterations % _REFRESH == _REFRESH - 1) | ~found
        here = jnp.where(found, theta, p.theta)
        inverse, weight = jax.lax.cond(due, diagonal, lambda _: (p.inverse, p.weight), here)
        size = product / _dot(inverse * change, change)
        return _Point(
            here,
            jnp.where(found, loss, p.loss),
            jnp.where(found, gradient, p.gradient),
            inverse,
            weight,
            put(p.steps, step),
            put(p.changes, change),
            put(p.products, 1 / product),
            jnp.where(remembered, size, 1.0),
            p.iterations + 1,
            jnp.where(found, 0, p.stuck + 1),
        )

    ring, zero = jnp.zeros((_MEMORY, *theta.shape), theta.dtype), jnp.int32(0)
    memory = (ring, ring, jnp.zeros(_MEMORY, theta.dtype), jnp.ones((), theta.dtype))
    end = jax.lax.while_loop(unfinished, iterate, _Point(theta, *objective(theta), *diagonal(theta), *memory, zero, zero))
    return Optimum(end.theta, end.loss, _error(end), end.iterations)


def _error(p: _Point) -> jax.Array:
    """`Optimum.error`; each number is divided before it is squared, which f32 may round to zero."""
    return jnp.sqrt(jnp.sum((p.gradient * jnp.sqrt(p.inverse / p.weight)) ** 2))


def _two_loops(p: _Point) -> jax.Array:
    """The inverse Hessian, as L-BFGS knows it, times the gradient; empty places of the ring have zeros and do nothing."""

    def newest_first(i: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, alphas = carry
        at = (p.iterations - 1 - i) % _MEMORY
        alpha = p.products[at] * _dot(p.steps[at], q)
        return q - alpha * p.changes[at], alphas.at[at].set(alpha)

    def oldest_first(i: int, q: jax.Array) -> jax.Array:
        at = (p.iterations + i) % _MEMORY
        beta = p.products[at] * _dot(p.changes[at], q)
        return q + (alphas[at] - beta) * p.steps[at]

    q, alphas = jax.lax.fori_loop(0, _MEMORY, newest_first, (p.gradient, jnp.zeros_like(p.products)))
    result: jax.Array = jax.lax.fori_loop(0, _MEMORY, oldest_first, p.size * p.inverse * q)
    return result


class _Trial(NamedTuple):
    """A line search: it lies between `low`, whose slope goes down, and `high`."""

    length: jax.Array
    low: jax.Array
    low_slope: jax.Array
    high: jax.Array
    high_slope: jax.Array
    theta: jax.Array
    loss: jax.Array
    gradient: jax.Array
    found: jax.Array
    trials: jax.Array


def _line_search(objective: _Objective, p: _Point, direction: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Place on the way where the slope is less than 0.9 of what it was: theta, loss, gradient there, and whether there is such a
    place.

    The objective is convex, so slopes alone lead there. The loss, of whose digits f32 keeps too few near the optimum, only has to
    stay below what it was, up to its rounding (the approximate Wolfe conditions of Hager & Zhang 2005).
    """
    slope = _dot(p.gradient, direction)
    limit = p.loss + 32 * jnp.finfo(p.loss.dtype).eps * jnp.abs(p.loss)

    def searching(t: _Trial) -> jax.Array:
        return ~t.found & (t.trials < _TRIALS)

    def attempt(t: _Trial) -> _Trial:
        theta = p.theta + t.length * direction
        loss, gradient = objective(theta)
        here = _dot(gradient, direction)
        lower = loss <= limit  # false for NaN
        found = lower & (jnp.abs(here) <= 0.9 * jnp.abs(slope))
        too_far = ~lower | (here > 0)
        low, low_slope = jnp.where(too_far, t.low, t.length), jnp.where(too_far, t.low_slope, here)
        high, high_slope = jnp.where(too_far, t.length, t.high), jnp.where(too_far, here, t.high_slope)
        share = low_slope / (low_slope - high_slope)  # of the root of the slope, were it linear
        share = jnp.clip(jnp.where((high_slope > 0) & jnp.isfinite(high_slope), share, 0.5), 0.1, 0.9)
        length = jnp.where(jnp.isinf(high), 4 * t.length, low + share * (high - low))
        return _Trial(length, low, low_slope, high, high_slope, theta, loss, gradient, found, t.trials + 1)

    one = jnp.ones_like(slope)
    trial = _Trial(one, 0 * one, slope, jnp.inf * one, one, p.theta, p.loss, p.gradient, jnp.bool_(False), jnp.int32(0))
    trial = jax.lax.while_loop(searching, attempt, trial)
    return trial.theta, trial.loss, trial.gradient, trial.found
