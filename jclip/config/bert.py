"""The dataclass of the text towers of BERT's kind, which multilingual CLIPs and CLAPs have."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from jclip.config.inputs import TokenizerConfig
from jclip.config.ranges import Range, Size
from jclip.config.towers import Activation, Layers, Projection, TokenTower, head_problems, hidden_problems, id_problems


@dataclass(frozen=True)
class BertTower(TokenTower):
    """A text transformer whose blocks end with their norms: BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), XLM-R.

    Each token sees all others of its text, and none of the padding.
    """

    context_length: Annotated[int, Range(least=2, most=2**20)] = 77
    """Number of tokens a text is padded or cut to."""
    vocab_size: Size = 30522
    """Number of token ids."""
    width: Size = 768
    """Size of a token."""
    depth: Layers = 12
    """Number of blocks."""
    heads: Size = 12
    """Attention heads; divides width."""
    mlp_ratio: Annotated[float, Range(above=0, most=1000)] = 4.0
    """Hidden size of the MLP, in widths."""
    activation: Activation = "gelu"
    """gelu is the exact (erf) form."""
    max_positions: Size = 512
    """Learned positions; context_length may be less."""
    positions_from: Literal["zero", "pad_id"] = "zero"
    """Position of the first token: 0 (BERT), or the one behind tokenizer.pad_id, which all padding has (RoBERTa, XLM-R)."""
    token_types: Size = 2
    """Learned embeddings of the segments of a text, of which the first is added to every token (BERT: 2, RoBERTa: 1)."""
    final_norm: bool = False
    """LayerNorm of the last block's tokens once more (AltCLIP)."""
    output_width: Size | None = None
    """Size of what an affine map makes of every token in the end (AltCLIP); None: there is no such map."""
    pool: Literal["pooler", "first", "mean"] = "pooler"
    """Pooling: the first token, as it is or after an affine map and tanh (pooler, BERT's), or the mean of the real tokens."""
    norm_eps: Annotated[float, Range(above=0, most=1)] = 1e-12
    """Epsilon of every LayerNorm (BERT: 1e-12, RoBERTa: 1e-5)."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Probability that training zeroes a number of an embedding, or that attention or MLP adds to a token (BERT: 0.1)."""
    projection: Projection = "linear"
    """Map to the shared space: linear, affine (with a bias), mlp (LAION-CLAP), mlp_gelu (open_clip), residual (MS-CLAP), or none,
    where what is pooled has embed_dim."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Tokenizer, whose pad_id marks padding."""

    causal = False
    eot_id = None

    @property
    def pooled_width(self) -> int:
        """Size of what is pooled, and of a token of the output."""
        return self.output_width or self.width

    @property
    def ignores_padding(self) -> bool:
        """True: attention, positions and pooling see the text alone."""
        return True

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from head_problems(self)
        yield from hidden_problems(self)
        yield from id_problems(self)
        if self.tokenizer.kind == "clip":
            yield ".tokenizer.kind 'clip' pads with the id of a word, '!', and padding is known by its id here; use a vocabulary"
        first = self.tokenizer.pad_id + 1 if self.positions_from == "pad_id" else 0
        if first + self.context_length > self.max_positions:
            least = first + self.context_length
            yield f".max_positions {self.max_positions}: {self.context_length} tokens need {least}; shorten context_length"
