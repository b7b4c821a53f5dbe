"""The text transformer: token ids or input embeddings to TowerOutput."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jclip.config import TextTower, TokenTower
from jclip.models.layers import Hidden, LayerNorm, Position, hide
from jclip.models.output import TowerOutput
from jclip.models.products import broadcast
from jclip.models.transformer import Transformer


class TextTransformer(Transformer):
    """A text transformer (Radford et al. 2021, section 2.4) with the options of `TextTower`."""

    config: TextTower

    @nn.compact
    def __call__(
        self, text: Array, eot: Array | None = None, *, rows: Array | None = None, hidden: Hidden | None = None, cut: bool = False
    ) -> TowerOutput:
        """Encodes texts.

        Args:
            text: token ids i32 [b, L], or input embeddings f32 [b, L, width] to which positions are added.
            eot: index of the end of text i32 [b]; needed with embeddings, found in ids by `eot_id` otherwise.
            rows: in training, the index of each text in the global batch, for dropout.
            hidden: the tokens that are hidden, bool [b, L], and what stands for their embeddings, f32 [b, width].
            cut: whether rows shorter than context_length have lost nothing but padding, which the tower ignores.

        Raises:
            ValueError: the length is not the tower's, or embeddings come without `eot`.
        """
        c, dtype = self.config, self.how.dtype
        check_length(text, c, cut)
        length = text.shape[1]
        table = self.param("token_embed", nn.initializers.normal(0.02), (c.vocab_size, c.width))
        if text.ndim == 2:
            eot = end_of_text(text, c) if eot is None else eot
            text = table[text]
        elif eot is None:
            raise ValueError("text: input embeddings need eot, the index of the end of each text, i32 [b]")
        text = hide(text, hidden)
        lengths = eot.astype(jnp.int32) + 1
        mask = jnp.arange(length)[None] < lengths[:, None]
        positions = self.param("pos_embed", nn.initializers.normal(0.01), (c.context_length + class_tokens(c), c.width))
        x = text.astype(dtype) + broadcast(positions[:length], text.shape[:1], dtype)
        norm = LayerNorm(c.norm_eps, self.how, name="norm")
        if class_tokens(c):
            cls = self.param("cls", nn.initializers.normal(0.01), (c.width,)) + positions[-1]
            at, x, lengths = with_class_token(x, cls, lengths, legacy=c.pool == "cls_legacy")
            x, one = self.run_blocks(x, lengths, rows, causal=c.causal, at=at)
            assert one is not None
            return TowerOutput(norm(one), x[:, :length], mask)
        places: dict[str, Position] = {"eot": eot, "first": 0, "last": length - 1}
        x, one = self.run_blocks(x, lengths if c.mask_padding else None, rows, causal=c.causal, at=places.get(c.pool))
        tokens = norm(x)
        if one is not None:
            pooled = norm(one)
        elif c.pool == "map":
            pooled = self.map_pool(tokens, lengths)
        else:
            pooled = mean(tokens, mask)
        return TowerOutput(pooled, tokens, mask)


def check_length(text: Array, config: TokenTower, cut: bool) -> None:
    """Raises ValueError where texts, ids [b, L] or embeddings [b, L, width], have another length than the tower's; those that are
    `cut` may be shorter, where it ignores padding."""
    length = text.shape[1]
    if length != config.context_length and not (cut and length < config.context_length and config.ignores_padding):
        raise ValueError(f"text: length {length} is not context_length {config.context_length}; pad or cut it")


def with_class_token(x: Array, cls: Array, lengths: Array, *, legacy: bool) -> tuple[Position, Array, Array]:
    """Texts with a class token that sees all of a text and itself, and is seen by none of the text.

    It takes the place behind the end of its text, so that the order of causal attention says all of that:

        the   cat   end   CLS   pad   pad        each sees itself and what is left of it; nobody asks for the padding

    Its position is the last nevertheless. In open_clip's CoCa, before the mask was corrected, it stood behind the
    padding, of which it saw the first token, and, where there was padding, not itself; the published weights are of that.

    Args:
        x: [b, L, d].
        cls: f32 [d].
        lengths: i32 [b], of the texts.
        legacy: as it was before it was corrected.

    Returns:
        The place of the class token; the tokens [b, L + 1, d]; how many of them may be attended to, i32 [b].
    """
    length = x.shape[1]
    at: Position = length if legacy else lengths
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    here = jnp.arange(length + 1)[None] == jnp.broadcast_to(at, lengths.shape)[:, None]
    return at, jnp.where(here[:, :, None], broadcast(cls, x.shape[:2], x.dtype), x), lengths + 1


def class_tokens(config: TextTower) -> int:
    """Number of tokens beside those of a text: 1 or 0."""
    return int(config.pool in ("cls", "cls_legacy"))


def end_of_text(ids: Array, config: TokenTower) -> Array:
    """i32 [b] of ids i32 [b, L]: where the first `eot_id` is, or, in texts without, the last that is no padding.

    Without an `eot_id` it is the first of the largest id, as in CLIP, but of a BertTower the last that is no padding.
    """
    if config.eot_id is None and isinstance(config, TextTower):
        return jnp.argmax(ids, axis=1)
    ends = ids == (-1 if config.eot_id is None else config.eot_id)
    last = ids.shape[1] - 1 - jnp.argmax(ids[:, ::-1] != config.tokenizer.pad_id, axis=1)
    return jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1), last)


def mean(tokens: Array, mask: Array) -> Array:
    """Mean of the tokens [b, L, d] where the mask bool [b, L] is True: [b, d]."""
    weights = mask.astype(tokens.dtype)[:, :, None]
    return (tokens * weights).sum(axis=1) / weights.sum(axis=1)
