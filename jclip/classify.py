"""`jclip classify`: the classes that images or sounds are nearest to, by prompts or a probe, and whether any of them fits."""

import csv
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from scipy.special import expit, softmax

from jclip.config import ConfigError, SoundTower
from jclip.config.same import changed_towers
from jclip.data.decoding import MAX_PIXELS
from jclip.data.pictures import example_files, read_pictures, read_sounds
from jclip.embedding import Embedding
from jclip.eval import class_embeddings, load_probe, read_entries, read_templates
from jclip.eval.labels import require_words
from jclip.eval.ranks import TIE
from jclip.eval.templates import DEFAULT, OF_SOUNDS
from jclip.files import is_adapted
from jclip.inference import Encoder, load, tower_digest

log = logging.getLogger(__name__)

GENERIC = {"image": ("a photo.", "a picture.", "an image."), "sound": ("a sound.", "a recording.", "an audio clip.")}
"""Texts that say nothing of what is in an image, or in a sound."""

TABLES = 10
"""Images or sounds of which each has a table of its own on the terminal; of more each has a line."""

Kind = Literal["image", "sound"]
"""Kind of the files that are classified; the name of a file's path in an answer."""

Answer = dict[str, Any]
"""Classes of an image or a sound, or why it has none; see `main`."""


def main(
    images: Sequence[str | Path],
    model: str | Path | Encoder,
    *,
    labels: Sequence[str] = (),
    templates: Sequence[str] = (),
    probe: str | Path | None = None,
    truth: str | None = None,
    top: int = 5,
    batch_size: int = 64,
    out: str | Path | None = None,
    as_json: bool = False,
    step: int | None = None,
    max_pixels: int = MAX_PIXELS,
    **how: Any,
) -> list[Answer]:
    """Prints the likeliest classes of each image, or of each sound.

    Args:
        images: files, folders and globs, as `example_files` takes them: all of images, turned as their EXIF data say, or all of
            sounds, of which the model hears as much as its waveform has.
        model: as `jclip.load` takes it.
        labels: the classes; "file:PATH" stands for the lines of a file. An adapted model has its own.
        templates: prompts, as in the config of an evaluation.
        probe: a file of `save_probe`, whose classes are used instead.
        truth: the right class of all of them; its rank is printed.
        top: how many classes are listed.
        batch_size: images or sounds a batch.
        out: file that gets a line for each, in place of the terminal: a table where its name ends in .csv or .tsv, else JSON.
        as_json: print a JSON object for each instead of tables.
        step: which checkpoint of a workdir.
        max_pixels: a larger image is refused before it is decoded.
        how: further arguments of `jclip.load`.

    Returns:
        For each {"image" or "sound": its path, "classes": [[name, score], ...] the `top` best first, "rank" and "of" where truth
        is given}.
        Scores are cosines, or of a probe probabilities (of ridge, its scores). With prompts there are also "probabilities" in the
        same order, "by", which says how they are made of the cosines ("softmax" or "sigmoid"), and "hint": "" or why perhaps none
        of the classes fits; see `Scores`. Of one that cannot be read the path and "problem": it is said, and the others go on.

    Raises:
        ConfigError: there are no classes, truth is none of them, a number is out of range, no file can be read, the model has no
            tower of images or sounds, or the probe is of another model.
        SourceError: a folder has no images and no sounds, a glob matches none, or there are both.
    """
    adapted = model.adapted is not None if isinstance(model, Encoder) else is_adapted(model)
    own = not labels and probe is None and adapted
    if bool(labels) == (probe is not None) and not own:
        raise ConfigError("classify: give the classes, --labels NAME ..., or a probe, --probe FILE, and not both")
    if min(top, batch_size) < 1:
        raise ConfigError(f"classify: --top {top} and --batch-size {batch_size} must be at least 1")
    (paths, kind), say = example_files(images), Console(emoji=False, stderr=True, highlight=False, markup=False)
    starts = range(0, len(paths), batch_size)
    batches = (_read(paths[start : start + batch_size], kind, max_pixels) for start in starts)
    first = next(batches)  # before the model is loaded, which takes longer
    if len(starts) == 1 and all("problem" in answer for answer in first.answers):
        raise ConfigError(f"classify: {_none(first.answers, kind)}")
    encoder = load(model, step=step, **how)
    seen = Inputs(kind, encoder, max_pixels)
    classifier = _by_head(seen) if own else _by_probe(seen, probe) if probe else _by_prompts(seen, labels, templates)
    if truth is not None and truth not in classifier.names:
        known = ", ".join(classifier.names[:20])
        raise ConfigError(f"classify: --truth {truth!r} is none of the {len(classifier.names)} classes: {known}")
    titled = track(chain([first], batches), f"{len(paths):,} {kind}s", len(starts), console=say, disable=len(starts) < 2)
    answers = _show(titled, AnswerForm(classifier, kind, top, truth), out, as_json, len(paths), say)
    _sum_up(answers, kind, out, say)
    return answers


def _sum_up(answers: list[Answer], kind: Kind, out: str | Path | None, say: Console) -> None:
    """Says how many were classified, where some were not, or all went to a file; raises ConfigError where none was."""
    broken = [answer for answer in answers if "problem" in answer]
    if len(broken) == len(answers):
        raise ConfigError(f"classify: {_none(broken, kind)}")
    if broken or out is not None:
        where = "" if out is None else f", written to {out}"
        say.print(f"{len(answers) - len(broken):,} of {len(answers):,} {kind}s classified{where}", soft_wrap=True)


class Unclassified(NamedTuple):
    """Images or sounds, and what is known of them before they are classified."""

    answers: list[Answer]
    """An answer for each, in order: its path, and "problem" of one that cannot be read."""
    contents: list[bytes]
    """The bytes of those that can be read, in order."""


class Inputs(NamedTuple):
    """Files as a model sees them."""

    kind: Kind
    encoder: Encoder
    max_pixels: int

    @property
    def tower(self) -> str:
        """The tower. Raises ConfigError where the model has none for these files, or several."""
        return self.encoder.sound_tower if self.kind == "sound" else self.encoder.image_tower

    def features(self, contents: list[bytes], tower: str) -> Embedding:
        """Features of the contents of files by a tower."""
        return self.encoder.features(tower, contents, max_pixels=self.max_pixels)


class Scores(NamedTuple):
    """Scores of images or sounds for classes.

    With prompts, the objective of a model that has one makes probabilities of the cosines. A sigmoid model gives each pair of an
    image and a text its own: where the highest is below 1/2 it takes the image and every one of the texts for strangers. A
    softmax model compares the texts that are given: whatever they are, the probabilities add up to 1. Its logits are, up to a
    constant, the logarithm of how much likelier an image makes a text (van den Oord et al. 2018, section 2.3), and a text that
    says nothing is as likely with any image. So where GENERIC fits better than every class, the image makes each less likely.

    Attributes:
        scores: [n, C].
        probabilities: [n, C], with prompts.
        hints: of each image, "" or why perhaps no class fits.
    """

    scores: np.ndarray
    probabilities: np.ndarray = np.zeros((0, 0))
    hints: tuple[str, ...] = ()


class Classifier(NamedTuple):
    """Classes, and a function that scores images or sounds for them."""

    names: tuple[str, ...]
    """The classes."""
    score: Callable[[list[bytes]], Scores]
    """Contents of files -> their scores."""
    unit: str = "cosine"
    """Name of a score."""
    by: str = ""
    """softmax or sigmoid: the model's objective; "" where there are no probabilities."""


class AnswerForm(NamedTuple):
    """Form of the answers."""

    classifier: Classifier
    kind: Kind
    top: int
    """Classes that are listed."""
    truth: str | None
    """The right class."""

    def answers(self, batch: Unclassified) -> Iterator[Answer]:
        """Whole answers of a batch, in order."""
        if not batch.contents:
            yield from batch.answers
            return
        names, by = self.classifier.names, self.classifier.by
        found = self.classifier.score(batch.contents)
        rows = iter(range(len(batch.contents)))
        for answer in batch.answers:
            if "problem" in answer:
                yield answer
                continue
            number = next(rows)
            row = found.scores[number]
            order = np.argsort(-row, kind="stable")[: self.top]
            answer |= {"classes": [[names[i], round(float(row[i]), 6)] for i in order]}
            if by:
                probabilities = [round(float(found.probabilities[number, i]), 6) for i in order]
                answer |= {"probabilities": probabilities, "by": by, "hint": found.hints[number]}
            if self.truth is not None:  # a tie counts as lost, as in every metric
                answer |= {"rank": int(np.sum(row >= row[names.index(self.truth)] - TIE)), "of": len(names)}
            yield answer

    def printer(self, sink: IO[str] | None, as_json: bool, suffix: str, count: int) -> Callable[[Answer], None]:
        """Function that shows an answer: as a line of the file `sink`, or on the terminal.

        Args:
            sink: where lines go, or None.
            as_json: whether the terminal gets JSON.
            suffix: of the file.
            count: of all images or sounds.
        """
        if sink is not None and suffix in (".csv", ".tsv"):
            table = csv.DictWriter(sink, self._columns(), restval="", dialect="excel-tab" if suffix == ".tsv" else "excel")
            table.writeheader()
            return lambda answer: table.writerow(self._cells(answer))
        if sink is not None or as_json:
            return lambda answer: print(json.dumps(answer), file=sink, flush=sink is None)
        return self._print_table if count <= TABLES else self._print_line

    def _columns(self) -> list[str]:
        """Columns of a table: of the file, then of each class that is listed."""
        own = [self.kind, "problem", *["hint"] * bool(self.classifier.by), *["rank"] * (self.truth is not None)]
        columns = ["class", self.classifier.unit, *["probability"] * bool(self.classifier.by)]
        places = range(1, 1 + min(self.top, len(self.classifier.names)))
        return own + [f"{name}_{place}" for place in places for name in columns]

    def _cells(self, answer: Answer) -> dict[str, Any]:
        cells: dict[str, Any] = {name: answer[name] for name in (self.kind, "problem", "hint", "rank") if name in answer}
        for place, (name, score) in enumerate(answer.get("classes", ()), 1):
            cells |= {f"class_{place}": name, f"{self.classifier.unit}_{place}": score}
        for place, probability in enumerate(answer.get("probabilities", ()), 1):
            cells[f"probability_{place}"] = probability
        return cells

    def _print_line(self, answer: Answer) -> None:
        if "problem" in answer:
            return
        (name, score), *_ = answer["classes"]
        words = [f"{name}, {self.classifier.unit} {score:.4f}"]
        words += [f"probability {answer['probabilities'][0]:.4f}"] if "by" in answer else []
        words += [f"{self.truth}: rank {answer['rank']} of {answer['of']}"] if self.truth is not None else []
        words += [answer["hint"]] if answer.get("hint") else []
        print(f"{answer[self.kind]}: {', '.join(words)}".encode("utf-8", "backslashreplace").decode())

    def _print_table(self, answer: Answer) -> None:
        if "problem" in answer:
            return
        rank = "" if self.truth is None else f"   {self.truth}: rank {answer['rank']} of {answer['of']}"
        columns = ["class", self.classifier.unit, *([f"probability ({answer['by']})"] if "by" in answer else [])]
        table = Table(*columns, title=Text(f"{answer[self.kind]}{rank}"), title_justify="left", box=None, padding=(0, 2))
        probabilities = [answer["probabilities"]] if "by" in answer else []
        for (name, score), *more in zip(answer["classes"], *probabilities, strict=True):
            table.add_row(Text(name), f"{score:.4f}", *(f"{probability:.4f}" for probability in more))
        Console(emoji=False).print(table)
        if hint := answer.get("hint"):
            Console(emoji=False, highlight=False).print(f"  {hint}", markup=False)


def _show(
    batches: Iterable[Unclassified], form: AnswerForm, out: str | Path | None, as_json: bool, count: int, say: Console
) -> list[Answer]:
    """Shows each answer as soon as it is there, problems on stderr too; all `count` of them."""
    answers: list[Answer] = []
    with ExitStack() as stack:
        sink = None
        if out is not None:  # names of files may be no UTF-8
            sink = stack.enter_context(Path(out).open("w", encoding="utf-8", errors="backslashreplace", newline=""))
        show = form.printer(sink, as_json, Path(out or "").suffix.lower(), count)
        for answer in chain.from_iterable(map(form.answers, batches)):
            if "problem" in answer:
                say.print(f"{answer[form.kind]}: {answer['problem']}", soft_wrap=True)
            show(answer)
            answers.append(answer)
    return answers


def _read(paths: Sequence[Path], kind: Kind, max_pixels: int) -> Unclassified:
    contents, problems = read_sounds(paths) if kind == "sound" else read_pictures(paths, max_pixels)
    answers: list[Answer] = [{kind: str(p), **({"problem": problems[p]} if p in problems else {})} for p in paths]
    return Unclassified(answers, [contents[p] for p in paths if p in contents])


def _none(answers: Sequence[Answer], kind: Kind) -> str:
    """Problem of images or sounds of which none can be read."""
    if len(answers) == 1:
        return f"{answers[0][kind]}: {answers[0]['problem']}"
    return f"none of {len(answers):,} {kind}s can be read, such as {answers[0][kind]}: {answers[0]['problem']}"


def _by_prompts(seen: Inputs, labels: Sequence[str], templates: Sequence[str]) -> Classifier:
    encoder, tower = seen.encoder, seen.tower
    names = read_entries(labels, "--labels")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"classify: the class {twice[0]!r} is given twice; leave one out")
    require_words(names, "classify", "give their names, or a file of them, --labels file:PATH")
    prompts = read_templates(tuple(templates), default=OF_SOUNDS if seen.kind == "sound" else DEFAULT)
    texts = [template.replace("{}", name) for name in names for template in prompts]
    classes = class_embeddings(encoder.embed_text(texts).reshape(len(names), len(prompts), -1))
    objective = _objective(encoder, tower)
    scale = 0.0 if objective is None else np.exp(float(objective["logit_scale"]))
    sigmoid = objective is not None and "logit_bias" in objective
    bias = float(objective["logit_bias"]) if objective is not None and sigmoid else 0.0
    nothing = GENERIC[seen.kind]
    generic = class_embeddings(encoder.embed_text(nothing)[None])[0]

    def score(contents: list[bytes]) -> Scores:
        z = seen.features(contents, tower).z
        cosines = z @ classes.T
        if objective is None:
            return Scores(cosines)
        if sigmoid:
            found = expit(scale * cosines + bias)
            return Scores(cosines, found, tuple(_strangers(row.max()) if row.max() < 0.5 else "" for row in found))
        pairs = zip(cosines.max(axis=1), z @ generic, strict=True)
        hints = tuple(_says_nothing(highest, said, nothing[0]) if highest < said else "" for highest, said in pairs)
        return Scores(cosines, softmax(scale * cosines, axis=1), hints)

    return Classifier(names, score, by="" if objective is None else "sigmoid" if sigmoid else "softmax")


def _objective(encoder: Encoder, tower: str) -> Mapping[str, Any] | None:
    """The scale, and the bias where there is one, of the only objective of a model, or of several the only one of this tower and
    the texts'; None where it is not known."""
    found = {name: part for name, part in encoder.params.items() if isinstance(part, Mapping) and "logit_scale" in part}
    if len(found) > 1:
        sides = {tower, encoder.text_tower}
        objectives = {name: encoder.objectives.get(name) for name in found}
        found = {n: found[n] for n, how in objectives.items() if {getattr(how, "a", None), getattr(how, "b", None)} == sides}
    return next(iter(found.values())) if len(found) == 1 else None


def _strangers(highest: float) -> str:
    return f"perhaps none fits: the highest probability is {highest:.2g}, below 0.5"


def _says_nothing(highest: float, generic: float, nothing: str) -> str:
    return f'perhaps none fits: the highest cosine is {highest:.4f}, and "{nothing}" and the like have {generic:.4f}'


def _by_probe(seen: Inputs, path: str | Path) -> Classifier:
    (probe, names, facts), encoder = load_probe(path), seen.encoder
    tower = facts.get("tower", "image")
    if tower not in encoder.config.towers:
        raise ConfigError(f"classify: {path} is a probe of tower {tower!r}; the model has {', '.join(encoder.config.towers)}")
    if isinstance(encoder.config.towers[tower], SoundTower) != (seen.kind == "sound"):
        takes = "images" if seen.kind == "sound" else "sounds"
        raise ConfigError(f"classify: {path} is a probe of tower {tower!r}, which takes {takes}; these files are {seen.kind}s")
    if facts.get("weights", "") not in ("", tower_digest(encoder.params, tower, encoder.mesh)):
        raise ConfigError(f"classify: {path} was fitted to features of other weights than those of this model; fit it again")
    if "configuration" not in facts:
        log.warning(
            "classify: %s does not say the pixels of its features (an older jclip wrote it): they are taken for these", path
        )
    elif changes := changed_towers({tower: _parsed(path, facts["configuration"])}, {tower: encoder.config.towers[tower]}):
        raise ConfigError(f"classify: {path} was fitted to features of another configuration: {'; '.join(changes)}; fit it again")
    kind = facts.get("features", "pooled")
    width = encoder.config.towers[tower].pooled_width if kind == "pooled" else encoder.config.embed_dim
    if width != len(probe.weights):
        raise ConfigError(f"classify: {path} takes {len(probe.weights)} features; the model has {width}")

    def score(contents: list[bytes]) -> Scores:
        scores = probe.scores(getattr(seen.features(contents, tower), kind))
        if probe.protocol == "ridge":
            return Scores(scores)
        return Scores(expit(scores) if facts.get("labels") == "several" else softmax(scores, axis=1))

    return Classifier(names, score, unit="score" if probe.protocol == "ridge" else "probability")


def _by_head(seen: Inputs) -> Classifier:
    """The classes and the head of an adapted model."""
    if seen.kind == "sound":
        raise ConfigError("classify: an adapted model classifies images; these files are sounds")

    def score(images: list[bytes]) -> Scores:
        return Scores(softmax(seen.encoder.classify(images, max_pixels=seen.max_pixels), axis=1))

    return Classifier(seen.encoder.classes, score, unit="probability")


def _parsed(path: str | Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"classify: {path}: the configuration of its features is damaged: {error}") from None
