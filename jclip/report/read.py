"""Results files, checked: what they hold comes from outside, and an error says which value of which file is wrong."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jclip.config import ConfigError
from jclip.files import is_run
from jclip.results import read_results

HOW = "write one with: jclip eval MODEL --suite FILE.py --json OUT.json"
_PICTURE = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")
_SOUND = re.compile(r"data:audio/(mpeg|wav|ogg);base64,[A-Za-z0-9+/]+={0,2}")
# Control characters are no part of HTML or SVG, and half a surrogate pair is no part of UTF-8.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class CheckedResults:
    """A results file."""

    path: Path
    model: dict[str, Any]
    """name, step (None: not a checkpoint), weights (a fingerprint), towers."""
    versions: dict[str, Any]
    devices: str
    suite: str
    training: list[dict[str, Any]]
    """Lines of metrics.jsonl: {"step": ..., "loss": ..., metric: value}."""
    results: dict[str, dict[str, Any]]
    """{evaluation: protocol, settings, dtype, data, counts, metrics, details, seconds, key}."""


class Picture(str):
    """A data URL of a JPEG, PNG or WebP."""


class Sound(str):
    """A data URL of an MP3, a WAV or an Ogg file."""


@dataclass(frozen=True)
class Each:
    """The schema of a mapping with any names, and of every value in it."""

    value: Any


@dataclass(frozen=True)
class Maybe:
    """The schema of a value that may be null."""

    value: Any


# A schema is a type, [schema of every item], (schema of the first item, of the second), {key: schema}, where a key with "?" may
# be missing, or one of the above. A key that is not named is kept.
_CURVE = {"x": [float], "x_name": str}
_SCHEMA: dict[str, Any] = {
    "format": str,
    "model": {"name": str, "step": Maybe(int), "weights": str, "towers?": Each(Any)},
    "versions": Each(Any),
    "devices": str,
    "suite": str,
    "training?": Maybe([{"step": int}]),
    "results": Each(
        {
            "protocol": str,
            "settings": Each(Any),
            "dtype": str,
            "data": Each(Any),
            "counts": Each(int),
            "metrics": Each(float),
            "seconds?": float,
            "key?": str,
            "details?": {
                "per_class?": [{"name": str, "examples": int, "recall": float}],
                "confusion?": {"names": [str], "matrix": [[float]]},
                "mistakes?": [
                    {"image": Picture, "sound?": Sound, "key": str, "truth": str, "predictions": [(str, float)], "rank": int}
                ],
                "heat_map?": {"images": [Picture], "texts": [str], "cosines": [[float]]},
                "grids?": {
                    "text_to_image?": [
                        {
                            "query": str,
                            "rank": int,
                            "answers": [{"image": Picture, "sound?": Sound, "right": bool, "score": float}],
                        }
                    ],
                    "image_to_text?": [
                        {
                            "query": Picture,
                            "sound?": Sound,
                            "rank": int,
                            "answers": [{"text": str, "right": bool, "score": float}],
                        }
                    ],
                },
                "curve?": {**_CURVE, "y_name": str, "mean": [float], "deviation": [float]},
                "search?": {**_CURVE, "scores": [float], "best": float},
                "table?": {"columns": [str], "rows": [list]},
            },
        }
    ),
}


def checked_results(path: Path) -> CheckedResults:
    """A results file as it is, but for text that HTML cannot hold, which becomes U+FFFD, and null for a number, which is NaN.

    Raises:
        ConfigError: there is no such file, it is not JSON, of another format, or a value is missing or not what it should be.
    """
    if is_run(path):
        raise ConfigError(
            f"report: {path} is a training run, not a results file; its page has the curves of training too, after: "
            f"jclip eval {path} --json OUT.json"
        )
    found = read_results(path, HOW)
    checked = _check(found, _SCHEMA, f"report: {path}: ")
    for name, result in checked["results"].items():
        _check_shapes(result.setdefault("details", {}), f"report: {path}: results.{name}.details")
    fields = ("model", "versions", "devices", "suite", "results")
    return CheckedResults(path, training=checked.get("training") or [], **{field: checked[field] for field in fields})


def _check(value: Any, schema: Any, where: str) -> Any:
    """The value as `schema` says; `where` is how an error begins."""
    match schema:
        case Maybe():
            return None if value is None else _check(value, schema.value, where)
        case Each():
            items = _is(value, dict, "an object", where).items()
            return {_clean(key): _check(item, schema.value, _at(where, key)) for key, item in items}
        case dict():
            return _check_object(_is(value, dict, "an object", where), schema, where)
        case [item_schema] if isinstance(schema, list):
            return [_check(item, item_schema, f"{where}[{i}]") for i, item in enumerate(_is(value, list, "a list", where))]
        case tuple():
            if len(_is(value, list, "a list", where)) != len(schema):
                raise ConfigError(f"{where} has {len(value)} items, not {len(schema)}")
            return [_check(item, one, f"{where}[{i}]") for i, (item, one) in enumerate(zip(value, schema, strict=True))]
    if schema is float:
        return float("nan") if value is None else _is(value, (int, float), "a number", where)
    if schema is Picture:
        if not _PICTURE.fullmatch(_is(value, str, "a data URL", where)):
            raise ConfigError(f"{where} is {_short(value)}, not a picture: data:image/jpeg;base64,... (or png, webp)")
        return Picture(value)
    if schema is Sound:
        if not _SOUND.fullmatch(_is(value, str, "a data URL", where)):
            raise ConfigError(f"{where} is {_short(value)}, not a sound: data:audio/mpeg;base64,... (or wav, ogg)")
        return Sound(value)
    names = {str: "text", int: "a whole number", bool: "true or false", list: "a list"}
    return _clean(value if schema is Any else _is(value, schema, names[schema], where))


def _check_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> dict[str, Any]:
    checked = {_clean(key): _clean(item) for key, item in value.items() if key not in schema and f"{key}?" not in schema}
    for named, one in schema.items():
        key = named.removesuffix("?")
        if key in value:
            checked[key] = _check(value[key], one, _at(where, key))
        elif not named.endswith("?"):
            raise ConfigError(f"{_at(where, key)} is missing; it has {', '.join(map(_short, value)) or 'nothing'}")
    return checked


def _check_shapes(details: dict[str, Any], where: str) -> None:
    """Sizes that have to agree."""

    def same(found: int, expected: int, name: str) -> None:
        if found != expected:
            raise ConfigError(f"{where}.{name} has {found} items, where {expected} are needed")

    for name, rows, columns in (("confusion.matrix", "names", "names"), ("heat_map.cosines", "images", "texts")):
        kind, field = name.split(".")
        if kind in details:
            matrix = details[kind][field]
            same(len(matrix), len(details[kind][rows]), name)
            for i, row in enumerate(matrix):
                same(len(row), len(details[kind][columns]), f"{name}[{i}]")
    for kind, fields in (("curve", ("mean", "deviation")), ("search", ("scores",))):
        for field in fields if kind in details else ():
            same(len(details[kind][field]), len(details[kind]["x"]), f"{kind}.{field}")
    for i, row in enumerate(details.get("table", {}).get("rows", [])):
        same(len(row), len(details["table"]["columns"]), f"table.rows[{i}]")


def _is(value: Any, kind: Any, name: str, where: str) -> Any:
    # True is an int for Python, but no number of a results file.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where} is {_short(value)}, not {name}")
    return value


def _at(where: str, key: str) -> str:
    return where + key if where.endswith(": ") else f"{where}.{key}"


def _clean(value: Any) -> Any:
    """Text that HTML can hold, in whatever it is."""
    match value:
        case str():
            return _NO_TEXT.sub("\ufffd", value)
        case list():
            return [_clean(item) for item in value]
        case dict():
            return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
