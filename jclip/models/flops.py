"""Floating-point operations of the model, counted by hand: XLA counts the body of a loop once."""

import dataclasses
import math
from collections.abc import Collection

from jclip.config import Config, Groups, ResNetTower, TextTower, Tower, VisionTower, groups_of
from jclip.models.vit import class_tokens, kept_patches

ONE_TOKEN = ("cls", "cls_legacy", "eot", "first", "last")
"""Poolings of a single token."""


def towers_flops(config: Config, locked: Collection[str] = ()) -> int:
    """Operations of the towers in a train step, without what is computed again to save memory ("model FLOPs").

    Backward takes twice as many as forward (Kaplan et al. 2020, section 2.1). The `locked` towers, which nothing trains, have no
    backward.
    """
    loop = config.model.scan or config.mesh.fsdp > 1
    total, groups = 0.0, groups_of(config.buckets)
    views, inputs, teachers = config.all_views(), config.inputs(), config.teachers()
    for name in config.encoded_views():
        view = views[name]
        tower = without_dropout(view.seen_by) if name not in inputs or view.tower in teachers else view.seen_by
        forward = sum(share * tower_flops(seen, tokens=loop) for seen, share in in_groups(tower, groups.get(view.tower, ())))
        forward += projection_flops(tower, config.model.embed_dim)
        total += forward * (1 if view.tower in locked else 3)
    return round(config.batch_size * total)


def in_groups(tower: Tower, groups: Groups) -> list[tuple[Tower, float]]:
    """The tower as each group of texts sees it, and the group's share of them."""
    if not isinstance(tower, TextTower):
        return [(tower, 1.0)]
    parts = [(dataclasses.replace(tower, context_length=tokens), share) for tokens, share in groups]
    return [*parts, (tower, 1 - sum(share for _, share in parts))]


def tower_flops(tower: Tower, *, tokens: bool = True) -> int:
    """Operations of one example forward, as in training: patches dropped are not counted.

    Without `tokens` of the pooled output alone: of the last block one token and the keys and values of all, where one is pooled.
    """
    if isinstance(tower, ResNetTower):
        return _resnet_flops(tower)
    if not isinstance(tower, (VisionTower, TextTower)):
        return tower.flops()
    width, hidden = tower.width, round(tower.mlp_ratio * tower.width)
    length, embed = _length(tower)
    dense = 4 * width * width + 2 * width * hidden
    attention = 2 * length * width  # logits and weighted values of a token
    total = embed + tower.depth * length * 2 * (dense + attention)
    if not tokens and tower.dropout == 0 and tower.pool in ONE_TOKEN:
        total -= (length - 1) * 2 * (dense + attention - 2 * width * width)
    if tower.pool == "map":
        total += 2 * (2 * length * width * width + 2 * length * width + 2 * width * width + 2 * width * hidden)
    if isinstance(tower, VisionTower) and tower.pool == "queries":
        queries, size = tower.queries, tower.pooled_width
        total += 2 * (2 * length * width * size + 2 * queries * size**2 + 2 * queries * length * size)
    return total


def without_dropout(tower: Tower) -> Tower:
    """The tower as a teacher, or with patches hidden: no patch is dropped."""
    return dataclasses.replace(tower, patch_dropout=0.0) if isinstance(tower, VisionTower) else tower


def decoder_flops(decoder: TextTower, images: int, size: int) -> int:
    """Operations of one caption forward through the decoder, logits too, with so many tokens of an image of that size."""
    width, hidden, length = decoder.width, round(decoder.mlp_ratio * decoder.width), decoder.context_length - 1
    token = 4 * width**2 + 2 * width * hidden + 2 * length * width  # of the text
    token += 2 * width**2 + 2 * width * hidden + 2 * images * width  # that attends to the image
    keys = 2 * images * size * width
    return 2 * (decoder.depth * (length * token + keys) + length * width * decoder.vocab_size)


def output_tokens(tower: Tower) -> int:
    """Tokens that a tower returns in training, class token and padding too."""
    if isinstance(tower, TextTower):
        return tower.context_length
    if isinstance(tower, ResNetTower):
        return math.prod(tower.grid)
    if not isinstance(tower, VisionTower):
        return tower.output_tokens()
    return tower.queries - 1 if tower.pool == "queries" else kept_patches(tower) + class_tokens(tower)


def projection_flops(tower: Tower, embed_dim: int) -> int:
    """Operations of one example forward, from the tower to the shared space."""
    return 0 if tower.projection == "none" else 2 * tower.pooled_width * embed_dim


def _resnet_flops(tower: ResNetTower) -> int:
    """Stem, blocks and attention pooling; a convolution multiplies its whole kernel at each place of its output."""
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
    tokens, width = places + 1, tower.width
    return 2 * (total + (1 + 2 * tokens) * width**2 + 2 * tokens * width)


def _length(tower: VisionTower | TextTower) -> tuple[int, int]:
    """Tokens in the blocks, and the operations of what makes them."""
    if isinstance(tower, TextTower):
        return tower.context_length + (tower.pool in ("cls", "cls_legacy")), 0
    tokens = kept_patches(tower) + class_tokens(tower)
    total, places, channels = 0, math.prod(tower.size), 3
    for features in tower.stem:
        places //= 4  # a stem's sides can be halved so often
        total += 2 * places * 16 * channels * features
        channels = features
    patch = tower.patch_size // 2 ** len(tower.stem)
    return tokens, total + 2 * math.prod(tower.grid) * channels * patch**2 * tower.width
