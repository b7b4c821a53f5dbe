"""Evaluation as the training loop does it, and `jclip eval`: the same evaluators on a checkpoint or on weights."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jclip.captioning import Captioner, Search, make_caption
from jclip.config import Caption, Captioning, Config, ConfigError, Evaluation, Model, Suite, check_suite, to_json
from jclip.data import Source, SourceError, open_data
from jclip.data.caches import cache_folder
from jclip.data.decoding import MAX_PIXELS
from jclip.data.names import match_names
from jclip.encode import make_encode
from jclip.eval import Embedding, Evaluator, FeatureCache, Functions, make_evaluator
from jclip.files import is_bucket, is_run
from jclip.inference import Encoder, load, tower_digest
from jclip.metrics import results_table
from jclip.processes import is_first, leave_together, together
from jclip.results import Results, describe_machine, training_curves
from jclip.runs import load_run, run_config
from jclip.sharding import Gather, batch_sharding, by_host, gather_rows, make_gather, to_global
from jclip.state import param_shapes
from jclip.weights import local_path

if TYPE_CHECKING:
    from jclip.adapt.saved import Adapted


def make_evaluators(
    config: Config, mesh: Mesh, gather: Gather | None, between_batches: Callable[[], object]
) -> dict[str, Evaluator]:
    """The evaluators of a configuration, by name; for `gather` see `make_encode`. `between_batches` is called before each batch
    and may raise.

    Raises:
        ConfigError, SourceError: as `make_evaluator`, a SourceError with the name of the evaluation.
    """
    functions = make_functions(
        config.model,
        mesh,
        config.eval_batch_size,
        gather=gather,
        between_batches=between_batches,
        max_pixels=config.data.max_pixels,
        captioners=config.captioners(),
        trained_on=(config.data.title, functools.partial(open_data, config)),
    )
    evaluators = {}
    for name, evaluation in config.evals.items():
        try:
            evaluators[name] = make_evaluator(evaluation, config.model, functions)
        except SourceError as error:
            raise SourceError(
                f"evaluation {name}: {error}; --evals.{name}.FIELD names other data, and --evals none trains without evaluations"
            ) from None
    return evaluators


def make_functions(
    model: Model,
    mesh: Mesh,
    batch_size: int,
    *,
    gather: Gather | None = None,
    cache: FeatureCache | None = None,
    weights: Callable[[str], str] | None = None,
    between_batches: Callable[[], object] = lambda: None,
    max_pixels: int = MAX_PIXELS,
    captioners: Mapping[str, Caption] | None = None,
    trained_on: tuple[str, Callable[[], Source]] | None = None,
    head: Callable[[Sequence[str], np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Functions:
    """Functions with which evaluators embed on a mesh.

    Args:
        model: whose parameters will be given.
        mesh: the devices, of all hosts.
        batch_size: rows of a global batch; rounded up to a multiple of the devices.
        gather: see `make_encode`.
        cache: of features.
        weights: a tower's name -> the digest of its parameters.
        between_batches: called before each batch; what it raises ends the evaluation.
        max_pixels: of an image; a larger one is a broken example.
        captioners: what writes captions, by the name of its parameters.
        trained_on: see Functions.
        head: of an adapted model; see `Functions`.
    """
    encode = make_encode(model, mesh, gather)

    def embed(params: Any, rows: Mapping[str, np.ndarray]) -> dict[str, Embedding]:
        between_batches()
        encoded = jax.device_get(encode(params, to_global(rows, mesh)))
        return {tower: Embedding(by_host(pooled, mesh), by_host(z, mesh)) for tower, (pooled, z) in encoded.items()}

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, batch_sharding(mesh), lambda index: array[index])

    return Functions(
        embed,
        -(-batch_size // mesh.size) * mesh.size,
        gather_rows,
        jax.process_index(),
        jax.process_count(),
        cache=cache,
        weights=weights,
        place=place,
        devices=mesh.size,
        max_pixels=max_pixels,
        caption=_caption_function(model, mesh, captioners, between_batches) if captioners else None,
        captioners=captioners or {},
        trained_on=trained_on,
        head=head,
    )


def _caption_function(
    model: Model, mesh: Mesh, captioners: Mapping[str, Caption], between_batches: Callable[[], object]
) -> Callable[[Captioning, Any, Mapping[str, np.ndarray]], np.ndarray]:
    """(evaluation, parameters, rows) -> ids of the captions of these rows; see `Functions`."""

    @functools.cache
    def captions(name: str, search: Search) -> Any:
        return make_caption(Captioner(name, captioners[name], model), mesh, search)

    def caption(config: Captioning, params: Any, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        between_batches()
        towers = config.image, config.text
        name = next(name for name, captioner in captioners.items() if (captioner.image, captioner.text) == towers)
        write = captions(name, Search(config.beams, config.length, config.length_penalty))
        return by_host(np.asarray(write(params, to_global(rows, mesh))), mesh)

    return caption


def main(
    model: str | Path | Encoder,
    *,
    suite: Suite | None = None,
    names: Sequence[str] = (),
    step: int | None = None,
    out: str | Path | None = None,
    as_json: bool = False,
    cache: str | Path | None = None,
    title: str = "",
    max_pixels: int | None = None,
    **how: Any,
) -> dict[str, float]:
    """Runs evaluations of a model and prints the results.

    Args:
        model: workdir of a training run, or anything else that `jclip.load` takes, such as what it has returned.
        suite: the evaluations; None: those of the run's own configuration.
        names: which of them; none given means all.
        step: which checkpoint of a workdir; None means the last.
        out: file of results for `jclip report`, written anew after each evaluation. What it has of the same weights, data and
            settings is not computed again.
        as_json: print one JSON object instead of a table.
        cache: folder in which features are kept from run to run; None: they are not.
        title: of the suite, in the file of results.
        max_pixels: of an image; a larger one is a broken example. None: as the suite, or the run, says.
        how: further arguments of `jclip.load`.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: there is no such evaluation, or the evaluations do not fit the model.
    """
    if not isinstance(model, Encoder):
        model = _local(model)
        together(lambda: run_config(model, step) if is_run(model) else None)  # before hosts read it as one
    subject = open_subject(model, step, **how)
    suite = _chosen(suite or subject.suite, names, subject.name)
    suite = suite if max_pixels is None else dataclasses.replace(suite, max_pixels=max_pixels)
    check_suite(suite, subject.model)
    evals = {name: evaluation for name, evaluation in suite.evals.items() if not names or name in names}
    weights = functools.cache(lambda tower: tower_digest(subject.params, tower, subject.mesh))
    kept, path = (None if folder is None else Path(folder) for folder in (cache, out))
    functions = make_functions(
        subject.model,
        subject.mesh,
        suite.batch_size,
        gather=subject.gather,
        cache=None if kept is None else FeatureCache(kept),
        weights=weights,
        max_pixels=suite.max_pixels,
        captioners=subject.captioners,
        trained_on=subject.trained_on,
        head=None if subject.adapted is None else functools.partial(class_scores, subject.adapted, subject.model, subject.params),
    )
    results = Results(subject.header(title, weights) if path else {}, weights, path, functions.gather, functions.host)
    values = _run(evals, subject, functions, results)
    results.write()
    if is_first():
        _print(subject, values, as_json)
    return values


def _local(model: str | Path) -> str | Path:
    return together(lambda: local_path(model)) if is_bucket(model) else model


def _chosen(suite: Suite | None, names: Sequence[str], model: str) -> Suite:
    """The suite, if there is one and it has these evaluations."""
    if suite is None:
        raise ConfigError(
            f"{model} is no workdir, whose configuration has evaluations; give a suite: --suite FILE.py, such as "
            "configs/suite_data.py"
        )
    if not suite.evals:
        raise ConfigError(f"{model} has no evaluations of its own; give a suite: --suite FILE.py, such as configs/suite_data.py")
    if unknown := [name for name in names if name not in suite.evals]:
        raise ConfigError(f"config: there is no evaluation {unknown[0]!r}; evaluations: {', '.join(suite.evals) or 'none'}")
    return suite


def _run(evals: Mapping[str, Evaluation], subject: "EvaluatedModel", functions: Functions, results: Results) -> dict[str, float]:
    """Metrics of evaluations by "name/metric", each written as soon as it is there."""
    values: dict[str, float] = {}
    with leave_together((ConfigError, SourceError)), Console(emoji=False, stderr=True).status("evaluating ...") as status:
        for i, (name, evaluation) in enumerate(evals.items()):
            status.update(f"evaluating {name} ({i + 1} of {len(evals)}) ...")
            found = results.run(name, make_evaluator(evaluation, subject.model, functions), subject.params)
            values |= {f"{name}/{metric}": value for metric, value in (found.metrics | found.counts).items()}
    return values


def _print(subject: "EvaluatedModel", values: Mapping[str, float], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"step": subject.step, **values}))
    else:
        at = "" if subject.step is None else f", step {subject.step:,}"
        Console(emoji=False, highlight=False).print(results_table(f"{subject.name}{at}", values))


def default_cache() -> Path:
    """Folder of features unless one is given."""
    return cache_folder("features")


LOADED = "a loaded model"
"""Name of a model that is given as an object."""


class EvaluatedModel(NamedTuple):
    """Model that is measured."""

    name: str
    model: Model
    params: Any
    mesh: Mesh
    step: int | None = None
    """Step of a checkpoint."""
    gather: Gather | None = None
    suite: Suite | None = None
    """Evaluations of a run's own configuration."""
    captioners: Mapping[str, Caption] = {}
    """Captioners by the name of their parameters."""
    trained_on: tuple[str, Callable[[], Source]] | None = None
    """See Functions."""
    adapted: "Adapted | None" = None
    """Classes and head of an adapted model."""

    def header(self, suite: str, weights: Callable[[str], str]) -> dict[str, Any]:
        """Facts of it in a file of results."""
        towers = {name: to_json(tower) for name, tower in self.model.towers.items()}
        found = hashlib.blake2b("".join(weights(name) for name in sorted(towers)).encode(), digest_size=16)
        if self.adapted is not None:
            found.update(self.adapted.digest().encode())
        model = {"name": self.name, "step": self.step, "weights": found.hexdigest(), "towers": towers}
        return {"model": model, **describe_machine(), "suite": suite, "training": training_curves(Path(self.name))}


def class_scores(
    adapted: "Adapted", model: Model, params: Any, names: Sequence[str], z: np.ndarray, pooled: np.ndarray
) -> np.ndarray:
    """Scores f32 [n, C] of an adapted model for classes by name, in cosines: logits divided by their scale.

    Raises:
        ConfigError: the model was adapted to other classes.
    """
    from jclip.adapt.heads import Features, projected_norm

    places = match_names(names, adapted.classes)
    if places.unmatched:
        raise ConfigError(
            f"evaluation: the model was adapted to {len(adapted.classes)} classes, and {len(places.unmatched)} of these "
            f"{len(names)} are none of them: {places.describe()}; evaluate it on its classes, or the model before it was adapted"
        )
    logits = adapted.logits(Features(z, projected_norm(model, params, adapted.image, pooled)))
    return logits[:, np.array(places.places)] / np.float32(adapted.head.scale)


def open_subject(model: str | Path | Encoder, step: int | None = None, **how: Any) -> EvaluatedModel:
    """A checkpoint of a run, or anything else that `jclip.load` takes; raises as that does.

    With further arguments of that, such as image_size, a run has no evaluations of its own: they are of its own sizes.
    """
    if isinstance(model, Encoder) or how or not is_run(model):
        encoder = load(model, step=step, **how)
        name = LOADED if isinstance(model, Encoder) else str(model)
        return EvaluatedModel(
            name, encoder.config, encoder.params, encoder.mesh, captioners=encoder.captioners, adapted=encoder.adapted
        )
    config, step, params, mesh = load_run(model, step)
    gather = make_gather(param_shapes(config), config.mesh, mesh)
    suite = Suite(config.evals, config.eval_batch_size, config.data.max_pixels)
    trained_on = config.data.title, functools.partial(open_data, config)
    return EvaluatedModel(str(model), config.model, params, mesh, step, gather, suite, config.captioners(), trained_on)
