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
        if equation.primitive.name == "conv_general_dilated":
            kernel, (_, *summed) = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            zeros = math.prod(equation.params["lhs_dilation"])  # of a gradient with stride: only one in so many is multiplied
            total += times * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[axis] for axis in summed) // zeros
        if equation.primitive.name == "scan":
            often *= equation.params["length"]
        if equation.primitive.name == "shard_map":
            often *= 8
        total += sum(multiply_adds(inner, often) for inner in jex.core.jaxprs_in_params(equation.params))
    return total
