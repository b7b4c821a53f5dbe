"""The caption decoder: from the tokens of a text and of its image to the features that predict the next token."""

from dataclasses import replace
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jclip.config import Caption, Model, TextTower
from jclip.models.compute import Compute
from jclip.models.layers import Attention, Block, Dropout, LayerNorm, LayerScale, Mlp, Position
from jclip.models.transformer import Transformer
from jclip.tree import flatten


class DecoderBlock(Block):
    """A block of the text, and behind it one whose attention is to the tokens of the image."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        lengths: Array | None,
        rows: Array | None,
        at: Position | None = None,
        images: Array | None = None,
    ) -> Array:
        """See Block; x [b * m, l, d], `images` [b, n, any], or None where the cache has their keys and values."""
        x = super().__call__(x, lengths, rows, at)
        norm = partial(LayerNorm, self.norm_eps, self.how)
        tokens = None if images is None else norm(name="cross_norm_kv")(images)
        y = Attention(self.heads, self.residual_scale, self.how, name="cross_attn")(norm(name="cross_norm1")(x), tokens)
        x = x + Dropout(self.dropout)(LayerScale(self.layer_scale, name="cross_scale1")(y), rows)
        y = norm(name="cross_norm2")(x)
        y = Mlp(self.hidden, self.activation, self.residual_scale, self.how, name="cross_mlp")(y)
        return x + Dropout(self.dropout)(LayerScale(self.layer_scale, name="cross_scale2")(y), rows)


class CaptionDecoder(Transformer):
    """The second half of CoCa's text decoder (Yu et al. 2022, section 3.2), the half that sees the image.

    The first half is the text tower; see `decoder_config`.
    """

    config: TextTower
    BLOCK: ClassVar[type[Block]] = DecoderBlock

    @nn.compact
    def __call__(self, text: Array, images: Array, *, rows: Array | None = None) -> tuple[Array, Array]:
        """See the class.

        Args:
            text: tokens of a causal text tower [b * m, l, d]: m captions of each image side by side.
            images: tokens of an image tower [b, n, any].
            rows: in training, the index of each text in the global batch, for dropout.

        Returns:
            Features [b * m, l, d], and the vocabulary f32 [d, V]; their product is the logits of the token after each.
        """
        c = self.config
        x, _ = self.run_blocks(text.astype(self.how.dtype), None, rows, causal=True, context=(images,))
        vocabulary = self.param("vocabulary", nn.initializers.normal(c.width**-0.5), (c.width, c.vocab_size))
        return LayerNorm(c.norm_eps, self.how, name="norm")(x), vocabulary


def decoder_config(how: Caption, text: TextTower) -> TextTower:
    """The decoder's sizes and options: those of the text tower, but for the depth and the heads."""
    return replace(text, depth=how.depth or text.depth, heads=how.heads or text.heads)


def caption_decoder(how: Caption, model: Model, compute: Compute) -> CaptionDecoder:
    """The decoder of an objective whose views bear the names of towers."""
    text = model.towers[how.text]
    assert isinstance(text, TextTower)
    return CaptionDecoder(decoder_config(how, text), compute)


def decoder_shapes(how: Caption, model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes of the decoder's parameters, by path; nothing is allocated."""
    decoder = caption_decoder(how, model, Compute())
    text = jax.ShapeDtypeStruct((1, 2, decoder.config.width), jnp.float32)
    images = jax.ShapeDtypeStruct((1, 1, model.towers[how.image].pooled_width), jnp.float32)
    made = jax.eval_shape(lambda *tokens: decoder.init(jax.random.key(0), *tokens)["params"], text, images)
    return {path: leaf.shape for path, leaf in flatten(made).items()}
