"""Floating-point operations and tokens of each kind of tower, counted by hand: XLA counts the body of a loop once."""

import math

from jclip.config import (
    BertTower,
    Cnn14Tower,
    HtsatTower,
    Mel,
    ResNetTower,
    SensorTower,
    SpectrogramTower,
    TextTower,
    TokenTower,
    Tower,
    VisionTower,
)
from jclip.models.vit import PatchTower, class_tokens, kept_patches

ONE_TOKEN = ("cls", "cls_legacy", "eot", "first", "last", "pooler")
"""Poolings of a single token."""


def vision_flops(tower: VisionTower, *, tokens: bool = True) -> int:
    """Operations of an image forward; see `TowerKind`."""
    length = kept_patches(tower) + class_tokens(tower)
    total = _patches_flops(tower) + _blocks_flops(tower, length, tokens)
    if tower.pool == "queries":
        queries, width, size = tower.queries, tower.width, tower.pooled_width
        total += 2 * (2 * length * width * size + 2 * queries * size**2 + 2 * queries * length * size)
    return total


def vision_tokens(tower: VisionTower) -> int:
    """Tokens that it returns in training, class token too."""
    return tower.queries - 1 if tower.pool == "queries" else kept_patches(tower) + class_tokens(tower)


def spectrogram_flops(tower: SpectrogramTower, *, tokens: bool = True) -> int:
    """Operations of a sound forward, from its waveform on; see `TowerKind`."""
    length = spectrogram_tokens(tower)
    patches = 2 * math.prod(tower.grid) * math.prod(tower.patch) * tower.width
    return mel_flops(tower.mel, tower.waveform.samples) + patches + _blocks_flops(tower, length, tokens)


def spectrogram_tokens(tower: SpectrogramTower) -> int:
    """Tokens that it returns in training, class token too."""
    return class_tokens(tower) + kept_patches(tower)


def sensor_flops(tower: SensorTower, *, tokens: bool = True) -> int:
    """Operations of what a sensor has measured forward; see `TowerKind`. The extra key is left out: one token of hundreds."""
    patches = 2 * math.prod(tower.grid) * tower.patch_values * tower.width
    return patches + _blocks_flops(tower, sensor_tokens(tower), tokens)


def sensor_tokens(tower: SensorTower) -> int:
    """Tokens that it returns in training, class token too."""
    return class_tokens(tower) + kept_patches(tower)


def mel_flops(mel: Mel, samples: int) -> int:
    """Operations of a log-mel spectrogram: for each frame a real FFT, 2.5 n log2(n), and the product with all filters."""
    bins = mel.n_fft // 2 + 1
    return mel.frames_of(samples) * (round(2.5 * mel.n_fft * math.log2(mel.n_fft)) + 2 * bins * mel.mels)


def htsat_flops(tower: HtsatTower, *, tokens: bool = True) -> int:
    """Spectrogram, patches, blocks, and the merging between stages. The pooling asks for all: without `tokens` it is no less."""
    fused = tower.fused_seconds is not None
    samples = tower.input()[0][0] - 1 if fused else tower.waveform.samples
    total, images, stretched = mel_flops(tower.mel, samples), 4 if fused else 1, tower.spec_size**2 // tower.mel.mels
    if stretched != tower.frames:
        total += images * 2 * stretched * tower.frames * tower.mel.mels
    places, patch, width = tower.sides[0] ** 2, tower.patch_size**2, tower.stem_width
    total += 2 * places * patch * width
    if fused:
        hidden, wide = width // tower.fusion_ratio, tower.spec_size // (3 * tower.patch_size)
        total += 3 * 2 * tower.sides[0] * wide * 3 * patch * width + 2 * 2 * (places + 1) * width * hidden
    for stage, (depth, side) in enumerate(zip(tower.depths, tower.sides, strict=True)):
        size = width * 2**stage
        token = 4 * size**2 + 2 * size * round(tower.mlp_ratio * size) + 2 * tower.window**2 * size
        total += 2 * depth * side**2 * token
        if stage + 1 < len(tower.depths):
            total += 2 * (side // 2) ** 2 * 4 * size * 2 * size
    return total


def htsat_tokens(tower: HtsatTower) -> int:
    """Tokens of the last stage."""
    return tower.sides[-1] ** 2


def cnn14_flops(tower: Cnn14Tower, *, tokens: bool = True) -> int:
    """Spectrogram, convolutions, and the layer behind the pooling, which asks for all: without `tokens` no less."""
    frames, mels, before = tower.frames, tower.mel.mels, 1
    total = mel_flops(tower.mel, tower.waveform.samples) + 2 * tower.width**2
    for channels in tower.channels:
        total += 2 * frames * mels * 9 * (before + channels) * channels
        frames, mels, before = frames // 2, mels // 2, channels
    return total


def cnn14_tokens(tower: Cnn14Tower) -> int:
    """Frames that are left."""
    return tower.tokens


def text_flops(tower: TextTower, *, tokens: bool = True) -> int:
    """Operations of a text forward, padding too; see `TowerKind`."""
    return _blocks_flops(tower, tower.context_length + (tower.pool in ("cls", "cls_legacy")), tokens)


def bert_flops(tower: BertTower, *, tokens: bool = True) -> int:
    """Operations of a text forward, padding too; see `TowerKind`."""
    total = _blocks_flops(tower, tower.context_length, tokens)
    if tower.output_width is not None:
        total += 2 * tower.width * tower.output_width * (tower.context_length if tokens or tower.pool == "mean" else 1)
    return total + (2 * tower.pooled_width**2 if tower.pool == "pooler" else 0)


def text_tokens(tower: TokenTower) -> int:
    """Tokens that it returns, padding too."""
    return tower.context_length


def resnet_flops(tower: ResNetTower, *, tokens: bool = True) -> int:
    """Stem, blocks and attention pooling; a convolution multiplies its whole kernel at each place of its output.

    The pooling asks for all of them: without `tokens` it is no less.
    """
    stem, places = tower.stem_width, math.prod(tower.size) // 4  # both sides are divisible by 32
    total = places * 9 * (3 * stem // 2 + (stem // 2) ** 2 + stem // 2 * stem)
    places, inputs = places // 4, stem
    for stage, blocks in enumerate(tower.layers):
        channels = stem * 2**stage
        for i in range(blocks):
            after = places // 4 if stage > 0 and i == 0 else places
            total += places * (inputs * channels + 9 * channels**2) + after * 4 * channels**2
            total += after * inputs * 4 * channels if i == 0 else 0
            places, inputs = after, 4 * channels
    length, width = places + 1, tower.width
    return 2 * (total + (1 + 2 * length) * width**2 + 2 * length * width)


def resnet_tokens(tower: ResNetTower) -> int:
    """Places of the last stage."""
    return math.prod(tower.grid)


def decoder_flops(decoder: TextTower, images: int, size: int) -> int:
    """Operations of one caption forward through the decoder, logits too, with so many tokens of an image of that size."""
    width, hidden, length = decoder.width, round(decoder.mlp_ratio * decoder.width), decoder.context_length - 1
    token = 4 * width**2 + 2 * width * hidden + 2 * length * width  # of the text
    token += 2 * width**2 + 2 * width * hidden + 2 * images * width  # that attends to the image
    keys = 2 * images * size * width
    return 2 * (decoder.depth * (length * token + keys) + length * width * decoder.vocab_size)


def projection_flops(tower: Tower, embed_dim: int) -> int:
    """Operations of one example forward, from the tower to the shared space."""
    width = tower.pooled_width
    match tower.projection:
        case "none":
            return 0
        case "mlp" | "residual":
            return 2 * (width + embed_dim) * embed_dim
        case "mlp_gelu":
            return 2 * (width + embed_dim) * ((width + embed_dim) // 2)
    return 2 * width * embed_dim


def _blocks_flops(tower: PatchTower | TextTower | BertTower, length: int, tokens: bool) -> int:
    """The blocks with so many tokens in them, and the pooling by one query."""
    width, hidden = tower.width, round(tower.mlp_ratio * tower.width)
    dense = 4 * width * width + 2 * width * hidden
    attention = 2 * length * width  # logits and weighted values of a token
    total = tower.depth * length * 2 * (dense + attention)
    if not tokens and tower.dropout == 0 and tower.pool in ONE_TOKEN:
        total -= (length - 1) * 2 * (dense + attention - 2 * width * width)
    if tower.pool == "map":
        total += 2 * (2 * length * width * width + 2 * length * width + 2 * width * width + 2 * width * hidden)
    return total


def _patches_flops(tower: VisionTower) -> int:
    """The stem and the embedding of all patches: those that training drops are dropped after it."""
    total, places, channels = 0, math.prod(tower.size), 3
    for features in tower.stem:
        places //= 4  # a stem's sides can be halved so often
        total += 2 * places * 16 * channels * features
        channels = features
    patch = tower.patch_size // 2 ** len(tower.stem)
    return total + 2 * math.prod(tower.grid) * channels * patch**2 * tower.width
