"""Captions made token by token: the cache against the whole, the search against all captions that there are, and leaks."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jclip.captioning import Captioner, Search, generate, make_caption, new_cache, next_logits
from jclip.config import Caption, Config, ConfigError, Contrastive, MeshConfig, Model, TextTower, TokenizerConfig, VisionTower
from jclip.data import detokenize, get_tokenizer
from jclip.models import Compute, MultiTower, caption_decoder
from jclip.sharding import make_mesh, to_global
from jclip.state import param_shapes
from jclip.tree import flatten, unflatten

START, END, PADDING = 1, 2, 0
WORDS = TokenizerConfig("hugging_face", "words.json", bos_id=START, eos_id=END)


def captioner(pool: str = "eot", vocab_size: int = 11, length: int = 7, image_pool: str = "cls") -> Captioner:
    queries = {"queries": 5, "query_width": 16, "query_heads": 2}
    image = VisionTower(image_size=16, patch_size=8, width=24, depth=1, heads=2, pool=image_pool, **queries)
    sizes: dict[str, Any] = {"context_length": length, "vocab_size": vocab_size, "width": 32, "depth": 2, "heads": 4}
    text = TextTower(**sizes, pool=pool, eot_id=END, tokenizer=WORDS)
    return Captioner("caption", Caption(depth=2, heads=2), Model({"image": image, "text": text}, embed_dim=8))


def parameters(it: Captioner, seed: int = 0) -> Any:
    """Larger than those that training begins with, so that it matters what attention looks at."""
    rng = np.random.default_rng(seed)
    shapes = param_shapes(Config(model=it.model, objectives={"image_text": Contrastive(), "caption": it.how}, batch_size=4))

    def draw(path: str, shape: tuple[int, ...]) -> jax.Array:
        x = rng.normal(size=shape)
        small = path.endswith(("/scale", "/bias"))
        return jnp.asarray(path.endswith("/scale") + 0.1 * x if small else 3 * x / max([1, *shape[-2:]]) ** 0.5, jnp.float32)

    return unflatten({path: draw(path, leaf.shape) for path, leaf in flatten(shapes).items()})


def pictures(number: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (number, 16, 16, 3), np.uint8)


def image_tokens(it: Captioner, params: Any, number: int) -> jax.Array:
    tokens: jax.Array = MultiTower(it.model).apply({"params": params}, {"image": pictures(number)})["image"].output.tokens
    return tokens


def whole(it: Captioner) -> Callable[..., jax.Array]:
    """(params, tokens of images, ids) -> f32 [b, L, V] of the token after each, by towers and decoder as in training."""

    def logits(params: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        tokens = MultiTower(it.model).apply({"params": params}, {"text": ids})["text"].output.tokens
        decoder = caption_decoder(it.how, it.model, Compute())
        features, vocabulary = decoder.apply({"params": params["caption"]["decoder"]}, tokens, images)
        return features @ vocabulary

    return jax.jit(logits)


SLOW = pytest.mark.slow
POOLS = [pytest.param("eot", "cls", marks=SLOW), ("cls", "queries"), pytest.param("cls_legacy", "avg", marks=SLOW)]


@pytest.mark.parametrize(("pool", "image_pool"), POOLS)
def test_a_token_at_a_time_has_the_logits_of_the_whole(pool: str, image_pool: str) -> None:
    it = captioner(pool, image_pool=image_pool)
    params = parameters(it)
    images = image_tokens(it, params, 2)
    ids = np.random.default_rng(1).integers(3, 11, (6, 7)).astype(np.int32)  # three captions of each image
    ids[:, 0] = START
    want = np.asarray(whole(it)(params, images, ids))
    step, cache = jax.jit(partial(next_logits, it)), new_cache(it, 6, 7)
    for at in range(7):
        logits, cache = step(params, cache, ids[:, at], jnp.int32(at), images if at == 0 else None)
        np.testing.assert_allclose(logits, want[:, at], atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("pool", "image_pool"), POOLS)
def test_no_token_is_predicted_from_a_later_one_and_none_from_padding(pool: str, image_pool: str) -> None:
    it = captioner(pool, image_pool=image_pool)
    params, logits = parameters(it), whole(it)
    images = image_tokens(it, params, 1)
    ids = np.array([[START, 3, 4, 5, END, PADDING, PADDING]], np.int32)
    want = np.asarray(logits(params, images, ids))
    for place in range(1, 7):
        other = ids.copy()
        other[0, place] = 8
        have = np.asarray(logits(params, images, other))
        np.testing.assert_array_equal(have[:, :place], want[:, :place])
        assert place > 4 or (have[:, place] != want[:, place]).any()


def embedding(it: Captioner, params: Any, ids: list[int]) -> np.ndarray:
    batch = {"text": np.array([ids], np.int32)}
    return np.asarray(jax.jit(MultiTower(it.model).apply)({"params": params}, batch)["text"].z)[0]


def test_a_class_token_sees_all_of_its_text_and_no_padding() -> None:
    it = captioner("cls")
    params = parameters(it)
    want = embedding(it, params, [START, 3, 4, END, 0, 0, 0])
    for padding in ([9, 0, 0], [9, 9, 9], [0, 0, 7]):
        np.testing.assert_array_equal(embedding(it, params, [START, 3, 4, END, *padding]), want)
    for other in ([5, 3, 4, END], [START, 5, 4, END], [START, 3, 5, END], [START, 3, END, 0]):
        assert np.abs(embedding(it, params, [*other, 0, 0, 0]) - want).max() > 1e-3
    legacy = it._replace(model=captioner("cls_legacy").model)
    want = embedding(legacy, params, [START, 3, 4, END, 0, 0, 0])
    assert np.abs(embedding(legacy, params, [START, 3, 4, END, 9, 0, 0]) - want).max() > 1e-3
    np.testing.assert_array_equal(embedding(legacy, params, [START, 3, 4, END, 0, 9, 9]), want)


def scored(it: Captioner, params: Any, images: jax.Array, captions: list[list[int]], penalty: float) -> np.ndarray:
    """f64 [images, captions]: log-probabilities by the whole model, over the number of tokens to that power."""
    length = it.text.context_length
    ids = np.array([[*caption, *[PADDING] * (length - len(caption))] for caption in captions], np.int32)
    found = []
    for image in images:
        logits = np.asarray(whole(it)(params, image[None], ids), np.float64)
        steps = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        sums = [sum(row[i, token] for i, token in enumerate(caption[1:])) for row, caption in zip(steps, captions, strict=True)]
        found.append([total / (len(caption) - 1) ** penalty for total, caption in zip(sums, captions, strict=True)])
    return np.array(found)


@pytest.mark.parametrize("penalty", [0.0, pytest.param(1.0, marks=SLOW)])
def test_beam_search_with_a_beam_for_each_beginning_finds_the_best_of_all_captions(penalty: float) -> None:
    it = captioner("cls", vocab_size=5, length=5)
    params = parameters(it, 3)
    images = image_tokens(it, params, 3)
    words = [i for i in range(5) if i != END]
    every = [[START, *middle, END] for n in range(4) for middle in itertools.product(words, repeat=n)]
    best = scored(it, params, images, every, penalty).argmax(axis=1)
    want = [[*every[i], *[PADDING] * (5 - len(every[i]))] for i in best]
    assert len({tuple(caption) for caption in want}) > 1
    have = jax.jit(partial(generate, it, search=Search(64, 5, penalty)))(params, images)
    np.testing.assert_array_equal(have, want)


@pytest.mark.slow
def test_greedy_takes_the_likeliest_token_each_time_and_stops_at_the_end() -> None:
    it = captioner("eot", vocab_size=5)
    params = parameters(it, 6)
    images = image_tokens(it, params, 5)
    ids = np.full((5, 7), PADDING, np.int32)
    ids[:, 0] = START
    for at in range(1, 7):
        told = np.asarray(whole(it)(params, images, ids))[:, at - 1].argmax(axis=1)
        ids[:, at] = np.where((ids == END).any(axis=1), PADDING, told)
    early = (ids[:, :-1] == END).any(axis=1)
    assert early.any()
    assert not early.all()  # those that have ended wait for the others
    for mesh in (MeshConfig(1, 1), MeshConfig(4, 1)):
        devices = make_mesh(mesh, jax.devices()[: mesh.data])
        rows = np.concatenate([pictures(5), np.zeros((3, 16, 16, 3), np.uint8)])
        have = make_caption(it, devices, Search())(params, to_global({"image": rows}, devices))
        np.testing.assert_array_equal(have[:5], ids)
    short = make_caption(it, devices, Search(length=3))(params, to_global({"image": rows}, devices))
    np.testing.assert_array_equal(short[:5], ids[:, :3])


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (Search(length=8), "length 8 must be at least 2 and at most the context_length 7"),
        (Search(length=1), "length 1 must be"),
        (Search(beams=0), "beams 0 must be at least 1 and at most 5, half of the vocabulary"),
        (Search(beams=6), "beams 6 must be"),
        (Search(length_penalty=-1.0), r"length_penalty -1\.0 must be at least 0"),
    ],
)
def test_what_a_search_cannot_be_is_an_error(search: Search, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_caption(captioner(), make_mesh(MeshConfig(1, 1), jax.devices()[:1]), search)


def test_a_text_comes_back_from_its_tokens() -> None:
    tower = TextTower(context_length=8)
    texts = ["a cat, on the mat!", "", "ten thousand tabby cats asleep"]
    ids = get_tokenizer(tower.tokenizer)(texts, 8)
    assert detokenize(tower, ids) == ["a cat , on the mat", "", "ten thousand tabby cats asleep"]
    ids[2, 4] = 0  # a word of this vocabulary
    assert detokenize(tower, ids)[2] == "ten thousand tabby !asleep"
