"""The model as pure functions: under every transformation of JAX it computes what a loaded model does."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from tiny import tiny_config

import jclip
from jclip import CLIP, ConfigError
from jclip.config import Contrastive, MultiView, architecture
from jclip.data import eval_transform, get_tokenizer
from jclip.tree import flatten

NAME = "ViT-tiny-test"
TEXTS = [f"picture {i}" for i in range(8)]


@pytest.fixture(scope="module")
def model() -> CLIP:
    return jclip.create_model(NAME)


@pytest.fixture(scope="module")
def params(model: CLIP) -> Any:
    return jax.jit(model.init)(jax.random.key(3))


def pixels(model: CLIP, count: int = 8) -> np.ndarray:
    tower: Any = model.config.towers["image"]
    return np.random.default_rng(0).integers(0, 256, (count, *tower.size, 3)).astype(np.uint8)


def test_what_load_returns_is_the_same_model_with_parameters(model: CLIP, params: Any) -> None:
    loaded = jclip.load(NAME, seed=3)
    assert isinstance(loaded, CLIP)
    assert (loaded.config, loaded.objectives) == (model.config, model.objectives)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    images = pixels(model)
    np.testing.assert_allclose(model.encode_image(params, images), loaded.embed_image(list(images)), atol=1e-6)
    np.testing.assert_allclose(model.encode_text(params, model.tokenize(TEXTS)), loaded.embed_text(TEXTS), atol=1e-6)


def test_jit_vmap_and_shard_map_change_nothing(model: CLIP, params: Any) -> None:
    images = pixels(model)
    encode = jax.jit(model.encode_image)
    z = encode(params, images)
    assert (z.shape, z.dtype) == ((8, 16), jnp.float32)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1, rtol=1e-6)
    one_by_one = jax.vmap(lambda image: model.encode_image(params, image[None])[0])
    np.testing.assert_allclose(jax.jit(one_by_one)(images), z, atol=1e-6)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    rows, everywhere = PartitionSpec("rows"), PartitionSpec()
    mapped = jax.shard_map(model.encode_image, mesh=mesh, in_specs=(everywhere, rows), out_specs=rows, check_vma=False)
    np.testing.assert_allclose(jax.jit(mapped)(params, images), z, atol=1e-6)
    split = jax.device_put(images, NamedSharding(mesh, rows))
    there = jax.device_put(params, NamedSharding(mesh, everywhere))
    sharded = encode(there, split)
    assert not sharded.sharding.is_fully_replicated
    np.testing.assert_allclose(sharded, z, atol=1e-6)


def test_gradients_reach_parameters_and_pixels(model: CLIP, params: Any) -> None:
    images = pixels(model, 2).astype(np.float32)
    towards = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32))

    @jax.jit
    def score(images: jax.Array, params: Any) -> jax.Array:
        return (model.encode_image(params, model.normalise(images), normalised=True) * towards).sum()

    np.testing.assert_allclose(
        model.encode_image(params, model.normalise(images), normalised=True),
        model.encode_image(params, images.astype(np.uint8)),
        atol=1e-6,
    )
    of_pixels, of_params = jax.grad(score, argnums=(0, 1))(images, params)
    way = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
    slope = (float(score(images + 0.5 * way, params)) - float(score(images - 0.5 * way, params))) / 1.0
    np.testing.assert_allclose(float((of_pixels * way).sum()), slope, rtol=0.02)
    reached = {path for path, leaf in flatten(of_params).items() if np.any(leaf)}
    assert {path.split("/")[0] for path in reached} == {"image", "image_projection"}


def test_logits_are_scaled_cosines_and_siglip_has_a_bias(params: Any) -> None:
    za, zb = (np.random.default_rng(i).normal(size=(n, 16)).astype(np.float32) for i, n in enumerate((3, 5)))
    for loss, scale, bias in (("softmax", 1 / 0.07, 0.0), ("sigmoid", 10.0, -10.0)):
        model = dataclasses.replace(jclip.create_model(NAME), objectives={"image_text": Contrastive(loss=loss)})  # type: ignore[arg-type]
        own = jax.jit(model.init)(jax.random.key(0))
        expected = scale * za.astype(np.float64) @ zb.T.astype(np.float64) + bias
        np.testing.assert_allclose(model.logits(own, jnp.asarray(za), jnp.asarray(zb)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="logits: give the pair, one of image_text"):
        model.logits(own, za, zb, pair="image_depth")


def test_inputs_are_made_as_towers_want_them(model: CLIP) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8))
    np.testing.assert_array_equal(model.preprocess(image), eval_transform(model.config.towers["image"])(image))
    tower: Any = model.config.towers["text"]
    np.testing.assert_array_equal(model.tokenize(TEXTS), get_tokenizer(tower.tokenizer)(TEXTS, tower.context_length))
    assert model.tokenize("one").shape == (1, tower.context_length)


def test_training_drops_by_key_and_row_and_all_outputs_are_there(params: Any) -> None:
    model = jclip.create_model(tiny_config())  # whose image tower drops patches
    own = jax.jit(model.init)(jax.random.key(0))
    batch = {"image": pixels(model)}
    apply = jax.jit(model.apply, static_argnames="train")
    first, again, other = (apply(own, batch, train=True, key=jax.random.key(i))["image"].z for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    whole = apply(own, batch)["image"]
    assert not np.allclose(first, whole.z)
    assert whole.output.tokens.shape[:2] == whole.output.mask.shape
    assert whole.output.pooled.shape == (8, 32)
    with pytest.raises(ConfigError, match="training needs a key"):
        model.apply(own, batch, train=True)
    with pytest.raises(ConfigError, match="there is no tower 'sound'; towers: image, text"):
        model.apply(own, {"sound": batch["image"]})


def test_a_run_says_its_scales_and_captioners() -> None:
    pairs, more = Contrastive(loss="sigmoid", logit_bias=-3.0), MultiView(("image", "image@2"), ("text",))
    config = tiny_config(objectives={"pairs": pairs, "more": more})
    model = jclip.create_model(config)
    assert model.objectives == {"image_text": pairs}
    assert float(model.init(jax.random.key(0))["image_text"]["logit_bias"]) == -3.0  # type: ignore[index, arg-type]
    alone = jclip.create_model(dataclasses.replace(architecture(NAME), towers={"image": architecture(NAME).towers["image"]}))
    assert (alone.objectives, set(alone.init(jax.random.key(0)))) == ({}, {"image", "image_projection"})
    with pytest.raises(ConfigError, match="no tower for texts"):
        alone.tokenize("a")
