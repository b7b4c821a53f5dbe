"""The contradictions of evaluations, found before anything is read."""

from collections.abc import Iterator, Mapping

from jclip.config.evals import Choice, Eval, FewShot, Labels, LinearProbe, NearestNeighbours, Retrieval, Robustness, ZeroShot
from jclip.config.towers import Model, TextTower


def eval_problems(model: Model, evals: Mapping[str, Eval]) -> Iterator[str]:
    """What is wrong with the evaluations of a model, each with its place."""
    for name, evaluation in evals.items():
        for problem in _problems(model, evaluation):
            yield f"evals.{name}{problem}"


def towers_of(evaluation: Eval) -> tuple[str, ...]:
    """Names of the towers that an evaluation uses."""
    match evaluation:
        case Retrieval(a=a, b=b):
            return a, b
        case ZeroShot(image=a, text=b) | Robustness(image=a, text=b) | Choice(image=a, text=b):
            return a, b
        case LinearProbe(tower=tower) | FewShot(tower=tower) | NearestNeighbours(tower=tower):
            return (tower,)


def _problems(model: Model, evaluation: Eval) -> Iterator[str]:
    unknown = [tower for tower in (*towers_of(evaluation), *evaluation.fields) if tower not in model.towers]
    for tower in unknown:
        yield f": there is no tower {tower!r}; towers: {', '.join(model.towers)}"
    if unknown:
        return
    if isinstance(evaluation, Retrieval) and evaluation.a == evaluation.b:
        yield f": both sides are {evaluation.a!r}; use two towers"
    if isinstance(evaluation, (ZeroShot, Robustness, Choice)) and not isinstance(model.towers[evaluation.text], TextTower):
        yield f".text {evaluation.text!r} is not a text tower; prompts need one"
    if isinstance(evaluation, (ZeroShot, Robustness)):
        for template in evaluation.templates:
            if "{}" not in template and not template.startswith(("set:", "file:")):
                yield f".templates: each needs a {{}} where the class name goes, or is set:NAME or file:PATH; got {template!r}"
    if isinstance(evaluation, (LinearProbe, FewShot, Robustness)) and evaluation.l2 < 0:
        yield f".l2 {evaluation.l2} must be 0 or more"
    match evaluation:
        case LinearProbe(protocol=protocol, validation=validation, precise=precise):
            if precise and protocol in ("clip_benchmark", "ridge"):
                yield f".precise: protocol {protocol} has no f64 to end in; leave it out"
            if validation and protocol in ("logistic", "ridge"):
                yield f".validation {validation!r}: protocol {protocol} searches nothing; leave it out"
        case FewShot(k=k, seeds=seeds):
            if not k or any(count < 1 for count in k) or list(k) != sorted(set(k)):
                yield f".k {k} must be rising numbers of examples, such as (1, 2, 4, 8, 16)"
            if seeds < 1:
                yield f".seeds {seeds} must be at least 1"
        case NearestNeighbours(k=neighbours, temperature=temperature):
            if neighbours < 1:
                yield f".k {neighbours} must be at least 1"
            if temperature is not None and temperature <= 0:
                yield f".temperature {temperature} must be positive, or None"
        case Robustness(shifted=shifted, masks=masks, baselines=baselines):
            if not shifted or {"clean", "train", "source"} & set(shifted):
                yield f".shifted names {', '.join(shifted) or 'no set'}; give at least one, of another name than clean and train"
            for name in masks:
                if name not in ("clean", *shifted):
                    yield f".masks names {name!r}, which is no set; sets: clean, {', '.join(shifted)}"
            for name, known in baselines.items():
                if set(known) != {"clean", *shifted} or not all(0 <= value <= 1 for value in known.values()):
                    sets = ", ".join(("clean", *shifted))
                    yield f".baselines: {name!r} needs an accuracy from 0 to 1 for each of {sets}; got {dict(known)}"
    if isinstance(evaluation, (ZeroShot, LinearProbe, FewShot, NearestNeighbours, Robustness)):
        yield from _label_problems(evaluation.labels)


def _label_problems(labels: Labels) -> Iterator[str]:
    given = [name for name in (*labels.classes, *labels.names) if name.startswith("file:")]
    if labels.names and not given and labels.classes and len(labels.names) != len(labels.classes):
        yield f".labels.names has {len(labels.names)} names for {len(labels.classes)} classes; give one each, or none"
