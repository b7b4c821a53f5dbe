"""The robustness table: accuracy on shifted test sets beside a clean one, and against what supervised models reach there."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jclip.config import ConfigError

_EXAMPLES = 10_000  # where the size of a set is not given: accuracies are kept 0.00005 away from 0 and 1


class SetRow(NamedTuple):
    """A test set of the table."""

    set: str
    model: float
    """Accuracy of the model, 0 to 1."""
    baseline: float
    """Accuracy of the baseline; of several, of the one whose clean accuracy is nearest to the model's."""
    difference: float
    """model - baseline."""
    effective: float
    """Effective robustness; 0 for the clean set."""


def robustness_table(
    model: Mapping[str, float],
    baselines: Sequence[Mapping[str, float]],
    clean: str,
    *,
    examples: Mapping[str, int] | None = None,
) -> list[SetRow]:
    """A row for each set of `model`, the clean one first.

    Effective robustness (Taori et al. 2020, section 2) is the accuracy on a shifted set beyond what models without robustness
    reach there at the same clean accuracy,

        effective = shifted - sigmoid(slope * logit(clean) + offset)

    with the line through the baselines' (logit(clean), logit(shifted)), fitted by least squares. Where the baselines do not
    determine a slope, because there is one or all have the same clean accuracy, it is 1, the line through their mean. Accuracies
    of 0 and 1, whose logit is infinite, count as half an example more or less: logit is taken of accuracies within 1 / (2 n) and
    1 - 1 / (2 n), n the number of examples of the set.

    Args:
        model: {set: accuracy}, 0 to 1.
        baselines: the same of one or more supervised models.
        clean: the set that is not shifted.
        examples: {set: number of its examples}; 10,000 for those not in it.

    Raises:
        ConfigError: there is no baseline, a model lacks a set, or an accuracy is not within 0 and 1.
    """
    _check(model, baselines, clean)
    sizes = dict.fromkeys(model, _EXAMPLES) | dict(examples or {})
    logits = {name: np.array([_logit(b[name], sizes[name]) for b in baselines]) for name in model}
    at = _logit(model[clean], sizes[clean])
    nearest = baselines[int(np.argmin(np.abs([b[clean] - model[clean] for b in baselines])))]
    rows = []
    for name in (clean, *(name for name in model if name != clean)):
        slope, offset = _line(logits[clean], logits[name])
        expected = 1 / (1 + np.exp(-(slope * at + offset)))
        effective = 0.0 if name == clean else float(model[name] - expected)
        rows.append(SetRow(name, model[name], nearest[name], model[name] - nearest[name], effective))
    return rows


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the least squares line; slope 1 where the points do not determine one."""
    spread = x - x.mean()
    variance = float(spread @ spread)
    slope = float(spread @ y) / variance if variance > 1e-12 else 1.0
    return slope, float(y.mean() - slope * x.mean())


def _logit(accuracy: float, examples: int) -> float:
    half = 1 / (2 * examples)
    inside = min(max(accuracy, half), 1 - half)
    return float(np.log(inside / (1 - inside)))


def _check(model: Mapping[str, float], baselines: Sequence[Mapping[str, float]], clean: str) -> None:
    if not baselines:
        raise ConfigError("robustness: there is no baseline; give the accuracies of at least one supervised model")
    for who, accuracies in (("the model", model), *((f"baseline {i}", b) for i, b in enumerate(baselines))):
        missing = sorted({clean, *model} - set(accuracies))
        if missing:
            raise ConfigError(f"robustness: {who} has no accuracy on {', '.join(missing)}; it has {', '.join(accuracies)}")
        for name, value in accuracies.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"robustness: {who} has the accuracy {value} on {name}; give fractions, 0 to 1")
