"""How many floating-point operations the model needs, counted by hand: XLA counts the body of a loop once."""

from jclip.config import Config, TextTower, Tower, VisionTower
from jclip.models.vit import kept_patches


def step_flops(config: Config) -> int:
    """Of the matrix products of a train step, without what is computed again to save memory ("model FLOPs").

    Backward takes twice as many as forward (Kaplan et al. 2020, section 2.1), but in the loss, where both directions and both
    passes together take 4 B^2 E multiply-adds.
    """
    model = config.model
    forward = sum(tower_flops(tower) + 2 * tower.width * model.embed_dim for tower in model.towers.values())
    loss = 8 * config.batch_size**2 * model.embed_dim
    return 3 * config.batch_size * forward + loss * len(config.pairs)


def tower_flops(tower: Tower) -> int:
    """Of one example forward, as in training: patches dropped are not counted."""
    width, hidden = tower.width, round(tower.mlp_ratio * tower.width)
    length, embed = _length(tower)
    dense = 4 * width * width + 2 * width * hidden
    attention = 2 * length * width  # logits and weighted values of a token
    total = embed + tower.depth * length * 2 * (dense + attention)
    if tower.pool == "map":
        total += 2 * (2 * length * width * width + 2 * length * width + 2 * width * width + 2 * width * hidden)
    return total


def _length(tower: Tower) -> tuple[int, int]:
    """Tokens in the blocks, and the operations of what makes them."""
    if isinstance(tower, TextTower):
        return tower.context_length, 0
    assert isinstance(tower, VisionTower)
    tokens = kept_patches(tower) + (1 if tower.pool == "cls" else 0)
    return tokens, 2 * tower.grid**2 * 3 * tower.patch_size**2 * tower.width
