"""Captions of images: a text made token by token, greedily or by beam search, each token with what the others left in a cache."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip.config import Caption, ConfigError, Model, TextTower
from jclip.data import text_ends
from jclip.models import Backend, Compute, MultiTower, TextTransformer, caption_decoder
from jclip.models.layers import layer_norm
from jclip.models.text import class_tokens
from jclip.models.transformer import empty_cache, step_blocks
from jclip.sharding import batch_sharding, replicated

Params = dict[str, Any]

NEVER = -1e30  # the score of a caption that there is not; finite, because the difference of two infinities is NaN


class Captioner(NamedTuple):
    """A model's towers and decoder that write captions of images.

    Attributes:
        name: of its parameters.
        how: its objective, whose views bear the names of towers.
        model: the towers.
    """

    name: str
    how: Caption
    model: Model

    @property
    def text(self) -> TextTower:
        """The tower whose texts the captions are."""
        tower = self.model.towers[self.how.text]
        assert isinstance(tower, TextTower)
        return tower

    def length(self, length: int | None) -> int:
        """Largest number of tokens of a caption, start and end of text among them.

        Raises:
            ConfigError: the tower has not so many.
        """
        most = self.text.context_length
        if length is not None and not 2 <= length <= most:
            raise ConfigError(f"caption: length {length} must be at least 2 and at most the context_length {most}")
        return length or most


class Search(NamedTuple):
    """Settings of the search for captions.

    Attributes:
        beams: how many unfinished captions are followed at a time; 1: the likeliest token each time (greedy).
        length: tokens of a caption at most, start and end of text among them; None: the context length.
        length_penalty: a finished caption's score is the sum of its tokens' log-probabilities over their number to this power: 0
            prefers short captions, 1 compares means.
    """

    beams: int = 1
    length: int | None = None
    length_penalty: float = 1.0


Step = Callable[..., tuple[Array, Params]]
"""(cache, tokens i32 [b], their place i32 []) -> (logits of the next token f32 [b, V], cache)."""


def make_caption(captioner: Captioner, mesh: Mesh, search: Search) -> Any:
    """The jitted captioner: (params, global batch of the image tower) -> i32 [B, length], on every device whole.

    Rows begin with the start of text, and behind their end is padding. A caption that is not finished has no end.

    Raises:
        ConfigError: a number of the search is out of range.
    """
    most = captioner.text.vocab_size // 2  # twice as many ways to go on are looked at, of one beam at first
    if not 1 <= search.beams <= most:
        raise ConfigError(f"caption: beams {search.beams} must be at least 1 and at most {most}, half of the vocabulary")
    if search.length_penalty < 0:
        raise ConfigError(f"caption: length_penalty {search.length_penalty} must be at least 0")
    search = search._replace(length=captioner.length(search.length))
    exact = dataclasses.replace(captioner.model, dtype="float32")
    towers = MultiTower(exact, None, Backend.of(mesh, exact.attention))

    def caption(params: Params, batch: Mapping[str, Array]) -> Array:
        with jax.default_matmul_precision("highest"):  # TPUs and GPUs would multiply f32 with less
            images = towers.apply({"params": params}, batch)[captioner.how.image].output.tokens
            return generate(captioner, params, images, search)

    return jax.jit(caption, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))


def generate(captioner: Captioner, params: Params, images: Array, search: Search) -> Array:
    """Captions i32 [b, length] of the tokens of images [b, n, d]; see `make_caption`."""
    length = captioner.length(search.length)
    step = partial(next_logits, captioner, params)
    cache = new_cache(captioner, len(images) * search.beams, length)
    start, end, padding = text_ends(captioner.text)
    first = jnp.full(len(images) * search.beams, start, jnp.int32)
    logits, cache = step(cache, first, jnp.zeros((), jnp.int32), images)  # the cache has the keys of the images from here on
    ids = jnp.full((len(first), length), padding, jnp.int32).at[:, 0].set(start)
    if search.beams == 1:
        return _greedy(step, cache, logits, ids, end, padding)
    return _beam_search(step, cache, logits, ids, end, search)


def new_cache(captioner: Captioner, rows: int, length: int) -> Params:
    """The cache of both halves of the text decoder, for so many texts of that length."""
    text = captioner.text
    decoder = caption_decoder(captioner.how, captioner.model, Compute()).config
    return {
        name: empty_cache(tower.depth, rows, length, tower.width, tower.heads, jnp.float32)
        for name, tower in (("text", text), ("decoder", decoder))
    }


def next_logits(
    captioner: Captioner, params: Params, cache: Params, ids: Array, at: Array, images: Array | None = None
) -> tuple[Array, Params]:
    """Logits f32 [b * m, V] of the token after `ids`, and the cache with what these have left in it.

    Args:
        captioner: see there.
        params: of towers, and of the decoder under the captioner's name.
        cache: see `new_cache`.
        ids: i32 [b * m], m captions of each image side by side.
        at: i32 [], their place in the texts.
        images: the tokens of the images [b, n, d] at the first place; afterwards the cache has them.
    """
    text, tower, own = captioner.text, params[captioner.how.text], params[captioner.name]["decoder"]
    decoder = caption_decoder(captioner.how, captioner.model, Compute())
    lengths = jnp.full(len(ids), at + 1)
    x = tower["token_embed"][ids] + jax.lax.dynamic_index_in_dim(tower["pos_embed"], at)
    blocks = TextTransformer(text).block(causal=False)  # what comes later is not yet there, and hidden by its length
    x, of_text = step_blocks(blocks, tower["blocks"], cache["text"], x[:, None], lengths)
    if not class_tokens(text):
        x = layer_norm(x, tower["norm"]["scale"], tower["norm"]["bias"], text.norm_eps)
    x, of_decoder = step_blocks(decoder.block(causal=False), own["blocks"], cache["decoder"], x, lengths, (images,))
    x = layer_norm(x, own["norm"]["scale"], own["norm"]["bias"], text.norm_eps)
    return x[:, 0] @ own["vocabulary"], {"text": of_text, "decoder": of_decoder}


def _greedy(step: Step, cache: Params, logits: Array, ids: Array, end: int, padding: int) -> Array:
    """The likeliest token each time, until all texts have ended."""

    def go_on(state: tuple[Array, Array, Array, Array, Params]) -> Array:
        at, _, ended, _, _ = state
        return (at < ids.shape[1]) & ~ended.all()

    def extend(state: tuple[Array, Array, Array, Array, Params]) -> tuple[Array, Array, Array, Array, Params]:
        at, ids, ended, logits, cache = state
        token = jnp.where(ended, padding, logits.argmax(axis=1).astype(jnp.int32))
        ids, ended = ids.at[:, at].set(token), ended | (token == end)
        return at + 1, ids, ended, *step(cache, token, at)

    state = (jnp.int32(1), ids, jnp.zeros(len(ids), bool), logits, cache)
    return jax.lax.while_loop(go_on, extend, state)[1]


class _Beams(NamedTuple):
    """Captions [b, m, length] of each image by their scores [b, m], those that have ended and those that have not."""

    at: Array
    """i32 [], the place of the next token."""
    ids: Array
    scores: Array
    """Sums of log-probabilities."""
    ended: Array
    ended_scores: Array
    """Divided by their length, as `Search.length_penalty` says."""
    logits: Array
    """f32 [b * m, V] of the next token of those that have not ended."""
    cache: Params


def _beam_search(step: Step, cache: Params, logits: Array, ids: Array, end: int, search: Search) -> Array:
    """The best of those that have ended, or, of an image where none has, the best of the others.

    Each turn the 2 m likeliest ways to go on are looked at: were all m beams to end, m would be left to go on with.
    """
    beams, length = search.beams, ids.shape[1]
    images = len(ids) // beams
    ids = ids.reshape(images, beams, length)

    def penalised(scores: Array, tokens: Array) -> Array:
        return scores / tokens.astype(jnp.float32) ** search.length_penalty

    def go_on(state: _Beams) -> Array:
        # A score falls with each token, so none of those that have not ended can become better than it is now at the length that
        # divides it least.
        best = penalised(state.scores.max(axis=1), jnp.where(search.length_penalty > 0, length - 1, state.at))
        return (state.at < length) & (state.ended_scores[:, 0] < best).any()

    def extend(state: _Beams) -> _Beams:
        steps = jax.nn.log_softmax(state.logits).reshape(images, beams, -1)
        size = steps.shape[2]
        scores, chosen = jax.lax.top_k((state.scores[:, :, None] + steps).reshape(images, -1), 2 * beams)
        parents, tokens = chosen // size, (chosen % size).astype(jnp.int32)
        grown = jnp.take_along_axis(state.ids, parents[:, :, None], axis=1).at[:, :, state.at].set(tokens)
        over = tokens == end

        done = jnp.concatenate([state.ended, grown], axis=1)
        done_scores = jnp.where(over & (scores > NEVER / 2), penalised(scores, state.at), NEVER)
        ended_scores, kept = jax.lax.top_k(jnp.concatenate([state.ended_scores, done_scores], axis=1), beams)
        ended = jnp.take_along_axis(done, kept[:, :, None], axis=1)

        scores, kept = jax.lax.top_k(jnp.where(over, NEVER, scores), beams)
        ids, tokens, parents = (_pick(x, kept) for x in (grown, tokens, parents))
        rows = (jnp.arange(images)[:, None] * beams + parents).reshape(-1)
        logits, cache = step(_of_parents(state.cache, rows), tokens.reshape(-1), state.at)
        return _Beams(state.at + 1, ids, scores, ended, ended_scores, logits, cache)

    only = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER)[None]  # at first all beams are the same
    never = jnp.full((images, beams), NEVER)
    start = _Beams(jnp.int32(1), ids, jnp.broadcast_to(only, never.shape), ids, never, logits, cache)
    state = jax.lax.while_loop(go_on, extend, start)
    some = state.ended_scores[:, :1, None] > NEVER
    return jnp.where(some, state.ended, state.ids)[:, 0]


def _pick(x: Array, kept: Array) -> Array:
    """The members `kept` [b, m] of x [b, n, ...]."""
    return jnp.take_along_axis(x, kept.reshape(*kept.shape, *(1,) * (x.ndim - 2)), axis=1)


def _of_parents(cache: Params, rows: Array) -> Params:
    """The cache of the texts `rows` i32 [b * m]; what is of images is the same for all beams of one."""
    return {
        name: {part: jax.tree.map(lambda x: x[:, rows], kept) if part == "attn" else kept for part, kept in own.items()}
        for name, own in cache.items()
    }
