"""`jclip info`: what a model is, by name or by its weights, none of which are read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from jclip.config import (
    Caption,
    ConfigError,
    ImageSize,
    Model,
    TextTower,
    Tower,
    architecture,
    architecture_names,
    from_json,
)
from jclip.files import is_run
from jclip.models.decoder import decoder_config, decoder_shapes
from jclip.models.flops import decoder_flops, projection_flops
from jclip.models.towers import output_tokens, tower_flops, without_dropout
from jclip.runs import run_config, without_teachers
from jclip.weights import local_path, named_model, read_weights, tower_shapes, with_sizes
from jclip.weights.io.files import read_json

STATISTICS = ("/mean", "/var")
"""Ends of the paths of what a ResNet's batch normalisation has measured."""


def list_models() -> tuple[str, ...]:
    """The names of all architectures that `jclip.load` makes with random weights.

    Those of SigLIP, CLIPA and many languages need the file of their vocabulary: `jclip.load(name, tokenizer=FILE)`.
    """
    return architecture_names()


def describe(model: Model, captioners: Mapping[str, Caption] | None = None) -> dict[str, Any]:
    """The facts of a model as plain values, of each tower by its name, and of what writes captions under its own.

    `parameters` counts numbers that can be trained, a tower's with its projection: not the means and variances of a ResNet's
    batch normalisation, nor the scale of an objective; `gflops` are the 1e9 floating-point operations, two for a
    multiply-add, of the matrix products for one example forward, with its projection.
    """
    sizes = {path: math.prod(shape) for path, shape in tower_shapes(model).items() if not path.endswith(STATISTICS)}

    def count(name: str) -> int:
        return sum(size for path, size in sizes.items() if path.startswith((f"{name}/", f"{name}_projection/")))

    facts = outline(model)
    towers = {name: {"parameters": count(name), **tower} for name, tower in facts["towers"].items()}
    decoders = {name: _decoder(how, model) for name, how in (captioners or {}).items()}
    total = sum(sizes.values()) + sum(decoder["parameters"] for decoder in decoders.values())
    return {"parameters": total, **facts, "towers": {**towers, **decoders}}


def _decoder(how: Caption, model: Model) -> dict[str, Any]:
    """A decoder, of which an example is a caption that fills the context."""
    text, image = model.towers[how.text], model.towers[how.image]
    assert isinstance(text, TextTower)
    config = decoder_config(how, text)
    size = sum(math.prod(shape) for shape in decoder_shapes(how, model).values())
    gflops = decoder_flops(config, output_tokens(image), image.pooled_width) / 1e9
    shown = ("width", "depth", "heads", "activation", "context_length", "vocab_size")
    return {"parameters": size, "kind": "CaptionDecoder", "gflops": gflops, **{name: getattr(config, name) for name in shown}}


def outline(model: Model) -> dict[str, Any]:
    """`describe` without the parameters, which take half a second to count."""

    def of(tower: Tower) -> dict[str, Any]:
        whole = without_dropout(tower)
        gflops = (tower_flops(whole) + projection_flops(tower, model.embed_dim)) / 1e9
        shown = [
            "width",
            "depth",
            "layers",
            "heads",
            "activation",
            "pool",
            "context_length",
            "vocab_size",
            "image_size",
            "patch_size",
            "stride",
            "stem",
            "projection",
        ]
        facts: dict[str, Any] = {"kind": type(tower).__name__, "gflops": gflops}
        facts |= {field: value for field in shown if (value := getattr(tower, field, ())) != ()}
        return facts | dict(tower.summary())

    return {"embed_dim": model.embed_dim, "towers": {name: of(tower) for name, tower in model.towers.items()}}


def find_model(
    path_or_name: str | Path,
    name: str | None = None,
    tokenizer: str | None = None,
    *,
    step: int | None = None,
    kind: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Model:
    """The model of a workdir, of weights (see `weights.read_weights`) or of an architecture's name.

    Where no `tokenizer` is given, that of a name is without its vocabulary, which `jclip compile` does not need.

    Recipes may call it: no parameter is read, and no device is touched, which processes must not do before they have joined.
    """
    return _find(path_or_name, name, tokenizer, step=step, kind=kind, preprocess=preprocess)[0]


def _find(
    path_or_name: str | Path,
    name: str | None = None,
    tokenizer: str | None = None,
    *,
    step: int | None = None,
    kind: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> tuple[Model, Mapping[str, Caption]]:
    """See `find_model`; and what writes captions, by its name."""
    path = Path(local_path(path_or_name, kind))
    if path.is_file() or (path.is_dir() and not is_run(path)):
        if step is not None:
            raise ConfigError(f"{path_or_name} is no workdir; leave out --step")
        weights = read_weights(path, name, tokenizer, kind=kind, preprocess=preprocess)
        return weights.model, weights.captioners
    if kind is not None or preprocess:
        raise ConfigError(f"{path_or_name} says that itself; leave out --from, --mean, --std, --interpolation and --resize")
    if name is not None:
        raise ConfigError(f"{path_or_name} says its architecture itself; leave out --architecture")
    if not is_run(path) and path.name != str(path_or_name):  # a name has no folders
        raise ConfigError(f"{path_or_name}: there is no such file or folder, nor can it be the name of an architecture")
    if not is_run(path):
        return (architecture(str(path_or_name)) if tokenizer is None else named_model(str(path_or_name), tokenizer)), {}
    if tokenizer is not None:
        raise ConfigError(f"{path_or_name} is a workdir, which says its tokenizer itself; leave out --tokenizer")
    config = run_config(path, step) if step is not None else from_json(read_json(path / "config.json"))
    student = without_teachers(config)
    return student.model, student.captioners()


def main(
    path_or_name: str | None,
    *,
    architecture_name: str | None = None,
    image_size: ImageSize | None = None,
    context_length: int | None = None,
    as_json: bool = False,
    **how: Any,
) -> None:
    """Prints what a model is, or, without one, a line for each architecture; `how` are further arguments of `find_model`."""
    if path_or_name is None:
        facts = {key: outline(architecture(key)) for key in list_models()}
        shown = _list(facts)
    else:
        model, captioners = _find(path_or_name, architecture_name, **how)
        facts = describe(with_sizes(model, image_size, context_length), captioners)
        shown = _table(path_or_name, facts)
    if as_json:
        print(json.dumps(facts))
    else:
        Console(emoji=False, highlight=False).print(shown)


def _list(facts: Mapping[str, Any]) -> Table:
    columns = ("architecture", "pixels", "patch", "GFLOPs", "tokens", "GFLOPs", "embed")
    table = Table(*(Column(name, no_wrap=True) for name in columns), box=None)
    for key, model in facts.items():
        image, text = model["towers"]["image"], model["towers"]["text"]
        row = (_text(image["image_size"], "image_size"), image.get("patch_size", ""), f"{image['gflops']:.2f}")
        table.add_row(key, *map(str, row), str(text["context_length"]), f"{text['gflops']:.2f}", str(model["embed_dim"]))
    return table


def _table(title: str, facts: Mapping[str, Any]) -> Table:
    table = Table(
        "", *facts["towers"], title=f"{title}: {facts['parameters']:,} parameters, embeddings of {facts['embed_dim']}", box=None
    )
    rows = list(dict.fromkeys(row for tower in facts["towers"].values() for row in tower))
    for row in rows:
        table.add_row(row.replace("_", " "), *(_text(tower.get(row), row) for tower in facts["towers"].values()))
    return table


def _text(value: Any, row: str) -> str:
    if row == "image_size" and isinstance(value, tuple):
        return "{} x {} (height x width)".format(*value)
    match value:
        case None:
            return ""
        case float():
            return f"{value:.3f}"
        case int():
            return f"{value:,}"
        case tuple() | list():
            return ", ".join(f"{number:g}" for number in value)
        case _:
            return str(value)
