"""The operations counted by hand are those of the traced program."""

import dataclasses

import jax
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from products import multiply_adds
from tiny import tiny_config

from jclip.config import Config, ConfigError, Contrastive, MeshConfig, Model, Optim, TextTower, VisionTower, architecture
from jclip.models import example_inputs, output_tokens, tower_flops
from jclip.operations import step_flops
from jclip.sharding import make_mesh
from jclip.state import param_shapes
from jclip.step import make_loss_and_grads


def config_of(**vision: object) -> Config:
    """Configuration whose towers are wide beside the work that is not counted: no gradient of the pixels is computed."""
    model = architecture("ViT-tiny-test")
    image, text = (dataclasses.replace(model.towers[name], width=64, depth=3) for name in ("image", "text"))
    towers = {"image": dataclasses.replace(image, **vision), "text": text}
    return tiny_config(model=dataclasses.replace(model, towers=towers), batch_size=64)


LOOP = pytest.param(True, marks=pytest.mark.exhaustive)  # by hand: below


@pytest.mark.parametrize("vision", [{}, {"patch_dropout": 0.5}, {"pool": "map"}, {"stem": (8, 128)}], ids=str)
@pytest.mark.parametrize("scan", [False, LOOP])
def test_operations_of_a_step_are_those_of_its_program(vision: dict[str, object], scan: bool) -> None:
    config = config_of(**vision)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan=scan))
    assert operations(config) == pytest.approx(step_flops(config), rel=0.02)


def test_a_locked_tower_goes_forward_only() -> None:
    config = config_of()
    locked = dataclasses.replace(config, optim=Optim(lr_rules=(("image.*/.*", 0.0), (".*", 1.0))))
    assert operations(locked) == pytest.approx(step_flops(config, ["image"]), rel=0.02)
    assert operations(locked) < 0.8 * operations(config)


def product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def blocks_by_hand(length: int, width: int, depth: int, heads: int) -> int:
    """Four projections, the two layers of the MLP, and for each head the logits and the weighted values."""
    dense = 4 * product(length, width, width) + product(length, width, 4 * width) + product(length, 4 * width, width)
    attention = heads * (product(length, width // heads, length) + product(length, length, width // heads))
    return depth * (dense + attention)


def test_operations_are_the_products_of_the_layers_counted_one_by_one() -> None:
    """Attention is most of the work here: 1,025 tokens of 16 numbers."""
    image = VisionTower(image_size=128, patch_size=4, width=16, depth=3, heads=2)
    text = TextTower(context_length=40, width=24, depth=2, heads=3)
    forward = {
        "image": product(32 * 32, 4 * 4 * 3, 16) + blocks_by_hand(32 * 32 + 1, 16, 3, 2),
        "text": blocks_by_hand(40, 24, 2, 3),
    }
    assert tower_flops(image) == forward["image"]
    assert tower_flops(text) == forward["text"]
    objectives = {"one": Contrastive(), "other": Contrastive(a="text", b="image", loss="sigmoid")}
    model = Model({"image": image, "text": text}, embed_dim=8, scan=True)
    config = tiny_config(model=model, objectives=objectives, batch_size=32)
    towers = forward["image"] + product(1, 16, 8) + forward["text"] + product(1, 24, 8)
    loss = 8 * 32 * 32 * 8  # 4 B^2 E multiply-adds, for each pair
    assert step_flops(config) == 32 * 3 * towers + 2 * loss
    assert step_flops(config, ["text"]) == 32 * (3 * towers - 2 * (forward["text"] + product(1, 24, 8))) + 2 * loss


def test_a_tower_of_an_unknown_kind_says_which_row_is_missing() -> None:
    class Unheard(TextTower):
        pass

    with pytest.raises(ConfigError, match=r"Unheard has no row in jclip.models.TOWERS; add TOWERS\[Unheard\]"):
        tower_flops(Unheard())
    with pytest.raises(ConfigError, match="Unheard"):
        output_tokens(Unheard())


def operations(config: Config) -> int:
    """Operations of loss and gradients as they are traced, without what nothing asks for."""
    batch = {name: jax.ShapeDtypeStruct(*like) for name, like in example_inputs(config.model, config.batch_size).items()}
    loss_and_grads = make_loss_and_grads(config, make_mesh(MeshConfig()))
    traced = jax.make_jaxpr(loss_and_grads)(param_shapes(config), batch, jax.eval_shape(jax.random.key, 0))
    needed, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return 2 * multiply_adds(needed)
