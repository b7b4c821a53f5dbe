"""Masked language modelling: words predicted from the text around them."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.models import Compute, Masked, WordHead, uniform_of_rows
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.objectives.vocabulary import real_words, special_ids
from jclip.sharding import BATCH_AXES


class MaskedTextObjective(Objective):
    """See `config.MaskedText`."""

    def __init__(self, name: str, how: config.MaskedText, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting, self.mesh, self.salt = how, setting, mesh, zlib.crc32(name.encode())
        (self.view,) = how.makes(name)
        self.tower = cast(config.TokenTower, setting.model.towers[setting.inputs[how.text].tower])
        self.head = WordHead(self.tower.vocab_size, self.tower.norm_eps, Compute.of(setting.model, mesh))

    def init(self, key: Array, part: Part) -> Params:
        """The head, and an embedding that stands for hidden words."""
        head, token = jax.random.split(key)
        x = jnp.zeros((1, self.tower.pooled_width))
        hidden = nn.initializers.normal(0.02)(token, (self.tower.width,))
        return {"head": self.head.init(head, x)["params"], "mask": {"bias": hidden}}  # a name that the rules never decay

    def views(self, params: Params, batch: Mapping[str, Array], rows: Array, key: Array) -> Mapping[str, Any]:
        """The text with words hidden, and others in the place of some."""
        ids = batch[self.how.text]
        chosen = self._choose(ids, rows, key)
        token = params["mask"]["bias"]
        return {self.view: Masked(chosen.seen, chosen.hidden, jnp.broadcast_to(token, (len(ids), *token.shape)))}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The mean cross-entropy of each text's chosen words, and the share of them that were predicted right.

        The means are of each text by itself, so that a text counts the same however many words it has and whatever the parts.
        """
        ids, tokens = part.batch[self.how.text], part.encoded[self.view].output.tokens
        chosen = self._choose(ids, part.rows, part.key)
        x = jnp.take_along_axis(tokens, chosen.places[:, :, None], axis=1)
        features, vocabulary = self.head.apply({"params": params["head"]}, x)
        words, block = jnp.take_along_axis(ids, chosen.places, axis=1), self.how.block
        loss, right = losses.word_cross_entropy(
            features, vocabulary, words, chosen.real, block=block, mesh=self.mesh, axes=BATCH_AXES
        )
        return {}, {"loss": loss.sum(), "accuracy": right.sum()}

    def _choose(self, ids: Array, rows: Array, key: Array) -> "Chosen":
        tower = self.tower
        last = (
            [tower.vocab_size - 1] if isinstance(tower, config.TextTower) and tower.eot_id is None else []
        )  # the largest id ends a text
        words, key = real_words(ids, tower), jax.random.fold_in(key, self.salt)
        return choose(ids, words, key, rows, self.how, tower.vocab_size, [*special_ids(tower), *last])

    def flops(self) -> int:
        """The head forward and backward, on the words that can be chosen."""
        words = self.setting.batch_size * chosen_of(self.tower.context_length, self.how.share)
        return 3 * words * self.head.flops(self.tower.pooled_width)


class Chosen(NamedTuple):
    """Words of texts that are to be predicted.

    Attributes:
        places: i32 [b, k], where they are.
        real: bool [b, k], False where a text has fewer.
        seen: i32 [b, L], the ids that the tower sees, in the place of some of them others.
        hidden: bool [b, L], those of which it sees nothing.
    """

    places: Array
    real: Array
    seen: Array
    hidden: Array


def chosen_of(count: int, share: float) -> int:
    """Number of words that are chosen of so many."""
    return min(count, max(1, round(share * count)))


def choose(
    ids: Array, words: Array, key: Array, rows: Array, how: config.MaskedText, vocabulary: int, special: Sequence[int] = ()
) -> Chosen:
    """Random words of each text: of n words max(1, round(share n)), and never one that is none.

    The k-th of m of them is hidden, exchanged or left alone as (k + u) / m lies below `hidden`, below hidden + other, or above,
    with one u of a text: of m words hidden * m are hidden but for less than one, and that many on average.

    Args:
        ids: i32 [b, L].
        words: bool [b, L], which ids are words.
        key: with the rows all that the choice depends on.
        rows: i32 [b], index of each text in the global batch.
        how: the shares.
        vocabulary: its size.
        special: the ids that are no words; others are never drawn.
    """
    length = ids.shape[1]
    wanted_of = np.array([chosen_of(count, how.share) for count in range(length + 1)])
    draws = uniform_of_rows(key, rows, (2 * length + 1,))
    order, other, shift = draws[:, :length], draws[:, length:-1], draws[:, -1:]
    places = jnp.argsort(jnp.where(words, order, 2.0), axis=1)[:, : wanted_of[-1]]
    wanted = jnp.asarray(wanted_of)[words.sum(axis=1, keepdims=True)]
    rank = jnp.arange(places.shape[1])[None]
    real, level = rank < wanted, (rank + shift) / jnp.maximum(wanted, 1)
    index = jnp.arange(len(ids))[:, None]
    hidden = jnp.zeros(ids.shape, bool).at[index, places].set(real & (level < how.hidden))
    exchanged = jnp.zeros(ids.shape, bool).at[index, places].set(real & (level >= how.hidden) & (level < how.hidden + how.other))
    another = jnp.asarray(np.setdiff1d(np.arange(vocabulary), special), ids.dtype)
    another = another[jnp.minimum((other * len(another)).astype(jnp.int32), len(another) - 1)]
    return Chosen(places, real, jnp.where(exchanged, another, ids), hidden)
