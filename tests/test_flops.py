"""The operations counted by hand are those of the traced program."""

import dataclasses

import jax
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from products import multiply_adds
from tiny import tiny_config

from jclip.config import Config, Mesh, Optim, architecture
from jclip.models import example_inputs
from jclip.sharding import make_mesh
from jclip.step import make_loss_and_grads, param_shapes, step_flops


def config_of(**vision: object) -> Config:
    """Of towers that are wide beside the work that is not counted: the gradient of the patches' pixels is never computed."""
    model = architecture("ViT-tiny-test")
    image, text = (dataclasses.replace(model.towers[name], width=64, depth=3) for name in ("image", "text"))
    towers = {"image": dataclasses.replace(image, **vision), "text": text}
    return tiny_config(model=dataclasses.replace(model, towers=towers), batch_size=64)


@pytest.mark.parametrize("vision", [{}, {"patch_dropout": 0.5}, {"pool": "map"}, {"stem": (8, 128)}], ids=str)
@pytest.mark.parametrize("scan", [False, True])
def test_operations_of_a_step_are_those_of_its_program(vision: dict[str, object], scan: bool) -> None:
    config = config_of(**vision)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan=scan))
    assert operations(config) == pytest.approx(step_flops(config), rel=0.02)


def test_a_locked_tower_goes_forward_only() -> None:
    config = config_of()
    locked = dataclasses.replace(config, optim=Optim(lr_rules=(("image.*/.*", 0.0), (".*", 1.0))))
    assert operations(locked) == pytest.approx(step_flops(config, ["image"]), rel=0.02)
    assert operations(locked) < 0.8 * operations(config)


def operations(config: Config) -> int:
    """Of loss and gradients as they are traced, without what nothing asks for."""
    batch = {name: jax.ShapeDtypeStruct(*like) for name, like in example_inputs(config.model, config.batch_size).items()}
    loss_and_grads = make_loss_and_grads(config, make_mesh(Mesh()))
    traced = jax.make_jaxpr(loss_and_grads)(param_shapes(config), batch, jax.eval_shape(jax.random.key, 0))
    needed, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return 2 * multiply_adds(needed)
