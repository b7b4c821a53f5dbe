"""Prompts with learned contexts: where each embedding of each class's prompt comes from, and the tower that reads them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jclip.adapt.prompts import spoken
from jclip.config import ConfigError, Model, TokenTower
from jclip.data import detokenize, get_tokenizer, text_parts
from jclip.models import Backend, MultiTower
from jclip.models.text import end_of_text
from jclip.sharding import batch_sharding, replicated

Position = Literal["end", "middle", "front"]

DEVIATION = 0.02
"""Standard deviation of contexts that begin at random."""

NEAREST = 3
"""Words that are shown of each context."""


def reading_tower(model: Model, text: str) -> TokenTower:
    """The tower of texts whose prompts get contexts. Raises ConfigError where it reads no tokens."""
    tower = model.towers[text]
    if not isinstance(tower, TokenTower):
        raise ConfigError(
            f"adapt: coop and cocoop learn embeddings in place of words, and tower {text!r}, a {type(tower).__name__}, reads no "
            "tokens; use other methods, or another tower as text"
        )
    return tower


@dataclass(frozen=True)
class PromptLayout:
    """The prompts of C classes: entry i of `gather` [C, L] is a context where it is below M, else `ids` at i - M."""

    ids: np.ndarray
    """int32 [C, L]: token ids; those in the places of contexts mean nothing."""
    gather: np.ndarray
    """int32 [C, L]."""
    eot: np.ndarray
    """int32 [C]: index of the end of each text."""
    contexts: int
    """M."""

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, gather, eot)."""
        return self.ids, self.gather, self.eot


def layout(tower: TokenTower, names: Sequence[str], contexts: int, words: str, position: Position) -> PromptLayout:
    """The layout of "X X X name." with the name behind the contexts, in their middle, or before them.

    As short as the longest prompt where the tower ignores padding. With `words` the contexts are as many as these have tokens.

    Raises:
        ConfigError: a prompt is longer than the context, or is another one when its words stand together.
    """
    names = [spoken(name) for name in names]
    count = len(word_ids(tower, words)) if words else contexts
    rows = [_row(tower, name, count, position) for name in names]
    longest = max(len(row) for row, _ in rows)
    if longest > tower.context_length:
        name = names[int(np.argmax([len(row) for row, _ in rows]))]
        raise ConfigError(
            f"adapt: the prompt of {name!r} has {longest} tokens with {count} contexts, more than context_length "
            f"{tower.context_length}; use fewer contexts, or shorten the name"
        )
    length = longest if tower.ignores_padding else tower.context_length
    ids = np.full((len(names), length), tower.tokenizer.pad_id, np.int32)
    gather = np.tile(count + np.arange(length, dtype=np.int32), (len(names), 1))
    for c, (row, places) in enumerate(rows):
        ids[c, : len(row)] = row
        gather[c, places] = np.arange(count)
    eot = np.asarray(end_of_text(jnp.asarray(ids), tower), np.int32)
    found = PromptLayout(ids, gather, eot, count)
    if words and position == "end":
        _require_same(tower, names, words, found)
    return found


def _row(tower: TokenTower, name: str, contexts: int, position: Position) -> tuple[list[int], np.ndarray]:
    """Ids of a prompt, of some word in the places of contexts, and these places."""
    before, whole, after = text_parts(tower, f"{name}.")
    bare = text_parts(tower, name)[1]
    if whole[: len(bare)] != bare:  # the full stop belongs to the last word there
        bare = whole
    first = {"end": contexts, "middle": contexts // 2, "front": 0}[position]
    filler = whole[:1]
    row = [*before, *filler * first, *bare, *filler * (contexts - first), *whole[len(bare) :], *after]
    start, behind = len(before), len(before) + first + len(bare)
    return row, np.r_[start : start + first, behind : behind + contexts - first]


def _require_same(tower: TokenTower, names: Sequence[str], words: str, found: PromptLayout) -> None:
    """Raises ConfigError where "words name." has other tokens than words and name apart."""
    table = np.concatenate([np.tile(word_ids(tower, words), (len(names), 1)), found.ids], axis=1)
    ids = np.take_along_axis(table, found.gather, axis=1)
    texts = [f"{words} {name}." for name in names]
    whole = get_tokenizer(tower.tokenizer)(texts, tower.context_length)[:, : ids.shape[1]]
    if (ids != whole).any():
        odd = texts[int(np.argmax((ids != whole).any(axis=1)))]
        raise ConfigError(f"adapt: {odd!r} has other tokens than its words apart; begin the contexts at random, with words empty")


def word_ids(tower: TokenTower, words: str) -> list[int]:
    """Token ids of words, without start and end. Raises ConfigError where there are none."""
    ids = text_parts(tower, words)[1]
    if not ids:
        raise ConfigError(f"adapt: {words!r} has no tokens; give words, or leave them empty")
    return ids


def first_contexts(table: np.ndarray, tower: TokenTower, words: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Contexts f32 [M, d] or [C, M, d] at the start: embeddings of words, from the tower's table, or at random."""
    if words:
        return np.broadcast_to(table[word_ids(tower, words)], shape).astype(np.float32)
    return (DEVIATION * np.random.default_rng([seed, 5]).normal(size=shape)).astype(np.float32)


def exact_model(model: Model, *, remat: bool) -> Model:
    """The towers in f32, as evaluations compute them; with `remat` blocks are a loop, and computed again in the backward pass.

    Without the loop XLA moves what is computed again to where all blocks hold it at once: CoOp's step for 1,000 classes of
    ViT-B/32 then takes 5.9 GiB, and 1.3 with it.
    """
    return dataclasses.replace(model, dtype="float32", remat="nothing_saveable" if remat else "none", scan=model.scan or remat)


def prompt_encoder(
    model: Model, mesh: Mesh, text: str, *, remat: bool
) -> Callable[[Any, Array, tuple[Array, Array, Array]], Array]:
    """A function (params, contexts, arrays of a Layout) -> unit vectors f32 [C, E] of prompts, classes split over devices.

    Contexts are [M, d], the same for all classes, or [C, M, d]. It computes in f32, as evaluations do.
    """
    exact = exact_model(model, remat=remat)
    longest = ((model.towers[text].input()[0][0], 1.0),)
    towers = MultiTower(exact, backend=Backend.of(mesh, model.attention), buckets={text: longest} if _cuts(model, text) else None)

    def encode(params: Any, contexts: Array, arrays: tuple[Array, Array, Array]) -> Array:
        ids, gather, eot = _padded(arrays, mesh.size)
        table = params[text]["token_embed"][ids]
        contexts = contexts if contexts.ndim == 3 else jnp.broadcast_to(contexts[None], (len(arrays[0]), *contexts.shape))
        (contexts,) = _padded((contexts,), mesh.size)
        joined = jnp.concatenate([contexts, table], axis=1)
        inputs = jnp.take_along_axis(joined, gather[:, :, None], axis=1)
        inputs, eot = (jax.lax.with_sharding_constraint(x, batch_sharding(mesh)) for x in (inputs, eot))
        with jax.default_matmul_precision("highest"):  # as evaluations have it
            z = towers.apply({"params": params}, {text: (inputs, eot)})[text].z
        return jax.lax.with_sharding_constraint(z, replicated(mesh))[: len(arrays[0])]

    return encode


def _cuts(model: Model, text: str) -> bool:
    tower = model.towers[text]
    return isinstance(tower, TokenTower) and tower.ignores_padding


def _padded(arrays: tuple[Array, ...], multiple: int) -> tuple[Array, ...]:
    """Arrays [n, ...] with their last row again behind them, as often as makes a multiple."""
    return tuple(jnp.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1), mode="edge") for x in arrays)


def nearest_words(table: np.ndarray, tower: TokenTower, contexts: np.ndarray) -> list[list[tuple[str, float]]]:
    """The words whose embeddings are nearest to each context [M, d], with their distances, as CoOp reads them."""
    found = []
    for context in contexts.astype(np.float64):
        distance = np.sqrt(np.sum((table - context[None]) ** 2, axis=1))
        near = np.argsort(distance, kind="stable")[:NEAREST]
        found.append([(_word(tower, int(i)), float(distance[i])) for i in near])
    return found


def _word(tower: TokenTower, token: int) -> str:
    """A token as people read it."""
    end = text_parts(tower, "")[2]
    row = np.array([[token, *end, *[tower.tokenizer.pad_id] * (tower.context_length - 1 - len(end))]], np.int32)
    return detokenize(tower, row)[0].strip() or f"[{token}]"
