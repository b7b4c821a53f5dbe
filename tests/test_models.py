"""The towers against an independent f64 implementation, and what must not change them."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jclip.config import Config, Model, ResNetTower, TextTower, VisionTower, architecture, check_model
from jclip.models import MultiTower, TextTransformer, VisionTransformer, example_inputs
from jclip.models.compute import Compute
from jclip.models.resnet import ModifiedResNet
from jclip.models.vit import drop_patches, kept_patches, sincos_positions
from jclip.state import param_shapes
from jclip.tree import flatten

VISION = VisionTower(image_size=24, patch_size=8, width=24, depth=2, heads=3)
TEXT = TextTower(context_length=9, width=24, depth=2, heads=3)


def params_like(init: Any, *inputs: Any) -> Any:
    """Random parameters for a module: none is 0 or 1, so that every one of them matters."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0), *inputs)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [(rng.normal(size=x.shape) * 0.2 + 0.05).astype(np.float32) for x in leaves])


def as_f64(params: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 24, 24, 3)).astype(np.uint8)


def texts(count: int = 3) -> np.ndarray:
    ids = np.zeros((count, 9), np.int32)
    for row, length in enumerate(range(2, 2 + count)):
        ids[row, :length] = np.random.default_rng(row).integers(1, 49000, length)
        ids[row, 0], ids[row, length] = 49406, 49407
    return ids


VISION_OPTIONS = [
    {"pool": "cls", "activation": "gelu", "positions": "learned", "pre_norm": True},
    {"pool": "avg", "activation": "gelu", "positions": "sincos", "pre_norm": False},
    {"pool": "map", "activation": "gelu", "positions": "learned", "pre_norm": False},
    {"pool": "cls", "activation": "gelu_tanh", "positions": "sincos", "pre_norm": False},
    {"pool": "avg", "activation": "quick_gelu", "positions": "learned", "pre_norm": True},
    {"pool": "map", "activation": "quick_gelu", "positions": "sincos", "pre_norm": True},
    {"pool": "avg", "activation": "gelu", "positions": "sincos", "stem": (5, 7)},
    {"pool": "cls", "activation": "quick_gelu", "positions": "learned", "stem": (4, 5, 6)},
]


@pytest.mark.parametrize("options", VISION_OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_vision_tower_equals_the_reference(options: dict[str, Any]) -> None:
    config = dataclasses.replace(VISION, **options)
    tower = VisionTransformer(config)
    params = params_like(tower.init, images())
    output = jax.jit(tower.apply)({"params": params}, images())
    for i, image in enumerate(images()):
        pooled, tokens = reference.vision(as_f64(params), image, config)
        np.testing.assert_allclose(output.pooled[i], pooled, atol=1e-5)
        np.testing.assert_allclose(output.tokens[i], tokens, atol=1e-5)
    assert output.mask.all()


RECTANGLES = [
    {"image_size": (16, 40)},
    {"image_size": (40, 16), "pool": "avg", "positions": "sincos", "pre_norm": False},
    {"image_size": (21, 47), "pool": "map", "crop": True},
    {"image_size": (24, 8), "pool": "map", "positions": "sincos", "stem": (4, 5)},
]


def pictures(config: VisionTower | ResNetTower, count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *config.size, 3)).astype(np.uint8)


@pytest.mark.parametrize("options", RECTANGLES, ids=lambda options: "-".join(map(str, options.values())))
def test_images_that_are_not_square_equal_the_reference(options: dict[str, Any]) -> None:
    config = dataclasses.replace(VISION, **options)
    check_model(Model({"image": config}, embed_dim=8))
    tower, x = VisionTransformer(config), pictures(config)
    params = params_like(tower.init, x)
    output = jax.jit(tower.apply)({"params": params}, x)
    assert output.tokens.shape[1] == config.grid[0] * config.grid[1] + (config.pool == "cls")
    for i, image in enumerate(x):
        pooled, tokens = reference.vision(as_f64(params), image, config)
        np.testing.assert_allclose(output.pooled[i], pooled, atol=1e-5)
        np.testing.assert_allclose(output.tokens[i], tokens, atol=1e-5)


def test_a_resnet_of_turned_images_with_turned_weights_computes_the_same() -> None:
    """Rows for columns in images, kernels and positions: the sum over places has other names, and the same terms."""
    wide = ResNetTower((64, 96), (1, 1, 2, 1), stem_width=4, heads=2)
    high = dataclasses.replace(wide, image_size=(96, 64))
    x = pictures(wide)
    params = params_like(ModifiedResNet(wide).init, x)
    turned = jax.tree.map(lambda x: x.swapaxes(0, 1) if x.ndim == 4 else x, params)
    positions = params["pool"]["pos_embed"]
    of_places = positions[1:].reshape(*wide.grid, -1).swapaxes(0, 1).reshape(positions[1:].shape)
    turned["pool"]["pos_embed"] = np.concatenate([positions[:1], of_places])
    assert (params["pool"]["pos_embed"] != turned["pool"]["pos_embed"]).any()
    expected = ModifiedResNet(wide).apply({"params": params}, x)
    output = ModifiedResNet(high).apply({"params": turned}, x.swapaxes(1, 2))
    scale = np.abs(expected.pooled).max()
    np.testing.assert_allclose(output.pooled / scale, expected.pooled / scale, atol=1e-5)
    assert output.tokens.shape == (2, 6, wide.width)


def test_fixed_positions_are_sines_and_cosines_of_column_and_row() -> None:
    table = np.asarray(sincos_positions(2, 3, 8), np.float64).reshape(2, 3, 8)
    for row in range(2):
        for column in range(3):
            angles = (column, column / 10_000, row, row / 10_000)
            expected = [f(angle) for pair in (angles[:2], angles[2:]) for f in (math.sin, math.cos) for angle in pair]
            np.testing.assert_allclose(table[row, column], expected, atol=1e-6)


def test_patches_are_dropped_of_the_whole_grid() -> None:
    config = dataclasses.replace(VISION, image_size=(16, 40), patch_dropout=0.5)
    assert kept_patches(config) == 5


TEXT_OPTIONS = [("eot", True, False), ("last", False, False), ("first", False, True), ("mean", True, True), ("map", False, True)]
TEXT_OPTIONS += [("eot", False, True), ("mean", False, False), ("map", True, False)]


@pytest.mark.parametrize(("pool", "causal", "mask_padding"), TEXT_OPTIONS)
def test_text_tower_equals_the_reference(pool: Any, causal: bool, mask_padding: bool) -> None:
    config = dataclasses.replace(TEXT, pool=pool, causal=causal, mask_padding=mask_padding)
    tower = TextTransformer(config)
    params = params_like(tower.init, texts())
    output = jax.jit(tower.apply)({"params": params}, texts())
    for i, ids in enumerate(texts()):
        pooled, tokens = reference.text(as_f64(params), ids, config)
        np.testing.assert_allclose(output.pooled[i], pooled, atol=1e-5)
        np.testing.assert_allclose(output.tokens[i], tokens, atol=1e-5)
    np.testing.assert_array_equal(output.mask, texts() > 0)


def test_text_tower_takes_embeddings_with_an_end_of_text_index() -> None:
    tower = TextTransformer(TEXT)
    params = params_like(tower.init, texts())
    apply = jax.jit(tower.apply)
    by_ids = apply({"params": params}, texts())
    by_embeddings = apply({"params": params}, params["token_embed"][texts()], eot=jnp.argmax(texts(), axis=1))
    jax.tree.map(np.testing.assert_array_equal, by_ids, by_embeddings)
    with pytest.raises(ValueError, match="embeddings need eot"):
        tower.apply({"params": params}, params["token_embed"][texts()])


def test_wrong_input_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not \[b, 24, 24, 3\]"):
        VisionTransformer(VISION).init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"shape \(1, 40, 16, 3\) is not \[b, 16, 40, 3\]"):
        VisionTransformer(dataclasses.replace(VISION, image_size=(16, 40))).init(
            jax.random.key(0), np.zeros((1, 40, 16, 3), np.uint8)
        )
    with pytest.raises(ValueError, match="length 8 is not context_length 9"):
        TextTransformer(TEXT).init(jax.random.key(0), np.zeros((1, 8), np.int32))


def inputs(model: Model, count: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = example_inputs(model, count)
    return {name: rng.integers(0, 256, shape).astype(dtype) for name, (shape, dtype) in shapes.items()}


def initial(model: Model) -> Any:
    return params_like(MultiTower(model).init, inputs(model, 1))


@pytest.mark.parametrize("pool", ["cls", "eot", "last"])
def test_scan_and_remat_do_not_change_gradients(pool: Any) -> None:
    """Unrolled, the pooled token of the last block is computed apart; in a loop it is one of all tokens."""
    config, x = (VISION, images()) if pool == "cls" else (dataclasses.replace(TEXT, pool=pool), texts())
    make: Any = VisionTransformer if pool == "cls" else TextTransformer
    params = params_like(make(config).init, x)

    def value_and_gradients(scan: bool, remat: str) -> tuple[Any, Any]:
        tower = make(config, Compute(scan=scan, remat=remat))
        return jax.jit(jax.value_and_grad(lambda params: jnp.sum(tower.apply({"params": params}, x).pooled ** 3)))(params)

    value, gradients = value_and_gradients(False, "none")
    for scan, remat in ((True, "none"), (False, "nothing_saveable"), (True, "dots_with_no_batch_dims_saveable")):
        other_value, other_gradients = value_and_gradients(scan, remat)
        np.testing.assert_allclose(value, other_value, rtol=1e-5)
        for want, got in zip(*map(jax.tree.leaves, (gradients, other_gradients)), strict=True):
            np.testing.assert_allclose(want, got, atol=2e-5 * max(1, np.abs(want).max()))


def test_scan_does_not_change_what_dropout_drops() -> None:
    config = dataclasses.replace(TEXT, dropout=0.5)
    params = params_like(TextTransformer(config).init, texts())
    looped, unrolled = (
        jax.jit(partial(TextTransformer(config, Compute(scan=scan)).apply, rngs={"dropout": jax.random.key(0)}))(
            {"params": params}, texts(), rows=jnp.arange(3)
        )
        for scan in (True, False)
    )
    np.testing.assert_allclose(unrolled.pooled, looped.pooled, atol=1e-5)


def test_who_asks_for_the_pooled_token_alone_does_not_pay_for_the_others() -> None:
    """Operations of the last block, counted by XLA; an MLP of eight widths makes it most of the work."""
    config = dataclasses.replace(VISION, depth=1, mlp_ratio=8.0)
    tower = VisionTransformer(config)
    params = jax.eval_shape(tower.init, jax.random.key(0), images())

    def flops(what: Any) -> float:
        compiled = jax.jit(lambda params, x: what(tower.apply(params, x))).lower(params, images()).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(lambda output: output.pooled) < 0.5 * flops(lambda output: output.tokens)
    assert flops(lambda output: output) < 1.2 * flops(lambda output: output.tokens)


def test_scan_loops_over_one_block_and_unrolling_does_not() -> None:
    def program(scan: bool) -> str:
        tower = VisionTransformer(VISION, Compute(scan=scan))
        params = jax.eval_shape(tower.init, jax.random.key(0), images())
        return jax.jit(tower.apply).lower(params, images()).as_text()

    assert "while" in program(scan=True)
    assert "while" not in program(scan=False)


def test_bfloat16_is_near_float32_and_embeddings_stay_float32() -> None:
    batch = {"image": images(4)}
    model = Model(towers={"image": VISION, "text": TEXT}, embed_dim=16)
    params = initial(model)
    exact, rounded = (
        jax.jit(MultiTower(dataclasses.replace(model, dtype=dtype)).apply)({"params": params}, batch)["image"]
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.output.tokens.dtype == jnp.bfloat16
    assert rounded.z.dtype == jnp.float32
    np.testing.assert_allclose(rounded.z, exact.z, atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(rounded.z, axis=1), 1, rtol=1e-6)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_patch_dropout_keeps_an_integer_number_of_patches_in_training_only() -> None:
    config = dataclasses.replace(VISION, patch_dropout=0.5)
    assert kept_patches(config) == 4  # of 9: 4.5 rounded down
    tower = VisionTransformer(config)
    params = params_like(tower.init, images())
    train = jax.jit(lambda key: tower.apply({"params": params}, images(), rows=jnp.arange(2), rngs={"dropout": key}))
    one, other = train(jax.random.key(1)), train(jax.random.key(2))
    assert one.tokens.shape == (2, 5, 24)  # and the class token
    assert not np.allclose(one.pooled, other.pooled)
    assert jax.jit(tower.apply)({"params": params}, images()).tokens.shape == (2, 10, 24)


def test_dropped_patches_are_a_random_subset_without_repeats() -> None:
    x = jnp.broadcast_to(jnp.arange(16.0)[None, :, None], (500, 16, 1))
    kept = np.asarray(drop_patches(jax.random.key(0), jnp.arange(500), x, 4))[:, :, 0]
    assert all(len(set(row)) == 4 for row in kept.tolist())
    counts = np.bincount(kept.astype(int).ravel(), minlength=16)
    assert counts.min() > 80  # each patch in a quarter of 500
    assert counts.max() < 170


# Parameters as published: OpenAI's checkpoints, and the table of model profiles of OpenCLIP (millions, two decimals).
PUBLISHED = {
    "ViT-B-32": 151_277_313,
    "ViT-B-16": 149_620_737,
    "ViT-L-14": 427_616_513,
    "ViT-L-14-336": 427_944_193,
    "ViT-H-14": 986.11e6,
    "ViT-g-14": 1366.68e6,
    "ViT-bigG-14": 2539.57e6,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_architectures_have_the_published_number_of_parameters(name: str) -> None:
    shapes = param_shapes(Config(model=architecture(name)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    want = PUBLISHED[name]
    assert count == want if isinstance(want, int) else abs(count - want) <= 0.005e6 + 1


def test_parameter_paths_are_the_documented_ones() -> None:
    paths = set(flatten(param_shapes(Config(model=architecture("ViT-tiny-test")))))
    assert {
        "image_text/logit_scale",
        "image_projection/kernel",
        "text_projection/kernel",
        "image/patch_embed/kernel",
        "image/cls",
        "image/pos_embed",
        "image/norm_pre/scale",
        "image/blocks/norm1/scale",
        "image/blocks/attn/q/kernel",
        "image/blocks/attn/out/bias",
        "image/blocks/mlp/fc1/kernel",
        "image/norm/bias",
        "text/token_embed",
        "text/pos_embed",
        "text/blocks/mlp/fc2/bias",
    } <= paths


def test_any_number_of_named_towers_share_one_space() -> None:
    towers = {"photo": VISION, "sketch": dataclasses.replace(VISION, width=48), "caption": TEXT}
    model = MultiTower(Model(towers=towers, embed_dim=8))
    batch = {"photo": images(), "sketch": images(), "caption": texts(2)}
    params = params_like(model.init, batch)
    encoded = jax.jit(model.apply)({"params": params}, {"caption": texts(2), "sketch": images()})
    assert {name: e.z.shape for name, e in encoded.items()} == {"caption": (2, 8), "sketch": (2, 8)}
