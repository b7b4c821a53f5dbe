"""The dataclasses of a model and its towers; they are stored with the weights."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jclip.config.inputs import Id, Preprocess, TokenizerConfig
from jclip.config.kinds import Kind
from jclip.config.ranges import Range, Size

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

Projection = Literal["linear", "affine", "mlp", "mlp_gelu", "residual", "none"]
"""Maps of what a tower pools to the shared space: linear; affine, with a bias; mlp: two affine maps with ReLU between them, the
first to embed_dim (LAION-CLAP); mlp_gelu: two linear maps with GELU between them, the first to (width + embed_dim) // 2 (texts of
open_clip's multilingual models); residual: LayerNorm(y + W gelu(y)) of a linear map y (MS-CLAP); none, where the width is
embed_dim."""

ImageSize = Size | tuple[Size, Size]
"""Side of a square image, or its height and width, in pixels."""

Layers = Annotated[int, Range(least=1, most=10_000)]

MAX_TOKENS = 2**20
"""Patches of an image: attention has a logit for each pair of them."""

Policy = Literal["none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable"]

Kept = Literal["norm1", "q", "k", "v", "attention", "out", "norm2", "fc1"]
"""Values of a block that can be kept for the backward pass, named as the layers that make them; attention is the input of out."""

Remat = Policy | tuple[Kept, ...]


class Tower(Kind):
    """Base of the dataclasses of towers. The module that computes one, and what is counted of it, is its row of
    `jclip.models.TOWERS`, and what makes an input of an example its row of `jclip.data.INPUTS`."""

    width: int
    """Size of a token."""
    projection: Projection
    """Projection to the shared space."""

    @property
    def pooled_width(self) -> int:
        """Size of what is pooled, and of a token of the output."""
        return self.width

    def input(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of the input of one example."""
        raise NotImplementedError

    def summary(self) -> Mapping[str, Any]:
        """Facts that `jclip info` shows beside its sizes, by name."""
        return {}


class ImageTower(Tower):
    """Base of the towers of images."""

    image_size: ImageSize
    """Side of the square input, or (height, width), in pixels."""
    preprocess: Preprocess
    """Preprocessing of images."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return height_and_width(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of what stands for the image."""
        raise NotImplementedError

    def input(self) -> tuple[tuple[int, ...], str]:
        """Pixels, 0 to 255."""
        return (*self.size, 3), "uint8"

    def summary(self) -> Mapping[str, Any]:
        """Preprocessing."""
        how = self.preprocess
        return {"mean": how.mean, "std": how.std, "resize": how.resize, "interpolation": how.interpolation}


class TokenTower(Tower):
    """Base of the towers of texts, as token ids."""

    context_length: int
    """Number of tokens a text is padded or cut to."""
    vocab_size: int
    """Number of token ids."""
    heads: int
    """Attention heads."""
    norm_eps: float
    """Epsilon of every LayerNorm."""
    dropout: float
    """Probability that training zeroes a number that attention or MLP adds to a token."""
    causal: bool
    """Causal attention: a token sees only the tokens before it."""
    eot_id: int | None
    """Token id that ends a text, where one is known."""
    tokenizer: TokenizerConfig
    """Tokenizer."""

    def input(self) -> tuple[tuple[int, ...], str]:
        """Token ids."""
        return (self.context_length,), "int32"

    def summary(self) -> Mapping[str, Any]:
        """Kind of the tokenizer."""
        return {"tokenizer": self.tokenizer.kind}

    @property
    def ignores_padding(self) -> bool:
        """True where no output depends on how far a text is padded."""
        raise NotImplementedError


@dataclass(frozen=True)
class VisionTower(ImageTower):
    """A vision transformer (Dosovitskiy et al. 2021) as CLIP uses it."""

    image_size: ImageSize = 224
    """Side of the square input, or (height, width), in pixels."""
    patch_size: Size = 16
    """Side of a square patch, in pixels; divides image_size."""
    width: Size = 768
    """Size of a token."""
    depth: Layers = 12
    """Number of blocks."""
    heads: Size = 12
    """Attention heads; divides width."""
    mlp_ratio: Annotated[float, Range(above=0, most=1000)] = 4.0
    """Hidden size of the MLP, in widths."""
    activation: Activation = "gelu"
    """gelu is the exact (erf) form; OpenAI's weights need quick_gelu."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embedding: learned, or fixed 2-D sines and cosines (MoCo v3)."""
    pool: Literal["cls", "avg", "map", "queries"] = "cls"
    """Pooling: class token, mean of the patches, multi-head attention pooling with one learned query, or `queries` of them, whose
    first is pooled and whose others are the tokens of the tower (CoCa)."""
    queries: Annotated[int, Range(least=2, most=2**16)] = 257
    """Queries of pool="queries": one that is pooled, and the tokens (CoCa: 1 and 256; open_clip's: 1 and 255)."""
    query_width: Size | None = None
    """Size of what the queries find; None: width (open_clip's CoCa: embed_dim)."""
    query_heads: Size = 8
    """Attention heads of the queries; divides query_width."""
    class_token: bool = False
    """A class token although something else is pooled (CLIPA); pool="cls" has one always."""
    norm_after_pool: bool = False
    """Last LayerNorm after the pooling instead of before (CLIPA)."""
    stem: tuple[Size, ...] = ()
    """Channels of convolutions before the embedding of patches, an idea of Xiao et al. 2021: windows of 4 by 4 with stride 2 over
    one ring of zeros, the activation, no norm. patch_size still counts pixels of the image; 2 ** len(stem) divides it."""
    pre_norm: bool = True
    """LayerNorm before the first block (CLIP has it, SigLIP and the original ViT do not)."""
    crop: bool = False
    """Leave out the pixels right and below that fill no patch, where it does not divide (SigLIP: 384 pixels in patches of 14)."""
    patch_bias: bool = False
    """Bias of the patch embedding (SigLIP and the original ViT have it, CLIP does not)."""
    norm_eps: Annotated[float, Range(above=0, most=1)] = 1e-5
    """Epsilon of every LayerNorm."""
    patch_dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Fraction of the patches left out in training (FLIP); the number kept is an integer, at least 1."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Probability that training zeroes a number that attention or MLP adds to a token (Vaswani et al. 2017, section 5.4)."""
    layer_scale: Annotated[float, Range(least=0, most=1000)] | None = None
    """Initial value of learned factors on what attention and MLP add to a token (Touvron et al. 2021b); None: there are none."""
    projection: Projection = "linear"
    """Projection to the shared space: linear, affine (with a bias), or none, where width is embed_dim (SigLIP)."""
    preprocess: Preprocess = Preprocess()
    """Preprocessing of images."""

    @property
    def pooled_width(self) -> int:
        """Size of what is pooled, and of a token of the output."""
        return (self.query_width or self.width) if self.pool == "queries" else self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.size
        return height // self.patch_size, width // self.patch_size

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from head_problems(self)
        yield from hidden_problems(self)
        yield from square_problems(self.image_size)
        for name, side in named_sides(self.image_size):
            low = max(1, side // self.patch_size) * self.patch_size
            use = f"use {low} or {low + self.patch_size}"
            if side < self.patch_size or not (self.crop or side % self.patch_size == 0):
                yield f".{name} is not divisible by patch_size {self.patch_size}; {use}"
            elif self.stem and side % self.patch_size:
                yield f".stem sees all pixels, and crop leaves some of {name} out; {use}"
        if math.prod(self.grid) > MAX_TOKENS:
            tokens = f"{math.prod(self.grid):,} tokens; {MAX_TOKENS:,} at most"
            yield f".image_size {self.image_size} in patches of {self.patch_size} is {tokens}"
        if self.patch_size % 2 ** len(self.stem):
            halvings = (self.patch_size & -self.patch_size).bit_length() - 1
            yield f".stem {self.stem}: patch_size {self.patch_size} can be halved {halvings} times; use so many at most"
        if self.pool == "queries" and self.pooled_width % self.query_heads:
            yield f".query_heads {self.query_heads} does not divide the queries' width {self.pooled_width}"
        if self.positions == "sincos" and self.width % 4:
            yield f".width {self.width} is not divisible by 4, which positions='sincos' needs"


@dataclass(frozen=True)
class ResNetTower(ImageTower):
    """CLIP's modified ResNet with attention pooling (Radford et al. 2021, section 2.4): weights in, for use and fine-tuning.

    Its batch normalisation keeps the means and variances that its weights came with, in training as well.
    """

    image_size: ImageSize = 224
    """Side of the square input, or (height, width), in pixels; divisible by 32."""
    layers: tuple[Layers, Layers, Layers, Layers] = (3, 4, 6, 3)
    """Bottleneck blocks of each stage."""
    stem_width: Annotated[int, Range(least=2, most=2**15)] = 64
    """Channels of the stem; the last stage has 32 times as many."""
    heads: Size = 32
    """Attention heads of the pooling; divides width."""
    projection: Projection = "affine"
    """Projection to the shared space: linear, affine (with a bias), or none, where width is embed_dim."""
    preprocess: Preprocess = Preprocess()
    """Preprocessing of images."""

    @property
    def width(self) -> int:  # type: ignore[override]
        """Channels of the last stage."""
        return 32 * self.stem_width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last stage."""
        height, width = self.size
        return height // 32, width // 32

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from head_problems(self)
        yield from square_problems(self.image_size)
        for name, side in named_sides(self.image_size):
            if side % 32:
                low = max(1, side // 32) * 32
                yield f".{name} is not divisible by 32; use {low} or {low + 32}"
        if self.stem_width % 2:
            yield f".stem_width {self.stem_width} is odd; use {self.stem_width - 1} or {self.stem_width + 1}"


@dataclass(frozen=True)
class TextTower(TokenTower):
    """A text transformer of CLIP's kind, whose blocks begin with their norms; BERT's is `BertTower`."""

    context_length: Annotated[int, Range(least=2, most=2**20)] = 77
    """Number of tokens a text is padded or cut to."""
    vocab_size: Size = 49408
    """Number of token ids."""
    width: Size = 512
    """Size of a token."""
    depth: Layers = 12
    """Number of blocks."""
    heads: Size = 8
    """Attention heads; divides width."""
    mlp_ratio: Annotated[float, Range(above=0, most=1000)] = 4.0
    """Hidden size of the MLP, in widths."""
    activation: Activation = "gelu"
    """gelu is the exact (erf) form; OpenAI's weights need quick_gelu."""
    causal: bool = True
    """Causal attention: a token sees only the tokens before it."""
    mask_padding: bool = False
    """Padding mask: attention leaves out padding. Causal towers pooled at the end of text never see it; SigLIP's means to."""
    pool: Literal["eot", "last", "first", "mean", "map", "cls", "cls_legacy"] = "eot"
    """Pooling: at the end of text, the last or first position, mean of the real tokens, attention over them, or a class token
    that sees them all (CoCa); it is behind them, and the tokens of the tower are then those before its last norm. cls_legacy: as
    in open_clip's published CoCa, whose class token sees one token of padding."""
    norm_eps: Annotated[float, Range(above=0, most=1)] = 1e-5
    """Epsilon of every LayerNorm."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Probability that training zeroes a number that attention or MLP adds to a token (Vaswani et al. 2017, section 5.4)."""
    layer_scale: Annotated[float, Range(least=0, most=1000)] | None = None
    """Initial value of learned factors on what attention and MLP add to a token (Touvron et al. 2021b); None: there are none."""
    projection: Projection = "linear"
    """Projection to the shared space: linear, affine (with a bias), or none, where width is embed_dim (SigLIP)."""
    eot_id: Id | None = None
    """Token id that ends a text, at its first place; None: the largest id of the text (CLIP)."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Tokenizer."""

    @property
    def ignores_padding(self) -> bool:
        """True where no output depends on how far a text is padded."""
        return (self.causal or self.mask_padding) and self.pool not in ("last", "cls_legacy")

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from head_problems(self)
        yield from hidden_problems(self)
        yield from id_problems(self)
        if self.tokenizer.kind == "clip" and self.vocab_size != 49408:
            yield f".vocab_size {self.vocab_size} is not that of the clip tokenizer; use 49408"
        if self.tokenizer.kind == "clip" and self.eot_id not in (None, 49407):
            yield f".eot_id {self.eot_id} is not the end of text of the clip tokenizer; use 49407, or None"
        if self.pool in ("cls", "cls_legacy") and not self.causal:
            yield f".causal: pool={self.pool!r} has its class token behind the text, which is not to see it; use causal=True"
        if self.causal and self.pool == "first":
            yield ": pool='first' of a causal tower sees the first token alone; use pool='eot' or causal=False"


@dataclass(frozen=True)
class Model:
    """Named towers, with a projection each."""

    towers: Mapping[str, Tower] = field(default_factory=lambda: {"image": VisionTower(), "text": TextTower()})
    """Towers by name. The names are also the keys of a batch."""
    embed_dim: Size = 512
    """Size of the shared embedding space."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the towers compute in. Parameters, embeddings' norms and the loss are float32 always."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the gradients of kernels leave bfloat16 products, and are summed over the devices: float32 is more exact,
    bfloat16 half of the bytes. Those of all else, and of float32 products, are summed in float32 always."""
    scan: bool = False
    """Compile one block and loop over it (fast compile, less code) instead of unrolling; with mesh.fsdp above 1 always so.
    Unrolled, the last block computes no more than is asked for: where one token is pooled, that token."""
    remat: Remat = "none"
    """Results that a block keeps for the backward pass, beside its input: those of these of its layers, such as ("q", "k", "v",
    "attention", "out"); none keeps all; the others are named as in jax.checkpoint_policies. docs/speed.md says what is fast."""
    attention: Literal["auto", "plain"] = "auto"
    """auto: in bfloat16 on GPUs (NVIDIA's, Ampere or later) and TPUs attention never writes its logits to memory, where it can;
    plain: never so. The result is the same, to bfloat16 rounding."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        for name, tower in self.towers.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in ("key", "problem"):
                yield f".towers.{name}: {name!r} cannot name a tower; use lower-case letters, other than key and problem"
            if tower.projection == "none" and tower.pooled_width != self.embed_dim:
                width = f"width {tower.pooled_width}"
                yield f".towers.{name}.projection 'none' needs {width} to be embed_dim {self.embed_dim}; use 'linear'"


def as_image_size(sides: Any) -> Any:
    """The one form of an image_size that a side, or a pair of height and width, may have: a square is its side. Else as it is."""
    if not isinstance(sides, (tuple, list)):
        return sides
    return sides[0] if len(sides) == 2 and sides[0] == sides[1] else tuple(sides)


def height_and_width(image_size: ImageSize) -> tuple[int, int]:
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def named_sides(image_size: ImageSize) -> Iterator[tuple[str, int]]:
    """Each side, after its name in messages."""
    if isinstance(image_size, int):
        yield f"image_size {image_size}", image_size
        return
    for name, side in zip(("height", "width"), image_size, strict=True):
        yield f"image_size {tuple(image_size)}: {name} {side}", side


def square_problems(image_size: ImageSize) -> Iterator[str]:
    """A square has one form, so that equal towers are equal."""
    if not isinstance(image_size, int) and image_size[0] == image_size[1]:
        yield f".image_size {tuple(image_size)} is a square; use {image_size[0]}"


def head_problems(tower: Any) -> Iterator[str]:
    """Heads of attention that do not divide the width of a tower."""
    if tower.width % tower.heads:
        divisors = [heads for heads in range(1, min(tower.width, 2048) + 1) if tower.width % heads == 0]
        near = sorted(divisors, key=lambda heads: abs(heads - tower.heads))[:2]
        yield f".heads {tower.heads} does not divide width {tower.width}; use {' or '.join(map(str, sorted(near)))}"


def hidden_problems(tower: Any) -> Iterator[str]:
    """An MLP without a hidden unit."""
    if round(tower.mlp_ratio * tower.width) < 1:
        yield f".mlp_ratio {tower.mlp_ratio} of width {tower.width} leaves the MLP no hidden unit; use 4.0"


def id_problems(tower: TokenTower) -> Iterator[str]:
    """Ids of a tower of texts, or of its tokenizer, that are not in its vocabulary."""
    ids = {f"tokenizer.{name}": getattr(tower.tokenizer, name) for name in ("bos_id", "eos_id", "last_id", "strip_id", "pad_id")}
    for name, value in {"eot_id": tower.eot_id, **ids}.items():
        if value is not None and value >= tower.vocab_size:
            yield f".{name} {value} is no id of a vocabulary of {tower.vocab_size}"
