"""Classification of the caption's words from the image: SuperCLIP."""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config
from jclip.models import Compute, Dense, end_of_text, first_patch
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting


class VocabularyObjective(Objective):
    """See `config.Vocabulary`. Its state counts the captions seen, and in how many of them each id was: f32 [] and [V]."""

    def __init__(self, name: str, how: config.Vocabulary, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting = how, setting
        inputs, towers = setting.inputs, setting.model.towers
        self.image = towers[inputs[how.image].tower]
        self.text = cast(config.TokenTower, towers[inputs[how.text].tower])
        compute = Compute.of(setting.model, mesh)
        self.head = Dense(self.text.vocab_size, nn.initializers.normal(0.02), True, compute)

    def init(self, key: Array, part: Part) -> Params:
        """The classifier."""
        return {"head": self.head.init(key, part.encoded[self.how.image].output.pooled)["params"]}

    def init_extra(self, key: Array, params: Params) -> Params:
        """Counts of captions and words, all 0."""
        return {"captions": jnp.zeros(()), "having": jnp.zeros(self.text.vocab_size)}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The cross-entropy of the mean patch's classification and of the caption's ids, weighed by their rarity."""
        output = part.encoded[self.how.image].output
        patches = output.tokens[:, first_patch(self.image) :].mean(axis=1)
        logits = self.head.apply({"params": params["head"]}, patches).astype(jnp.float32)
        words = multi_hot(part.batch[self.how.text], self.text)
        weights = words * rarity(extra["captions"], extra["having"])[None]
        share = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        return {}, {"loss": -(share * jax.nn.log_softmax(logits)).sum()}

    def update(self, extra: Params, params: Params, rows: Any, batch: Mapping[str, Array], progress: Array) -> Params:
        """The captions of this batch are counted too."""
        words = multi_hot(batch[self.how.text], self.text)
        return {"captions": extra["captions"] + len(words), "having": extra["having"] + words.sum(axis=0)}

    def flops(self) -> int:
        """The classifier forward and backward."""
        return 3 * 2 * self.setting.batch_size * self.image.width * self.text.vocab_size


def multi_hot(ids: Array, tower: config.TokenTower) -> Array:
    """f32 [b, V] of ids i32 [b, L]: 1 for each word of a text, however often it is there."""
    rows = jnp.broadcast_to(jnp.arange(len(ids))[:, None], ids.shape)
    return jnp.zeros((len(ids), tower.vocab_size)).at[rows, ids].max(real_words(ids, tower).astype(jnp.float32))


def real_words(ids: Array, tower: config.TokenTower) -> Array:
    """bool [b, L] of ids i32 [b, L]: which are words.

    Begin, end and padding that the configuration names are none; a tokenizer.json may put a begin of its own.
    """
    # An end that is recognised by its id is excluded by it; a text cut before its end ends with a word.
    real = jnp.arange(ids.shape[1])[None] < end_of_text(ids, tower)[:, None] + (tower.eot_id is not None)
    for special in special_ids(tower):
        real = real & (ids != special)
    return real


def special_ids(tower: config.TokenTower) -> list[int]:
    """The ids of begin, end and padding, as far as the configuration names them."""
    how, clip = tower.tokenizer, tower.tokenizer.kind == "clip"
    padding = None if clip else how.pad_id  # of CLIP's texts what is behind the end, for 0 is a word
    named = (how.bos_id, how.eos_id, how.last_id, tower.eot_id, padding, 49406 if clip else None)
    return sorted({id for id in named if id is not None})


def rarity(captions: Array, having: Array) -> Array:
    """log((1 + n) / (1 + n_c)) + 1 of each id c, of n captions of which n_c have it: 1 for all at the start, and never 0."""
    return jnp.log((1 + captions) / (1 + having)) + 1
