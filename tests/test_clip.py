"""The model as pure functions: under every transformation of JAX it computes what a loaded model does."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from tiny import tiny_config

import jclip
from jclip import CLIP, BadExample, ConfigError, WeightsError
from jclip.config import Contrastive, MultiView, architecture, replace
from jclip.data import eval_transform, get_tokenizer
from jclip.models import Backend, attention_tpu
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


def test_logits_of_a_model_with_several_pairs_are_those_of_the_pair_that_is_named(model: CLIP) -> None:
    several = dataclasses.replace(
        model, objectives={"image_text": Contrastive(), "image_depth": Contrastive("image", "depth", "sigmoid")}
    )
    own: Any = {
        "image_text": {"logit_scale": jnp.log(2.0)},
        "image_depth": {"logit_scale": jnp.log(3.0), "logit_bias": jnp.float32(-1.0)},
    }
    za, zb = jnp.eye(2), jnp.ones((3, 2))
    np.testing.assert_allclose(several.logits(own, za, zb, pair="image_text"), np.full((2, 3), 2.0), rtol=1e-6)
    np.testing.assert_allclose(several.logits(own, za, zb, pair="image_depth"), np.full((2, 3), 2.0), rtol=1e-6)
    assert float(several.logit_scale(own, pair="image_depth")) == pytest.approx(3.0)
    with pytest.raises(ConfigError, match="logits: give the pair, one of image_text, image_depth"):
        several.logits(own, za, zb)


def test_inputs_are_made_as_towers_want_them(model: CLIP) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8))
    np.testing.assert_array_equal(model.preprocess(image), eval_transform(model.config.towers["image"])(image))
    tower: Any = model.config.towers["text"]
    np.testing.assert_array_equal(model.tokenize(TEXTS), get_tokenizer(tower.tokenizer)(TEXTS, tower.context_length))
    assert model.tokenize("one").shape == (1, tower.context_length)
    np.testing.assert_array_equal(model.preprocess(image, max_pixels=1200), model.preprocess(image))
    with pytest.raises(BadExample, match="30 x 40 pixels, more than 1199"):
        model.preprocess(image, max_pixels=1199)


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


def test_in_training_a_text_is_the_same_as_its_embeddings() -> None:
    """The embeddings and their ends are a tuple of arrays, whose rows are those of the batch."""
    model = jclip.create_model(replace(architecture(NAME), "towers.text.dropout", 0.3))
    own: Any = jax.jit(model.init)(jax.random.key(0))
    ids = model.tokenize(TEXTS)
    embedded = own["text"]["token_embed"][ids], jnp.argmax(jnp.asarray(ids), axis=1)
    apply = jax.jit(partial(model.apply, train=True, key=jax.random.key(1)))
    expected = apply(own, {"text": ids})["text"].z
    np.testing.assert_allclose(apply(own, {"text": embedded})["text"].z, expected, atol=1e-6)
    assert not np.allclose(expected, model.encode_text(own, ids))


def test_in_training_all_inputs_have_as_many_rows(model: CLIP, params: Any) -> None:
    batch, texts = {"image": pixels(model)}, model.tokenize(TEXTS[:3])
    train = partial(model.apply, train=True, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"as many rows of each input.* got image \(8, 16, 16, 3\); text \(3, \d+\)"):
        train(params, {**batch, "text": texts})
    with pytest.raises(ValueError, match=r"got text \(3, 4, 32\) and \(2,\)"):
        train(params, {"text": (np.zeros((3, 4, 32), np.float32), np.zeros(2, np.int32))})
    for nothing in ({}, {"image": np.float32(0)}):
        with pytest.raises(ValueError, match="as many rows of each input"):
            train(params, nothing)
    assert jax.eval_shape(model.apply, params, {**batch, "text": texts})["text"].z.shape == (3, 16)


def test_a_model_made_on_a_mesh_computes_the_same_and_tells_kernels_their_rows(
    params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    small = replace(architecture(NAME), "dtype", "bfloat16")
    alone, split = jclip.create_model(small), jclip.create_model(small, mesh=mesh)
    images = jax.device_put(pixels(alone), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    there = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    z = jax.jit(alone.encode_image)(there, images)
    np.testing.assert_allclose(jax.jit(split.encode_image)(there, images), z, atol=1e-6)

    rows: list[int] = []

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None, *, causal: bool) -> jax.Array:
        rows.append(len(q))
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, key_value_seq_lengths=lengths)

    monkeypatch.setattr(Backend, "of", lambda mesh, attention: Backend("tpu", attention == "auto", mesh))
    monkeypatch.setattr(attention_tpu, "attend", kernel)
    monkeypatch.setattr(attention_tpu, "fits", lambda q: True)
    for model in (jclip.create_model(small), jclip.create_model(small, mesh=mesh)):
        np.testing.assert_allclose(jax.jit(model.encode_image)(there, images), z, atol=0.02)
        assert set(rows) == (set() if model.mesh is None else {1})


def test_sizes_of_images_and_texts_are_what_is_asked_for() -> None:
    for whole in (NAME, architecture(NAME), tiny_config()):
        model = jclip.create_model(whole, image_size=(32, 16), context_length=12)
        own: Any = jax.eval_shape(model.init, jax.random.key(0))
        assert own["image"]["pos_embed"].shape == (1 + 8, 32)
        assert model.tokenize("one").shape == (1, 12)
        assert model.preprocess(np.zeros((50, 50, 3), np.uint8)).shape == (32, 16, 3)
        made = jax.eval_shape(model.apply, own, {"image": pixels(model, 2), "text": model.tokenize(TEXTS[:2])})
        assert made["image"].z.shape == made["text"].z.shape == (2, 16)
    with pytest.raises(ConfigError, match="image_size 36 is not divisible by patch_size 8; use 32 or 40"):
        jclip.create_model(NAME, image_size=36)
    with pytest.raises(ConfigError, match="context_length 1 "):
        jclip.create_model(NAME, context_length=1)


def test_an_architecture_takes_the_vocabulary_that_it_leaves_out(tmp_path: Path) -> None:
    file = Path(__file__).parent / "data" / "golden" / "tokenizers" / "t5.model"
    model = jclip.create_model("ViT-B-16-SigLIP", tokenizer=file)
    tower: Any = model.config.towers["text"]
    expected = dataclasses.replace(tower.tokenizer, file=str(file))
    np.testing.assert_array_equal(model.tokenize(TEXTS), get_tokenizer(expected)(TEXTS, 64))
    assert model.objectives == {"image_text": Contrastive(loss="sigmoid")}
    with pytest.raises(WeightsError, match="does not bring the vocabulary of its texts"):
        jclip.create_model("ViT-B-16-SigLIP")
    with pytest.raises(WeightsError, match=r"none\.model"):
        jclip.create_model("ViT-B-16-SigLIP", tokenizer=tmp_path / "none.model")
    with pytest.raises(WeightsError, match="has CLIP's own tokenizer"):
        jclip.create_model(NAME, tokenizer=file)
    for whole in (architecture(NAME), tiny_config()):
        with pytest.raises(ConfigError, match="towers say their tokenizer themselves"):
            jclip.create_model(whole, tokenizer=file)


def test_what_is_no_array_is_refused_with_the_way_to_one() -> None:
    model = jclip.create_model("ViT-tiny-test")
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(TypeError, match="encode: text is given a str and needs an array; give it what `tokenize` makes of texts"):
        model.encode_text(params, "a cat")
    with pytest.raises(TypeError, match="image is given a list of str and needs an array; stack what `preprocess` gives"):
        model.encode_image(params, ["a.jpg"])
