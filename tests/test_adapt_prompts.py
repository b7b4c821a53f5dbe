"""CoOp and CoCoOp: prompts beside those that the published codes put together, and what training leaves alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapt_fakes import SCALE, features, make_task
from scipy.special import log_softmax

from jclip import config
from jclip.adapt import fit
from jclip.adapt.cocoop import LEARNED, conditional, first_network
from jclip.adapt.contexts import first_contexts, layout, nearest_words, prompt_encoder, reading_tower
from jclip.adapt.heads import Head
from jclip.adapt.prompts import fill
from jclip.adapt.task import LabelledFeatures, Task
from jclip.clip import create_model
from jclip.config import BertTower, CoCoOp, ConfigError, CoOp, Model, TextTower, Views
from jclip.data import get_tokenizer
from jclip.eval import class_embeddings
from jclip.models import MultiTower
from jclip.sharding import make_mesh

NAMES = ("dog", "electric guitar", "cat")
MODEL = dataclasses.replace(create_model("ViT-tiny-test", context_length=16))
TOWER = MODEL.config.towers["text"]
assert isinstance(TOWER, TextTower)
PARAMS = MODEL.init(jax.random.key(0))
TABLE = np.asarray(PARAMS["text"]["token_embed"])  # type: ignore[index, call-overload]
DEVICES = {n: make_mesh(config.MeshConfig(), jax.devices()[:n]) for n in (1, 2, 8)}


def encoded(embeddings: np.ndarray, eot: np.ndarray) -> np.ndarray:
    """Unit vectors of whole prompts, padded to the context, by the model itself."""
    return np.asarray(MODEL.encode_text(PARAMS, (jnp.asarray(embeddings), jnp.asarray(eot))))


def put_together(contexts: np.ndarray, position: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [C, L, d] and the ends of the prompts as CoOp's code makes them, by pieces of "X X X name."."""
    tokenizer, count = get_tokenizer(TOWER.tokenizer), contexts.shape[-2]
    prompts = [" ".join(["X"] * count) + f" {name}." for name in NAMES]
    ids = tokenizer(prompts, TOWER.context_length)
    embeddings, rows = TABLE[ids], []
    for i, name in enumerate(NAMES):
        prefix, suffix = embeddings[i, :1], embeddings[i, 1 + count :]
        length = len(name.split())  # a token a word, of these
        own = contexts if contexts.ndim == 2 else contexts[i]
        half = count // 2
        pieces = {
            "end": [prefix, own, suffix],
            "middle": [prefix, own[:half], suffix[:length], own[half:], suffix[length:]],
            "front": [prefix, suffix[:length], own, suffix[length:]],
        }
        rows.append(np.concatenate(pieces[position]))
    return np.stack(rows), np.argmax(ids, axis=1)


@pytest.mark.parametrize(("position", "per_class"), [("end", False), ("middle", True), ("front", False)])
def test_prompts_are_those_of_the_published_code(position: Any, per_class: bool) -> None:
    shape = (3, 5, 32) if per_class else (5, 32)
    contexts = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = layout(TOWER, NAMES, 5, "", position)
    expected = encoded(*put_together(contexts, position))
    assert np.abs(expected - encoded(*put_together(contexts, "end" if position != "end" else "front"))).max() > 1e-3
    encode = jax.jit(prompt_encoder(MODEL.config, DEVICES[1], "text", remat=True))
    np.testing.assert_allclose(encode(PARAMS, contexts, made.arrays()), expected, atol=2e-6)


def test_contexts_that_begin_as_words_are_the_zero_shot_classifier() -> None:
    made = layout(TOWER, NAMES, 1, "a photo of a", "end")
    assert (made.contexts, made.ids.shape) == (4, (3, 9))
    contexts = first_contexts(TABLE, TOWER, "a photo of a", (4, 32), 0)
    encode = jax.jit(prompt_encoder(MODEL.config, DEVICES[1], "text", remat=False))
    ids = MODEL.tokenize([f"a photo of a {name}." for name in NAMES])
    words = np.concatenate([np.tile(ids[:1, 1:5], (3, 1)), made.ids], axis=1)
    np.testing.assert_array_equal(np.take_along_axis(words, made.gather, axis=1), ids[:, :9])
    np.testing.assert_allclose(encode(PARAMS, contexts, made.arrays()), MODEL.encode_text(PARAMS, ids), atol=5e-7)


def test_prompts_are_read_in_the_precision_of_evaluations() -> None:
    """Every product of the towers, and of their gradients, asks for the highest."""
    made = layout(TOWER, NAMES, 4, "", "end")
    encode = prompt_encoder(MODEL.config, DEVICES[1], "text", remat=True)

    def total(contexts: jax.Array) -> jax.Array:
        return encode(PARAMS, contexts, made.arrays()).sum()

    text = str(jax.make_jaxpr(jax.grad(total))(jnp.zeros((4, 32))))
    products = text.count("dot_general[")
    assert products >= 10
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


def test_underscores_are_spaces_in_prompts() -> None:
    names = ("electric_guitar", "dog")
    made = [layout(TOWER, names, 4, "", "end") for names in (names, tuple(name.replace("_", " ") for name in names))]
    np.testing.assert_array_equal(made[0].ids, made[1].ids)
    assert fill(("a {}.",), names[0]) == ("a electric guitar.",)


@pytest.mark.parametrize("positions", ["zero", "pad_id"])
def test_towers_of_berts_kind_read_contexts(positions: Any) -> None:
    """Contexts that begin as words are these words."""
    tower = BertTower(context_length=12, vocab_size=49408, width=16, depth=1, heads=2, max_positions=14, positions_from=positions)
    model = Model(embed_dim=8, towers={"text": tower})
    ids = get_tokenizer(tower.tokenizer)([f"a photo of a {name}." for name in NAMES], 12)
    params = MultiTower(model).init(jax.random.key(0), {"text": ids})["params"]
    made = layout(tower, NAMES, 1, "a photo of a", "end")
    contexts = first_contexts(np.asarray(params["text"]["token_embed"]), tower, "a photo of a", (4, 16), 0)
    found = jax.jit(prompt_encoder(model, DEVICES[1], "text", remat=False))(params, contexts, made.arrays())
    np.testing.assert_allclose(found, MultiTower(model).apply({"params": params}, {"text": ids})["text"].z, atol=1e-6)


def test_a_tower_that_reads_no_tokens_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"tower 'image', a VisionTower, reads no tokens"):
        reading_tower(MODEL.config, "image")


def test_prompts_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'electric guitar' has 18 tokens with 13 contexts, more than context_length 16"):
        layout(TOWER, NAMES, 13, "", "end")
    with pytest.raises(ConfigError, match="has no tokens"):
        layout(TOWER, NAMES, 4, " ", "end")
    with pytest.raises(ConfigError, match="fills the context"):
        layout(TOWER, ("very " * 20,), 4, "", "end")


def task_of(noise: float = 0.5, devices: int = 1, **changes: Any) -> Task:
    """Images around the zero-shot classifier of the model, so that prompts have something to learn."""
    ids = MODEL.tokenize([f"a photo of a {name}." for name in NAMES])
    classifier = class_embeddings(np.asarray(MODEL.encode_text(PARAMS, ids))[:, None])
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][:3]
    labels = np.repeat(np.arange(3), 4)
    task = make_task()
    made = {
        "names": NAMES,
        "labels": labels,
        "images": features(rng, centres, labels, noise / 4),
        "selection": LabelledFeatures(features(rng, centres, labels, noise / 4), labels),
        "classifier": classifier,
        "model": MODEL.config,
        "params": PARAMS,
        "mesh": DEVICES[devices],
        "compiled": {},
        **changes,
    }

    def views(how: Views, epochs: int) -> Any:
        return made["images"].take(None)

    return dataclasses.replace(task, **{**made, "encode": dataclasses.replace(task.encode, views=views)})


def loss_of(head: Head, task: Task) -> float:
    """Mean cross-entropy of the shots."""
    return float(-np.mean(log_softmax(head.logits(task.images), axis=1)[np.arange(len(task.labels)), task.labels]))


@pytest.mark.slow
def test_coop_of_a_vanishing_rate_is_zero_shot_and_of_a_real_one_learns() -> None:
    before = jax.tree.map(np.array, PARAMS)
    task = task_of()
    still = fit(CoOp(words="a photo of a", epochs=1, lr=1e-30, warmup_lr=1e-30, weight_decay=0.0), task)
    np.testing.assert_allclose(still.head.arrays["weights"], task.classifier, atol=5e-7)
    learned = {per: fit(CoOp(contexts=4, epochs=60, lr=0.003, per_class=per), task) for per in (False, True)}
    for per, fitted in learned.items():
        assert fitted.parameters == 4 * 32 * (3 if per else 1)
        assert loss_of(fitted.head, task) < 0.5 * loss_of(still.head, task)
        assert not fitted.changed
    assert len(learned[False].details["words"]) == 4
    assert list(learned[True].details["class_words"]) == list(NAMES)
    jax.tree.map(np.testing.assert_array_equal, before, PARAMS)


@pytest.mark.slow
def test_the_first_epoch_of_coop_has_the_warm_up_rate() -> None:
    """One step of SGD by hand, on the loss of whole prompts."""
    task = task_of()
    method = CoOp(contexts=4, epochs=1, warmup_lr=0.3, lr=7.0, batch_size=12)
    start = first_contexts(TABLE, TOWER, "", (4, 32), task.seed)
    eot = put_together(start, "end")[1]

    def loss(contexts: jax.Array) -> jax.Array:
        ids = MODEL.tokenize([f"X X X X {name}." for name in NAMES])
        whole = jnp.asarray(TABLE)[ids].at[:, 1:5].set(contexts)
        logits = SCALE * task.images.z @ MODEL.encode_text(PARAMS, (whole, eot)).T
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(12), task.labels])

    expected = start - 0.3 * (jax.grad(loss)(jnp.asarray(start)) + 5e-4 * start)
    assert np.abs(expected - start).max() > 1e-2
    np.testing.assert_allclose(fit(method, task).arrays["contexts"], expected, atol=1e-5)


@pytest.mark.slow
def test_cocoop_without_a_shift_is_coop_and_with_one_each_image_has_its_prompts() -> None:
    made, rng = layout(TOWER, NAMES, 4, "", "end"), np.random.default_rng(1)
    contexts = rng.normal(size=(4, 32)).astype(np.float32)
    encode = prompt_encoder(MODEL.config, DEVICES[1], "text", remat=False)
    z = features(rng, rng.normal(size=(5, 16)), np.arange(5), 0.1).z
    network = first_network(16, 4, 32, 0)
    nothing = {name: np.zeros_like(array) for name, array in network.items()}
    plain = SCALE * z @ encoded(*put_together(contexts, "end")).T
    found = conditional(encode, PARAMS, {"contexts": contexts, **nothing}, made.arrays(), jnp.asarray(z), jnp.float32(SCALE))
    np.testing.assert_allclose(found, plain, atol=5e-5)
    found = conditional(encode, PARAMS, {"contexts": contexts, **network}, made.arrays(), jnp.asarray(z), jnp.float32(SCALE))
    for image, logits in zip(z, np.asarray(found), strict=True):
        middle = np.maximum(image @ network["weights_1"] + network["bias_1"], 0)
        own = contexts + middle @ network["weights_2"] + network["bias_2"]
        np.testing.assert_allclose(logits, SCALE * encoded(*put_together(own, "end")) @ image, atol=5e-5)
    assert np.abs(np.asarray(found) - plain).max() > 1e-2


@pytest.mark.slow
def test_cocoop_learns_and_its_head_can_be_bound_again() -> None:
    task = task_of()
    fitted = fit(CoCoOp(words="", contexts=2, epochs=12, lr=0.003, batch_size=4, reduction=4), task)
    start = fit(CoCoOp(words="", contexts=2, epochs=1, warmup_lr=1e-30, batch_size=4, reduction=4), task)
    assert loss_of(fitted.head, task) < 0.7 * loss_of(start.head, task)
    assert {*LEARNED} < {*fitted.head.arrays}
    assert fitted.parameters == 2 * 32 + (16 * 4 + 4) + (4 * 32 + 32)


def test_words_near_contexts_are_found() -> None:
    contexts = TABLE[MODEL.tokenize("red dog")[0, 1:3]] + 1e-3
    words = nearest_words(TABLE, TOWER, contexts)
    assert [near[0][0] for near in words] == ["red", "dog"]
    assert words[0][0][1] == pytest.approx(1e-3 * 32**0.5, rel=1e-2)
    assert words[0][1][1] > words[0][0][1]
