"""The cross-entropy of captions against its formula in f64, on every mesh, and what an objective Caption is and is not."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_losses import make_mesh
from tiny import tiny_config

from jclip.config import Caption, Config, ConfigError, Contrastive, MeshConfig, TextTower, TokenizerConfig, check
from jclip.data import make_run_loader
from jclip.losses import word_cross_entropy
from jclip.operations import step_flops
from jclip.program import make_program
from jclip.sharding import make_mesh as make_device_mesh
from jclip.sharding import to_global
from jclip.step import make_loss_and_grads
from jclip.tree import flatten

MESHES = [None, (1, 1), (8, 1), (2, 4)]


def drawn(batch: int, length: int, width: int, size: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    features, vocabulary = rng.normal(size=(batch, length, width)), rng.normal(size=(width, size))
    targets = rng.integers(0, size, (batch, length)).astype(np.int32)
    real = np.arange(length)[None] < rng.integers(0, length + 1, (batch, 1))
    real[0], real[1] = False, True
    return features.astype(np.float32), vocabulary.astype(np.float32), targets, real


def by_hand(arrays: tuple[np.ndarray, ...], weights: np.ndarray, smoothing: float) -> tuple[np.ndarray, ...]:
    """The loss of each caption, the gradients of their weighted sum by features and vocabulary, and the shares told right."""
    features, vocabulary = (x.astype(np.float64) for x in arrays[:2])
    targets, real = arrays[2:]
    logits = features @ vocabulary
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    wanted = np.full(p.shape, smoothing / p.shape[2])
    np.put_along_axis(wanted, targets[:, :, None], smoothing / p.shape[2] + 1 - smoothing, axis=2)
    share = real / np.maximum(real.sum(axis=1, keepdims=True), 1)
    loss = (-(wanted * np.log(p)).sum(axis=2) * share).sum(axis=1)
    slopes = (p - wanted) * (share * weights[:, None])[:, :, None]
    right = ((logits.argmax(axis=2) == targets) * share).sum(axis=1)
    return loss, slopes @ vocabulary.T, np.einsum("bld,blv->dv", features, slopes), right


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_value_and_gradients_are_those_of_the_formula_on_every_mesh(mesh: tuple[int, int] | None, smoothing: float) -> None:
    """Eleven positions in blocks of four; one caption without a token, one that fills all."""
    arrays = drawn(8, 11, 5, 13)
    weights = np.linspace(0.5, 2, 8)
    where: Any = {} if mesh is None else {"mesh": make_mesh(*mesh), "axes": ("data", "fsdp")}

    def total(features: Any, vocabulary: Any) -> Any:
        loss, right = word_cross_entropy(features, vocabulary, *arrays[2:], label_smoothing=smoothing, block=4, **where)
        return loss @ jnp.asarray(weights, jnp.float32), (loss, right)

    (_, (loss, right)), slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(*arrays[:2])
    want, *want_slopes, want_right = by_hand(arrays, weights, smoothing)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(right, want_right, rtol=1e-6)
    for slope, expected in zip(slopes, want_slopes, strict=True):
        np.testing.assert_allclose(slope, expected, atol=1e-5 * np.abs(expected).max())
    assert loss[0] == 0


def test_the_result_does_not_depend_on_the_block_and_equal_logits_cost_ln_v() -> None:
    arrays = drawn(3, 7, 5, 13)
    losses = [word_cross_entropy(*arrays, block=block)[0] for block in (1, 3, 7, 50)]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=1e-6)
    nothing = word_cross_entropy(jnp.zeros((3, 7, 5)), *arrays[1:], block=4)[0]
    np.testing.assert_allclose(nothing[1:], np.log(13), rtol=1e-6)


def test_of_the_logits_a_block_is_in_memory_and_no_more() -> None:
    """Logits of 16 captions of 64 tokens over 8,192 words would be 32 MiB whole, and their gradient as much."""
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((16, 64, 8), (8, 8192))]
    rest = (np.zeros((16, 64), np.int32), np.ones((16, 64), bool))
    temporaries = []
    for block in (2, 64):
        loss = jax.grad(lambda x, w, block=block: word_cross_entropy(x, w, *rest, block=block)[0].sum(), argnums=(0, 1))
        temporaries.append(jax.jit(loss).lower(*shapes).compile().memory_analysis().temp_size_in_bytes)
    assert temporaries[0] < 6 * 16 * 2 * 8192 * 4
    assert temporaries[1] > 16 * 64 * 8192 * 4


def small(**changes: Any) -> Config:
    """One block a tower, and captions."""
    one = {"model.towers.image.depth": 1, "model.towers.text.depth": 1, "model.towers.image.patch_dropout": 0.0}
    objectives = {"image_text": Contrastive(), "caption": Caption(depth=1)}
    return tiny_config(objectives=objectives, evals={}, **{"checkpoint.best": None}, **one, **changes)


WORDS = TokenizerConfig("hugging_face", str(Path(__file__).parents[1] / "configs/coca_words.json"), bos_id=1, eos_id=2)
SHAPES = {"context_length": 24, "vocab_size": 64, "eot_id": 2, "tokenizer": WORDS}


@pytest.mark.slow
def test_a_caption_is_predicted_from_its_image_and_not_from_padding() -> None:
    """After a short training the captions of other images cost more; what stands behind the end of a text changes nothing."""
    data = {"data.source": "shapes:train?size=16&length=16&captions=complete", "data.augment.scale": (1.0, 1.0)}
    config = small(**{f"model.towers.text.{name}": value for name, value in SHAPES.items()}, **data)
    mesh = make_device_mesh(MeshConfig(1, 1), jax.devices()[:1])
    params = make_program(config, mesh, warmup_steps=1, total_steps=2).init().params
    loss_and_grads, adam = jax.jit(make_loss_and_grads(config, mesh)), optax.adam(1e-2)
    with make_run_loader(config) as loader:
        batch = next(loader).arrays

    @jax.jit
    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = adam.update(grads, state)
        return optax.apply_updates(params, updates), state

    def loss_of(params: Any, **other: np.ndarray) -> Any:
        return loss_and_grads(params, to_global(batch | other, mesh), jax.random.key(1), {})

    state = jax.jit(adam.init)(params)
    for _ in range(40):
        params, state = update(params, state, loss_of(params)[2])
    want = loss_of(params)[1]
    assert 0 < float(want["caption/accuracy"]) <= 1
    shuffled = loss_of(params, image=np.roll(batch["image"], 1, axis=0))[1]
    assert float(shuffled["caption/loss"]) > float(want["caption/loss"]) + 0.1
    assert (batch["text"] == 0).any(axis=1).all()
    padded = loss_of(params, text=np.where(batch["text"] == 0, 7, batch["text"]).astype(np.int32))[1]
    assert float(padded["caption/loss"]) == float(want["caption/loss"])


def test_the_decoder_lies_under_the_objective_s_name_and_its_operations_are_counted() -> None:
    config = small()
    mesh = make_device_mesh(MeshConfig(1, 2), jax.devices()[:2])
    config = dataclasses.replace(config, mesh=MeshConfig(1, 2))
    params = flatten(make_program(config, mesh, warmup_steps=1, total_steps=2).state.params)
    kernel = params["caption/decoder/blocks/attn/q/kernel"]
    assert kernel.shape == (1, 32, 32)
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
    assert {"caption/decoder/blocks/cross_attn/k/kernel", "caption/decoder/vocabulary"} < params.keys()
    without = dataclasses.replace(config, objectives={"image_text": Contrastive()})
    text, tokens = 7, 5  # positions that tell, tokens of an image: four patches and the class token
    of_text = 4 * 32**2 + 2 * 32 * 128 + 2 * text * 32 + 2 * 32**2 + 2 * 32 * 128 + 2 * tokens * 32
    forward = 2 * (text * of_text + tokens * 2 * 32**2 + text * 32 * 49408)
    assert step_flops(config) - step_flops(without) == 3 * config.batch_size * forward


FILE = TokenizerConfig("hugging_face", "words.json")


@pytest.mark.parametrize(
    ("text", "how", "message"),
    [
        ({"causal": False}, {}, r"\.text 'text' is of a tower whose tokens see those they are to predict; use causal=True"),
        ({}, {"image": "text"}, r"\.image 'text' is of a text tower; use a view of images"),
        ({}, {"text": "image"}, r"\.text 'image' is not of a text tower; use a view of texts"),
        ({}, {"heads": 3}, r"\.heads 3 does not divide the text tower's width 32"),
        ({}, {"label_smoothing": 1.0}, r"\.label_smoothing 1\.0 must be"),
        (
            {"tokenizer": FILE, "eot_id": 2},
            {},
            r"captions need a first and a last token; give .* both \(bos_id",
        ),
        ({"tokenizer": dataclasses.replace(FILE, last_id=3, bos_id=1, eos_id=2), "eot_id": 2}, {}, r"with last_id or strip_id"),
    ],
)
def test_what_a_caption_cannot_be_is_an_error(text: dict[str, Any], how: dict[str, Any], message: str) -> None:
    config = tiny_config(objectives={"image_text": Contrastive(), "x": Caption(**how)})
    tower = config.model.towers["text"]
    assert isinstance(tower, TextTower)
    model = dataclasses.replace(config.model, towers={**config.model.towers, "text": dataclasses.replace(tower, **text)})
    with pytest.raises(ConfigError, match=rf"objectives\.x{message}" if message.startswith(r"\.") else message):
        check(dataclasses.replace(config, model=model))


def test_a_class_token_behind_a_text_that_sees_it_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"towers\.text\.causal: pool='cls' has its class token behind the text"):
        check(tiny_config(**{"model.towers.text.causal": False, "model.towers.text.pool": "cls"}))
    with pytest.raises(ConfigError, match=r"query_heads 5 does not divide the queries' width 32"):
        check(tiny_config(**{"model.towers.image.pool": "queries", "model.towers.image.query_heads": 5}))
