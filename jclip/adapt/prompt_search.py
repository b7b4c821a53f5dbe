"""Prompt search without training: the templates, and names of classes, whose classifier is best on validation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jclip.adapt.heads import linear_head
from jclip.adapt.prompts import fill, read_by_class
from jclip.adapt.task import Fitted, Task
from jclip.config.adapt_methods import PromptSearch
from jclip.eval.templates import read_templates
from jclip.eval.zero_shot import class_embeddings

Score = Callable[[np.ndarray], float]
"""Prompts' unit vectors [C, T, E] -> accuracy of the classifier that they make."""


def fit_prompts(method: PromptSearch, task: Task) -> Fitted:
    """The classifier of the best ensemble found, with the best names found; nothing is trained."""
    templates = read_templates(method.templates)

    def score(z: np.ndarray) -> float:
        return task.selection.score(linear_head(class_embeddings(z), task.scale))

    names = list(task.names)
    z = encoded(task, templates, names)
    chosen, curve = forward(z, score, method.most)
    picked = tuple(templates[i] for i in chosen)
    facts: dict[str, Any] = {"templates": list(picked), "accuracy": curve[-1]}
    z = z[:, chosen]
    if method.names:
        names, z, facts["accuracy"] = best_names(task, picked, z, read_by_class(method.names, task.names), score)
        facts["names"] = {old: new for old, new in zip(task.names, names, strict=True) if old != new}
    details = {"curve": {"x_name": "templates", "x": list(range(1, len(curve) + 1)), "y": curve}}
    return Fitted(linear_head(class_embeddings(z), task.scale), 0, facts, details=details)


def encoded(task: Task, templates: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Unit vectors [C, T, E] of every template with every name."""
    z = task.encode.texts([text for name in names for text in fill(templates, name)])
    return z.reshape(len(names), len(templates), -1)


def forward(z: np.ndarray, score: Score, most: int) -> tuple[list[int], list[float]]:
    """Templates of the best ensemble by forward selection, and the accuracy after each.

    The template that helps most is added, of equally good ones the first, as long as it helps, and at most `most`.
    """
    chosen, curve = list[int](), list[float]()
    while len(chosen) < min(most, z.shape[1]):
        left = [i for i in range(z.shape[1]) if i not in chosen]
        scores = [score(z[:, [*chosen, i]]) for i in left]
        best = int(np.argmax(scores))
        if curve and scores[best] <= curve[-1]:
            break
        chosen.append(left[best])
        curve.append(scores[best])
    return chosen, curve


def best_names(
    task: Task, templates: Sequence[str], z: np.ndarray, choices: Sequence[Sequence[str]], score: Score
) -> tuple[list[str], np.ndarray, float]:
    """Names of the classes, their prompts [C, T, E] and the accuracy: each class in turn takes the best."""
    names, found = list(task.names), score(z)
    for c, others in enumerate(choices):
        if not (fresh := [name for name in dict.fromkeys(others) if name not in names]):
            continue
        tried = encoded(task, templates, fresh)
        for name, own in zip(fresh, tried, strict=True):
            changed = z.copy()
            changed[c] = own
            if (value := score(changed)) > found:
                names[c], z, found = name, changed, value
    return names, z, found
