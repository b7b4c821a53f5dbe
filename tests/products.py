"""Matrix products and convolutions of a traced program, counted."""

import math

from jax import extend as jex


def multiply_adds(jaxpr: jex.core.Jaxpr, times: int = 1) -> int:
    """Multiply-adds of all matrix products and convolutions, of a loop as often as it runs, of a device for all 8 devices."""
    total = 0
    for equation in jaxpr.eqns:
        often = times
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += times * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        if equation.primitive.name == "conv_general_dilated":  # kernel [height, width, in, out]
            total += times * math.prod(equation.outvars[0].aval.shape) * math.prod(equation.invars[1].aval.shape[:3])
        if equation.primitive.name == "scan":
            often *= equation.params["length"]
        if equation.primitive.name == "shard_map":
            often *= 8
        total += sum(multiply_adds(inner, often) for inner in jex.core.jaxprs_in_params(equation.params))
    return total
