"""Text buckets: how many tokens of a text a tower sees in training, where texts are shorter than its context."""

from collections.abc import Iterator, Mapping
from typing import Annotated

from jclip.config.evals import Count
from jclip.config.ranges import Range
from jclip.config.towers import TextTower, TokenTower, Tower

Bucket = tuple[str, Count, Annotated[float, Range(above=0, most=1)]]
"""(text tower, tokens, share of a device's rows)."""

Groups = tuple[tuple[int, float], ...]
"""(tokens, share of a device's rows) of each group of texts but the last, which has the rest; shortest first."""


def groups_of(buckets: tuple[Bucket, ...]) -> dict[str, Groups]:
    """The groups of each text tower that has buckets."""
    groups: dict[str, Groups] = {}
    for tower, tokens, share in buckets:
        groups[tower] = (*groups.get(tower, ()), (tokens, share))
    return groups


def bucket_problems(buckets: tuple[Bucket, ...], towers: Mapping[str, Tower]) -> Iterator[str]:
    """Contradictions of buckets with the towers of a model, and among themselves."""
    for name, groups in groups_of(buckets).items():
        tower, at = towers.get(name), f".buckets: {name}"
        lengths, share = [tokens for tokens, _ in groups], sum(share for _, share in groups)
        if not isinstance(tower, TokenTower):
            yield f"{at} is no text tower of the model; towers: {', '.join(towers)}"
        elif not tower.ignores_padding:
            yield f"{at} sees its padding, on which its output depends; give it causal or mask_padding, or another pool"
        elif tower.dropout:
            yield f"{at} draws its dropout for padding too; leave dropout 0"
        elif isinstance(tower, TextTower) and tower.eot_id is None and tower.tokenizer.kind != "clip":
            yield f"{at} has no eot_id, so that a word in place of another could end a text elsewhere; give it one"
        elif lengths != sorted(set(lengths)):
            yield f"{at} has groups of {', '.join(map(str, lengths))} tokens; give each once, the shortest first"
        elif lengths[-1] >= tower.context_length:
            yield f"{at} {lengths[-1]}: the last group, of {tower.context_length} tokens, is there by itself; leave it out"
        elif share > 1 + 1e-6:
            yield f"{at} has shares of {share:g} together; they are at most 1"
