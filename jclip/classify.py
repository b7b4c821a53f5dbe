"""`jclip classify`: the classes that images are nearest to, by prompts or by a linear probe, and whether any of them fits."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.special import expit, softmax

from jclip.config import ConfigError, architecture_names
from jclip.config.same import changed_towers
from jclip.data import BadExample
from jclip.data.decoding import MAX_PIXELS, Decode
from jclip.data.files import read_file
from jclip.eval import class_embeddings, load_probe, read_entries, read_templates
from jclip.eval.ranks import TIE
from jclip.inference import Encoder, load, tower_digest

log = logging.getLogger(__name__)

GENERIC = ("a photo.", "a picture.", "an image.")
"""Texts that say nothing of what is in an image."""


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
        cosines, or of a probe probabilities (of ridge, its scores). With prompts there are also "probabilities" in the same
        order, "by", which says how they are made of the cosines ("softmax" or "sigmoid"), and "hint": "" or why perhaps none of
        the classes fits; see `Scores`.

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
    names, scores = found.names, found.scores
    if truth is not None and truth not in names:
        raise ConfigError(f"classify: --truth {truth!r} is none of the {len(names)} classes: {', '.join(names[:20])}")
    answers = []
    for number, (image, row) in enumerate(zip(images, scores, strict=True)):
        order = np.argsort(-row, kind="stable")
        answer: dict[str, Any] = {"image": str(image), "classes": [[names[i], round(float(row[i]), 6)] for i in order]}
        if found.by:
            probabilities = [round(float(found.probabilities[number, i]), 6) for i in order]
            answer |= {"probabilities": probabilities, "by": found.by, "hint": found.hints[number]}
        if truth is not None:  # a tie counts as lost, as in every metric
            answer |= {"rank": int(np.sum(row >= row[names.index(truth)] - TIE)), "of": len(names)}
        answers.append(answer)
        if as_json:
            shown = {key: answer[key][:top] for key in ("classes", "probabilities") if key in answer}
            print(json.dumps({**answer, **shown}))
        else:
            Console().print(_table(answer, truth, top, found.unit))
            if hint := answer.get("hint"):
                Console(highlight=False).print(f"  {hint}", markup=False)
    return answers


class Scores(NamedTuple):
    """Scores of images for classes.

    With prompts, the objective of a model that has one makes probabilities of the cosines. A sigmoid model gives each pair of an
    image and a text its own: where the highest is below 1/2 it takes the image and every one of the texts for strangers. A
    softmax model compares the texts that are given: whatever they are, the probabilities add up to 1. Its logits are, up to a
    constant, the logarithm of how much likelier an image makes a text (van den Oord et al. 2018, section 2.3), and a text that
    says nothing is as likely with any image. So where GENERIC fits better than every class, the image makes each less likely.

    Attributes:
        names: the classes.
        scores: [n, C].
        unit: name of a score.
        probabilities: [n, C], with prompts.
        by: softmax or sigmoid: the model's objective; "" where there are no probabilities.
        hints: of each image, "" or why perhaps no class fits.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    unit: str
    probabilities: np.ndarray = np.zeros((0, 0))
    by: str = ""
    hints: tuple[str, ...] = ()


def _read(image: str | Path, max_pixels: int) -> bytes:
    """A file's bytes, which the model's preprocessing can read. Raises ConfigError where it cannot."""
    try:
        content = read_file(image)
        Decode(max_pixels)(content)
    except BadExample as problem:
        raise ConfigError(f"classify: {image}: {problem}") from None
    return content


def _by_prompts(
    encoder: Encoder, images: list[bytes], labels: Sequence[str], templates: Sequence[str], max_pixels: int
) -> Scores:
    names = read_entries(labels, "--labels")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"classify: the class {twice[0]!r} is given twice; leave one out")
    prompts = read_templates(tuple(templates))
    texts = [template.replace("{}", name) for name in names for template in prompts]
    classes = class_embeddings(encoder.embed_text(texts).reshape(len(names), len(prompts), -1))
    z = encoder.embed_image(images, max_pixels=max_pixels)
    cosines = z @ classes.T
    objective = _objective(encoder.params)
    if objective is None:
        return Scores(names, cosines, "cosine")
    logits = np.exp(float(objective["logit_scale"])) * cosines
    if "logit_bias" in objective:
        found = expit(logits + float(objective["logit_bias"]))
        hints = tuple(_strangers(row.max()) if row.max() < 0.5 else "" for row in found)
        return Scores(names, cosines, "cosine", found, "sigmoid", hints)
    generic = z @ class_embeddings(encoder.embed_text(GENERIC)[None])[0]
    hints = tuple(_says_nothing(a, b) if a < b else "" for a, b in zip(cosines.max(axis=1), generic, strict=True))
    return Scores(names, cosines, "cosine", softmax(logits, axis=1), "softmax", hints)


def _objective(params: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The scale, and the bias where there is one, of the only objective of a model; None where there are several, or none."""
    found = [part for part in params.values() if isinstance(part, Mapping) and "logit_scale" in part]
    return found[0] if len(found) == 1 else None


def _strangers(highest: float) -> str:
    return f"perhaps none fits: the highest probability is {highest:.2g}, below 0.5"


def _says_nothing(highest: float, generic: float) -> str:
    return f'perhaps none fits: the highest cosine is {highest:.4f}, and "{GENERIC[0]}" and the like have {generic:.4f}'


def _by_probe(encoder: Encoder, images: list[bytes], path: str | Path, max_pixels: int) -> Scores:
    probe, names, facts = load_probe(path)
    tower = facts.get("tower", "image")
    if tower not in encoder.config.towers:
        raise ConfigError(f"classify: {path} is a probe of tower {tower!r}; the model has {', '.join(encoder.config.towers)}")
    if facts.get("weights", "") not in ("", tower_digest(encoder.params, tower, encoder.mesh)):
        raise ConfigError(f"classify: {path} was fitted to features of other weights than those of this model; fit it again")
    if "configuration" not in facts:
        log.warning(
            "classify: %s does not say the pixels of its features (an older jclip wrote it): they are taken for these", path
        )
    elif changes := changed_towers({tower: _parsed(path, facts["configuration"])}, {tower: encoder.config.towers[tower]}):
        raise ConfigError(f"classify: {path} was fitted to features of another configuration: {'; '.join(changes)}; fit it again")
    features = getattr(encoder.features(tower, images, max_pixels=max_pixels), facts.get("features", "pooled"))
    if features.shape[1] != len(probe.weights):
        raise ConfigError(f"classify: {path} takes {len(probe.weights)} features; the model has {features.shape[1]}")
    scores = probe.scores(features)
    if probe.protocol == "ridge":
        return Scores(names, scores, "score")
    return Scores(names, expit(scores) if facts.get("labels") == "several" else softmax(scores, axis=1), "probability")


def _parsed(path: str | Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"classify: {path}: the configuration of its features is damaged: {error}") from None


def _table(answer: dict[str, Any], truth: str | None, top: int, unit: str) -> Table:
    rank = "" if truth is None else f"   {truth}: rank {answer['rank']} of {answer['of']}"
    columns = ["class", unit, *([f"probability ({answer['by']})"] if "by" in answer else [])]
    table = Table(*columns, title=Text(f"{answer['image']}{rank}"), title_justify="left", box=None, padding=(0, 2))
    for (name, score), *more in zip(
        answer["classes"][:top], *([answer["probabilities"]] if "by" in answer else []), strict=False
    ):
        table.add_row(Text(name), f"{score:.4f}", *(f"{probability:.4f}" for probability in more))
    return table
