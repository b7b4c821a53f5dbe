"""The dataclasses of a model: its towers, and how their inputs are made; all of it is stored with the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

Projection = Literal["linear", "affine", "none"]

Remat = Literal["none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable"]


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes pixels; stored with the weights, because the weights are only good for it."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of each RGB channel, in units of 0 to 1 (default: OpenAI CLIP)."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of each RGB channel, in units of 0 to 1 (default: OpenAI CLIP)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of every resize, antialiased, on uint8."""
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    """shortest: shorter side to the image size, then centre crop; longest: longer side to it, then pad; squash: both sides."""
    fill: int = 0
    """Grey value (0 to 255) of the padding of `longest`."""


@dataclass(frozen=True)
class Tokenizer:
    """How a text becomes token ids; stored with the weights, because the weights are only good for it."""

    kind: Literal["clip", "sentencepiece", "hugging_face"] = "clip"
    """clip: OpenAI's byte-pair encoding, 49,408 ids; sentencepiece and hugging_face read a vocabulary from `file`."""
    file: str = ""
    """A sentencepiece model, or a tokenizer.json."""
    sha256: str = ""
    """Of that file, hexadecimal; another file is refused. Empty: any."""
    clean: Literal["none", "whitespace", "lower", "canonicalize", "siglip", "siglip2"] = "lower"
    """whitespace: mend mojibake and HTML, single spaces; lower: also lower case; canonicalize: also no punctuation (open_clip).
    siglip, siglip2: as transformers' tokenizers of these names."""
    bos_id: int | None = None
    """Put before the ids."""
    eos_id: int | None = None
    """Put after the ids."""
    last_id: int | None = None
    """Put at the last position, behind the padding (CLIPS). With one of these three, a tokenizer.json puts nothing itself."""
    pad_id: int = 0
    """Fills what is left of context_length."""
    strip_id: int | None = None
    """Id that is replaced by 0 in the end (CLIPA's end of text)."""


@dataclass(frozen=True)
class VisionTower:
    """A vision transformer (Dosovitskiy et al. 2021) as CLIP uses it."""

    image_size: int = 224
    """Side of the square input, in pixels."""
    patch_size: int = 16
    """Side of a square patch, in pixels; divides image_size."""
    width: int = 768
    """Size of a token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads; divides width."""
    mlp_ratio: float = 4.0
    """Hidden size of the MLP, in widths."""
    activation: Activation = "gelu"
    """gelu is the exact (erf) form; OpenAI's weights need quick_gelu."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embedding: learned, or fixed 2-D sines and cosines (MoCo v3)."""
    pool: Literal["cls", "avg", "map"] = "cls"
    """Pooling: class token, mean of the patches, or multi-head attention pooling with one learned query."""
    class_token: bool = False
    """A class token although something else is pooled (CLIPA); pool="cls" has one always."""
    norm_after_pool: bool = False
    """Last LayerNorm after the pooling instead of before (CLIPA)."""
    stem: tuple[int, ...] = ()
    """Channels of convolutions before the embedding of patches, an idea of Xiao et al. 2021: windows of 4 by 4 with stride 2 over
    one ring of zeros, the activation, no norm. patch_size still counts pixels of the image; 2 ** len(stem) divides it."""
    pre_norm: bool = True
    """LayerNorm before the first block (CLIP has it, SigLIP and the original ViT do not)."""
    crop: bool = False
    """Leave out the pixels right and below that fill no patch, where it does not divide (SigLIP: 384 pixels in patches of 14)."""
    patch_bias: bool = False
    """Whether the embedding of a patch has a bias (SigLIP and the original ViT have it, CLIP does not)."""
    norm_eps: float = 1e-5
    """Epsilon of every LayerNorm."""
    patch_dropout: float = 0.0
    """Fraction of the patches left out in training (FLIP); the number kept is an integer, at least 1."""
    dropout: float = 0.0
    """Probability that training zeroes a number that attention or MLP adds to a token (Vaswani et al. 2017, section 5.4)."""
    layer_scale: float | None = None
    """Initial value of learned factors on what attention and MLP add to a token (Touvron et al. 2021b); None: there are none."""
    projection: Projection = "linear"
    """To the shared space: linear, affine (with a bias), or none, where width is embed_dim (SigLIP)."""
    preprocess: Preprocess = Preprocess()
    """How images become pixels."""

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ResNetTower:
    """CLIP's modified ResNet with attention pooling (Radford et al. 2021, section 2.4): weights in, for use and fine-tuning.

    Its batch normalisation keeps the means and variances that its weights came with, in training as well.
    """

    image_size: int = 224
    """Side of the square input, in pixels; divisible by 32."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottleneck blocks of each stage."""
    stem_width: int = 64
    """Channels of the stem; the last stage has 32 times as many."""
    heads: int = 32
    """Attention heads of the pooling; divides width."""
    projection: Projection = "affine"
    """To the shared space: linear, affine (with a bias), or none, where width is embed_dim."""
    preprocess: Preprocess = Preprocess()
    """How images become pixels."""

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return 32 * self.stem_width

    @property
    def grid(self) -> int:
        """Places along a side of the last stage."""
        return self.image_size // 32


@dataclass(frozen=True)
class TextTower:
    """A text transformer."""

    context_length: int = 77
    """Number of tokens a text is padded or cut to."""
    vocab_size: int = 49408
    """Number of token ids."""
    width: int = 512
    """Size of a token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 8
    """Attention heads; divides width."""
    mlp_ratio: float = 4.0
    """Hidden size of the MLP, in widths."""
    activation: Activation = "gelu"
    """gelu is the exact (erf) form; OpenAI's weights need quick_gelu."""
    causal: bool = True
    """Whether a token sees only the tokens before it."""
    mask_padding: bool = False
    """Whether attention leaves out padding. Causal towers pooled at the end of text never see it; SigLIP's means to."""
    pool: Literal["eot", "last", "first", "mean", "map"] = "eot"
    """Pooling: at the end of text, the last or first position, mean of the real tokens, or attention over them."""
    norm_eps: float = 1e-5
    """Epsilon of every LayerNorm."""
    dropout: float = 0.0
    """Probability that training zeroes a number that attention or MLP adds to a token (Vaswani et al. 2017, section 5.4)."""
    layer_scale: float | None = None
    """Initial value of learned factors on what attention and MLP add to a token (Touvron et al. 2021b); None: there are none."""
    projection: Projection = "linear"
    """To the shared space: linear, affine (with a bias), or none, where width is embed_dim (SigLIP)."""
    eot_id: int | None = None
    """Token id that ends a text, at its first place; None: the largest id of the text (CLIP)."""
    tokenizer: Tokenizer = Tokenizer()
    """How texts become token ids."""


ImageTower = VisionTower | ResNetTower

Tower = ImageTower | TextTower


@dataclass(frozen=True)
class Model:
    """Named towers, with a projection each."""

    towers: Mapping[str, Tower] = field(default_factory=lambda: {"image": VisionTower(), "text": TextTower()})
    """Towers by name. The names are also the keys of a batch."""
    embed_dim: int = 512
    """Size of the shared embedding space."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the towers compute in. Parameters, embeddings' norms and the loss are float32 always."""
    scan: bool = False
    """Compile one block and loop over it (fast compile, less code) instead of unrolling; with mesh.fsdp above 1 always so.
    Unrolled, the last block computes no more than is asked for: where one token is pooled, that token."""
    remat: Remat = "none"
    """What a block keeps for the backward pass: none keeps all; the others are named as in jax.checkpoint_policies."""
    attention: Literal["auto", "plain"] = "auto"
    """auto: in bfloat16 on GPUs (NVIDIA's, Ampere or later) and TPUs attention never writes its logits to memory, where it can;
    plain: never so. The result is the same, to bfloat16 rounding."""
