"""The text transformer of BERT's kind: token ids or input embeddings to TowerOutput."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jclip.config import BertTower
from jclip.models.layers import Attention, Block, Dense, Dropout, Hidden, LayerNorm, Mlp, Position, hide, token_at
from jclip.models.output import TowerOutput
from jclip.models.products import broadcast
from jclip.models.text import check_length, end_of_text, mean
from jclip.models.transformer import Transformer


class PostNormBlock(Block):
    """A post-norm transformer block (Vaswani et al. 2017): attention and MLP, each added to its input, and the sum normalised."""

    @nn.compact
    def __call__(self, x: Array, lengths: Array | None, rows: Array | None, at: Position | None = None) -> Array:
        """x [b, l, d] -> [b, l, d], or of the token at one position alone, [b, 1, d]."""
        norm = partial(LayerNorm, self.norm_eps, self.how)
        tokens = x
        if at is not None:
            x = token_at(x, at)
        y = Attention(self.heads, self.residual_scale, self.how, name="attn")(x, tokens, lengths, self.causal)
        x = norm(name="norm1")(x + Dropout(self.dropout)(y, rows))
        y = Mlp(self.hidden, self.activation, self.residual_scale, self.how, name="mlp")(x)
        return norm(name="norm2")(x + Dropout(self.dropout)(y, rows))


class BertTransformer(Transformer):
    """A text transformer (Devlin et al. 2019) with the options of `BertTower`."""

    config: BertTower
    BLOCK: ClassVar[type[Block]] = PostNormBlock

    @nn.compact
    def __call__(
        self, text: Array, eot: Array | None = None, *, rows: Array | None = None, hidden: Hidden | None = None, cut: bool = False
    ) -> TowerOutput:
        """Encodes texts.

        Args:
            text: token ids i32 [b, L], or input embeddings f32 [b, L, width] to which positions and token type are added.
            eot: index of the last token of the text i32 [b]; needed with embeddings, found in ids by the padding otherwise.
            rows: in training, the index of each text in the global batch, for dropout.
            hidden: the tokens that are hidden, bool [b, L], and what stands for their embeddings, f32 [b, width].
            cut: whether rows shorter than context_length have lost nothing but padding, which the tower ignores.

        Raises:
            ValueError: the length is not the tower's, or embeddings come without `eot`.
        """
        c, dtype = self.config, self.how.dtype
        check_length(text, c, cut)
        init, norm = nn.initializers.normal(0.02), partial(LayerNorm, c.norm_eps, self.how)
        table = self.param("token_embed", init, (c.vocab_size, c.width))
        ids = text if text.ndim == 2 else None
        if ids is not None:
            eot = end_of_text(ids, c) if eot is None else eot
            text = table[ids]
        elif eot is None:
            raise ValueError("text: input embeddings need eot, the index of the last token of each text, i32 [b]")
        lengths = eot.astype(jnp.int32) + 1
        mask = jnp.arange(text.shape[1])[None] < lengths[:, None]
        positions = self.param("pos_embed", init, (c.max_positions, c.width))
        kind = self.param("type_embed", init, (c.token_types, c.width))[0]
        x = hide(text, hidden).astype(dtype) + positions_of(positions, (len(text), text.shape[1]), ids, c).astype(dtype)
        x = norm(name="embed_norm")(x + broadcast(kind, text.shape[:2], dtype))
        x, one = self.run_blocks(Dropout(c.dropout)(x, rows), lengths, rows, causal=False, at=None if c.pool == "mean" else 0)
        last: list[Callable[[Array], Array]] = []
        if c.final_norm:
            last.append(norm(name="norm"))
        if c.output_width is not None:
            last.append(Dense(c.output_width, nn.initializers.normal(c.width**-0.5), how=self.how, name="out"))
        for layer in last:
            x, one = layer(x), None if one is None else layer(one)
        if one is None:
            return TowerOutput(mean(x, mask), x, mask)
        if c.pool == "pooler":
            one = jnp.tanh(Dense(one.shape[-1], nn.initializers.normal(c.width**-0.5), how=self.how, name="pooler")(one))
        return TowerOutput(one, x, mask)


def positions_of(table: Array, shape: tuple[int, int], ids: Array | None, config: BertTower) -> Array:
    """Positions of the tokens of texts, [b, L, width].

    With positions_from="pad_id" they count the tokens that are no padding, from pad_id + 1 on, and padding has pad_id, also where
    it stands within a text (fairseq, `make_positions`).

    Args:
        table: f32 [max_positions, width].
        shape: b and L.
        ids: i32 [b, L]; None: embeddings were given, none of which is known to be padding.
        config: of the tower.
    """
    if config.positions_from == "zero":
        return broadcast(table[: shape[1]], shape[:1], table.dtype)
    pad = config.tokenizer.pad_id
    if ids is None:
        return broadcast(table[pad + 1 : pad + 1 + shape[1]], shape[:1], table.dtype)
    real = ids != pad
    return table[jnp.cumsum(real, axis=1) * real + pad]
