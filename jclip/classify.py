"""`jclip classify`: the classes that images are nearest to, by prompts or by a linear probe."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.special import expit, softmax

from jclip.config import ConfigError, architecture_names
from jclip.data import BadExample
from jclip.data.files import read_file
from jclip.data.transforms import MAX_PIXELS, Decode
from jclip.eval import class_embeddings, load_probe, read_entries, read_templates
from jclip.eval.ranks import TIE
from jclip.inference import Encoder, load, tower_digest
from jclip.weights.same import changed_towers

log = logging.getLogger(__name__)


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
    max_pixels: int = MAX_PIXELS,
    **how: Any,
) -> list[dict[str, Any]]:
    """Prints the likeliest classes of each image.

    Args:
        images: files, which are turned as their EXIF data say.
        model: as `jclip.load` takes it.
        labels: the classes; "file:PATH" stands for the lines of a file.
        templates: prompts, as in the config of an evaluation.
        probe: a file of `save_probe`, whose classes are used instead.
        truth: the right class of all images; its rank is printed.
        top: how many classes are printed.
        step: which checkpoint of a workdir.
        as_json: print a JSON object an image instead of tables.
        max_pixels: a larger image is refused before it is decoded.

    Returns:
        For each image {"image", "classes": [[name, score], ...] best first, "rank" and "of" where truth is given}. Scores are
        cosines, or of a probe probabilities (of ridge, its scores).

    Raises:
        ConfigError: there are no classes, truth is none of them, an image cannot be read, or the probe is of another model.
    """
    if bool(labels) == (probe is not None):
        raise ConfigError("classify: give the classes, --labels NAME ..., or a probe, --probe FILE, and not both")
    if top < 1:
        raise ConfigError(f"classify: --top {top} must be at least 1")
    contents = [_read(image, max_pixels) for image in images]
    encoder = load(model, step=step, **how)
    if model in architecture_names() and not Path(model).exists():
        Console(stderr=True, highlight=False).print(f"{model} is an architecture: its weights are random")
    if probe:
        found = _by_probe(encoder, contents, probe, max_pixels)
    else:
        found = _by_prompts(encoder, contents, labels, templates, max_pixels)
    names, scores, unit = found
    if truth is not None and truth not in names:
        raise ConfigError(f"classify: --truth {truth!r} is none of the {len(names)} classes: {', '.join(names[:20])}")
    answers = []
    for image, row in zip(images, scores, strict=True):
        order = np.argsort(-row, kind="stable")
        answer: dict[str, Any] = {"image": str(image), "classes": [[names[i], round(float(row[i]), 6)] for i in order]}
        if truth is not None:  # a tie counts as lost, as in every metric
            answer |= {"rank": int(np.sum(row >= row[names.index(truth)] - TIE)), "of": len(names)}
        answers.append(answer)
        if as_json:
            print(json.dumps({**answer, "classes": answer["classes"][:top]}))
        else:
            Console().print(_table(answer, truth, top, unit))
    return answers


Found = tuple[tuple[str, ...], np.ndarray, str]
"""Names of classes, scores [n, C] of images, and what these are."""


def _read(image: str | Path, max_pixels: int) -> bytes:
    """A file's bytes, which the model's preprocessing can read. Raises ConfigError where it cannot."""
    try:
        content = read_file(image)
        Decode(max_pixels)(content)
    except BadExample as problem:
        raise ConfigError(f"classify: {image}: {problem}") from None
    return content


def _by_prompts(encoder: Encoder, images: list[bytes], labels: Sequence[str], templates: Sequence[str], max_pixels: int) -> Found:
    names = read_entries(labels, "--labels")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"classify: the class {twice[0]!r} is given twice; leave one out")
    prompts = read_templates(tuple(templates))
    texts = [template.replace("{}", name) for name in names for template in prompts]
    classes = class_embeddings(encoder.embed_text(texts).reshape(len(names), len(prompts), -1))
    return names, encoder.embed_image(images, max_pixels=max_pixels) @ classes.T, "cosine"


def _by_probe(encoder: Encoder, images: list[bytes], path: str | Path, max_pixels: int) -> Found:
    probe, names, facts = load_probe(path)
    tower = facts.get("tower", "image")
    if tower not in encoder.model.towers:
        raise ConfigError(f"classify: {path} is a probe of tower {tower!r}; the model has {', '.join(encoder.model.towers)}")
    if facts.get("weights", "") not in ("", tower_digest(encoder.params, tower, encoder.mesh)):
        raise ConfigError(f"classify: {path} was fitted to features of other weights than those of this model; fit it again")
    if "configuration" not in facts:
        log.warning(
            "classify: %s does not say the pixels of its features (an older jclip wrote it): they are taken for these", path
        )
    elif changes := changed_towers({tower: _parsed(path, facts["configuration"])}, {tower: encoder.model.towers[tower]}):
        raise ConfigError(f"classify: {path} was fitted to features of another configuration: {'; '.join(changes)}; fit it again")
    features = getattr(encoder.encode(tower, images, max_pixels=max_pixels), facts.get("features", "pooled"))
    if features.shape[1] != len(probe.weights):
        raise ConfigError(f"classify: {path} takes {len(probe.weights)} features; the model has {features.shape[1]}")
    scores = probe.scores(features)
    if probe.protocol == "ridge":
        return names, scores, "score"
    return names, expit(scores) if facts.get("labels") == "several" else softmax(scores, axis=1), "probability"


def _parsed(path: str | Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"classify: {path}: the configuration of its features is damaged: {error}") from None


def _table(answer: dict[str, Any], truth: str | None, top: int, unit: str) -> Table:
    rank = "" if truth is None else f"   {truth}: rank {answer['rank']} of {answer['of']}"
    table = Table("class", unit, title=Text(f"{answer['image']}{rank}"), title_justify="left", box=None, padding=(0, 2))
    for name, score in answer["classes"][:top]:
        table.add_row(Text(name), f"{score:.4f}")
    return table
