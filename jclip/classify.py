"""`jclip classify`: the classes that images are nearest to, by prompts or by a linear probe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.special import softmax

from jclip.config import ConfigError, architecture_names
from jclip.eval import class_embeddings, load_probe, read_entries, read_templates
from jclip.inference import Encoder, load


def main(
    images: Sequence[str | Path],
    model: str,
    *,
    labels: Sequence[str] = (),
    templates: Sequence[str] = (),
    probe: str | Path | None = None,
    truth: str | None = None,
    top: int = 5,
    step: int | None = None,
    as_json: bool = False,
) -> list[dict[str, Any]]:
    """Prints the likeliest classes of each image.

    Args:
        images: files.
        model: as `jclip.load` takes it.
        labels: the classes; "file:PATH" stands for the lines of a file.
        templates: prompts, as in the config of an evaluation.
        probe: a file of `save_probe`, whose classes are used instead.
        truth: the right class of all images; its rank is printed.
        top: how many classes are printed.
        step: which checkpoint of a workdir.
        as_json: print a JSON object an image instead of tables.

    Returns:
        For each image {"image", "classes": [[name, score], ...] best first, "rank" and "of" where truth is given}. Scores are
        cosines, or probabilities of the probe.

    Raises:
        ConfigError: there are no classes, or truth is none of them.
    """
    if bool(labels) == (probe is not None):
        raise ConfigError("classify: give the classes, --labels NAME ..., or a probe, --probe FILE, and not both")
    if top < 1:
        raise ConfigError(f"classify: --top {top} must be at least 1")
    encoder = load(model, step=step)
    if model in architecture_names() and not Path(model).exists():
        Console(stderr=True, highlight=False).print(f"{model} is an architecture: its weights are random")
    names, scores = _probe_scores(encoder, images, probe) if probe else _prompt_scores(encoder, images, labels, templates)
    if truth is not None and truth not in names:
        raise ConfigError(f"classify: --truth {truth!r} is none of the {len(names)} classes: {', '.join(names[:20])}")
    found = []
    for image, row in zip(images, scores, strict=True):
        order = np.argsort(-row, kind="stable")
        answer: dict[str, Any] = {"image": str(image), "classes": [[names[i], round(float(row[i]), 6)] for i in order]}
        if truth is not None:  # a tie counts as lost, as in every metric
            answer |= {"rank": int(np.sum(row >= row[names.index(truth)])), "of": len(names)}
        found.append(answer)
        if as_json:
            print(json.dumps({**answer, "classes": answer["classes"][:top]}))
        else:
            Console().print(_table(answer, truth, top, "probability" if probe else "cosine"))
    return found


def _prompt_scores(
    encoder: Encoder, images: Sequence[str | Path], labels: Sequence[str], templates: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray]:
    names = read_entries(labels, "--labels")
    prompts = read_templates(tuple(templates))
    texts = [template.replace("{}", name) for name in names for template in prompts]
    classes = class_embeddings(encoder.embed_text(texts).reshape(len(names), len(prompts), -1))
    return names, encoder.embed_image(list(images)) @ classes.T


def _probe_scores(encoder: Encoder, images: Sequence[str | Path], path: str | Path) -> tuple[tuple[str, ...], np.ndarray]:
    probe, names, facts = load_probe(path)
    tower = facts.get("tower", "image")
    if tower not in encoder.model.towers:
        raise ConfigError(f"classify: {path} is a probe of tower {tower!r}; the model has {', '.join(encoder.model.towers)}")
    features = getattr(encoder.encode(tower, (Path(image).read_bytes() for image in images)), facts.get("features", "pooled"))
    if features.shape[1] != len(probe.weights):
        raise ConfigError(f"classify: {path} takes {len(probe.weights)} features; the model has {features.shape[1]}")
    scores = probe.scores(features)
    return names, softmax(scores, axis=1) if probe.protocol != "ridge" else scores


def _table(answer: dict[str, Any], truth: str | None, top: int, unit: str) -> Table:
    rank = "" if truth is None else f"   {truth}: rank {answer['rank']} of {answer['of']}"
    table = Table("class", unit, title=Text(f"{answer['image']}{rank}"), title_justify="left", box=None, padding=(0, 2))
    for name, score in answer["classes"][:top]:
        table.add_row(Text(name), f"{score:.4f}")
    return table
