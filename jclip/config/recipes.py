"""Recipes, suites and filters: Python files whose functions make a configuration, with overrides from the command line."""

import dataclasses
import inspect
import itertools
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, get_origin

from jclip.config.errors import ConfigError
from jclip.config.evals import Evaluation, Suite
from jclip.config.filter import Filter
from jclip.config.ranges import value_problems
from jclip.config.schema import Config

if TYPE_CHECKING:
    from jclip.config.adapt import Adapt

T = TypeVar("T")


def load(path: str | Path, overrides: Sequence[str] = (), *, command: str = "train") -> Config:
    """The configuration of a recipe, with overrides such as ["--optim.lr", "3e-4"].

    A recipe is a Python file with `get_config() -> Config`. Arguments of `get_config` are options too, by their own names, and
    `--evals NAME ...` keeps these evaluations alone, `--evals none` no evaluation. Messages and help name `jclip COMMAND`.

    Raises:
        ConfigError: there is no such file, it has no `get_config`, it fails, or it returns something else; an override is an
            option of open_clip.
        SystemExit: an override is unknown or malformed; the message has been printed, as for `--help`.
    """
    import tyro  # here, because reading a saved configuration needs no command line

    from jclip.config.open_clip_options import refuse_open_clip

    if old := next((option for option in overrides if option.startswith("--pairs.")), None):
        raise ConfigError(
            f"config: {old}: pairs are objectives by name now, such as --objectives.image_text.{old.rpartition('.')[2]}"
        )
    _refuse_expanded(overrides)
    if not Path(path).is_file():  # the value of an option of open_clip, which has no recipes, stands in its place
        refuse_open_clip(overrides)
    get_config, doc = _read(path, "get_config", "Config")
    overrides, names = _chosen_evals(list(overrides))
    arguments: Mapping[str, Any] = {p.name: p.name.upper() for p in _parameters(get_config) if p.default is p.empty}
    if not {"-h", "--help"} & set(overrides):  # the help of which must not depend on what is given or missing
        arguments, overrides = _arguments(path, get_config, overrides)
        refuse_open_clip(overrides)
    config = _made(path, get_config, arguments, Config)
    if names is not None:
        config = dataclasses.replace(config, evals=_only(config.evals, names))
    description = (
        f"{doc}\n\n{_describe(get_config)}\n--evals NAME ...: which evaluations of the recipe (default: all), or none."
        + ("\n--workdir (required): folder of the run." if command == "train" else "")
    )
    return tyro.cli(Config, default=config, args=overrides, prog=f"jclip {command} {path}", description=description)


def beside(recipe: str, name: str, **arguments: str | bool) -> Config:
    """The configuration of another recipe in the folder of this one (`__file__`).

    Arguments that are empty or False keep their defaults; True turns one on.

    Raises:
        ConfigError: as `load`.
    """
    given = {f"--{key}": value for key, value in arguments.items() if value}
    options = [part for key, value in given.items() for part in ((key,) if value is True else (key, str(value)))]
    return load(Path(recipe).with_name(name), options)


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """The evaluations of a suite: a Python file with `get_suite() -> Suite`, whose arguments are options by their own names.

    Raises:
        ConfigError: there is no such file, it has no `get_suite`, it fails, or it returns something else.
        SystemExit: an option is unknown or missing; the message has been printed, as for `--help`.
    """
    get_suite, doc = _read(path, "get_suite", "Suite")
    program = {"prog": f"jclip eval MODEL --suite {path}", "description": doc}
    arguments, _ = _arguments(path, get_suite, list(overrides), **program)
    return _made(path, get_suite, arguments, Suite)


def load_filter(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Filter:
    """The rules of a filter, with overrides such as ["--score-best", "0.3"].

    Args:
        path: a Python file with `get_filter() -> Filter`, whose arguments are options by their own names; None: no rules.
        overrides: options, by the fields of `Filter`.

    Raises:
        ConfigError: there is no such file, it has no `get_filter`, it fails, or it returns something else.
        SystemExit: an option is unknown or malformed; the message has been printed, as for `--help`.
    """
    import tyro

    left, rules, doc = list(overrides), Filter(), Filter.__doc__ or ""
    if path is not None:
        get_filter, doc = _read(path, "get_filter", "Filter")
        arguments, left = _arguments(path, get_filter, left)
        rules = _made(path, get_filter, arguments, Filter)
    return tyro.cli(Filter, default=rules, args=left, prog="jclip filter SOURCE DIR", description=doc)


def load_adapt(path: str | Path | None = None, methods: Sequence[str] = (), overrides: Sequence[str] = ()) -> "Adapt":
    """The protocol of an adaptation, with overrides such as ["--shots", "1", "16"].

    Args:
        path: a Python file with `get_adapt() -> Adapt`, whose arguments are options by their own names; None: the defaults.
        methods: names of METHODS, each with its defaults; with a file, which of its own methods.
        overrides: options, by the fields of `Adapt`.

    Raises:
        ConfigError: there is no such file or method, it has no `get_adapt`, it fails, or it returns something else.
        SystemExit: an option is unknown or malformed; the message has been printed, as for `--help`.
    """
    import tyro

    from jclip.config.adapt import Adapt
    from jclip.config.adapt_methods import METHODS

    left, config, doc = list(overrides), Adapt(), Adapt.__doc__ or ""
    if path is not None:
        get_adapt, doc = _read(path, "get_adapt", "Adapt")
        arguments, left = _arguments(path, get_adapt, left)
        config = _made(path, get_adapt, arguments, Adapt)
    known = config.methods if path is not None else {name: method() for name, method in METHODS.items()}
    if unknown := [name for name in methods if name not in known]:
        raise ConfigError(f"config: there is no method {unknown[0]!r}; methods: {', '.join(known) or 'none'}")
    if methods:
        config = dataclasses.replace(config, methods={name: known[name] for name in methods})
    return tyro.cli(Adapt, default=config, args=left, prog="jclip adapt MODEL --out DIR", description=doc)


def _read(path: str | Path, function: str, returns: str) -> tuple[Callable[..., Any], str]:
    """The function that a file defines, and the file's docstring."""
    if not Path(path).is_file():
        raise ConfigError(f"config: no recipe at {path}; give a Python file that defines {function}()")
    with _line_of_errors(path):
        names = runpy.run_path(str(path))
    if not callable(names.get(function)):
        raise ConfigError(f"config: {path} does not define {function}() -> {returns}")
    return names[function], names.get("__doc__") or ""


def _made(path: str | Path, function: Callable[..., Any], arguments: Mapping[str, Any], cls: type[T]) -> T:
    """The result of the function, which has to be of the class, with values of its fields' types and in their ranges."""
    with _line_of_errors(path):
        value = function(**arguments)
    if not isinstance(value, cls):
        what = "nothing; end it with `return`" if value is None else f"a {type(value).__name__}"
        raise ConfigError(f"config: {path}: {function.__name__}() returns {what}, not a {cls.__name__}")
    for problem in value_problems(value):
        raise ConfigError(f"config: {path}: {problem}")
    return value


@contextmanager
def _line_of_errors(path: str | Path) -> Iterator[None]:
    """Errors of a recipe become a line that says where in it they arose."""
    try:
        yield
    except Exception as error:
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            inside = [error.lineno]
        at = f"{path}, line {inside[-1]}" if inside else str(path)
        what = str(error).removeprefix("config: ") if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"config: {at}: {what}") from error


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _arguments(
    path: str | Path, function: Callable[..., Any], overrides: list[str], **program: Any
) -> tuple[dict[str, Any], list[str]]:
    """The function's own arguments, and what is left for the fields of the configuration, if there is no `program` to end."""
    import tyro

    if not _parameters(function) and not program:
        return {}, overrides

    def collect(**arguments: Any) -> dict[str, Any]:
        return arguments

    collect.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    collect.__annotations__ = {  # without these, tyro takes `str | None` for None
        p.name: p.annotation for p in _parameters(function) if p.annotation is not p.empty
    }
    collect.__doc__ = function.__doc__
    with _line_of_errors(path):
        if program:
            return cast(dict[str, Any], tyro.cli(collect, args=overrides, **program)), []
        return tyro.cli(collect, args=overrides, return_unknown_args=True)


def _describe(function: Callable[..., Any]) -> str:
    """Options of the recipe itself, with what the docstring of its function says of each."""
    from docstring_parser import parse  # it comes with tyro, which is imported as late

    texts = {param.arg_name: " ".join((param.description or "").split()) for param in parse(function.__doc__ or "").params}

    def line(p: inspect.Parameter) -> str:
        choices = f" {{{','.join(map(str, get_args(p.annotation)))}}}" if get_origin(p.annotation) is Literal else ""
        nothing = p.default is None or p.default is False or p.default in ("", ())
        default = "required" if p.default is p.empty else "optional" if nothing else f"default: {p.default}"
        text = f": {texts[p.name]}" if texts.get(p.name) else ""
        return f"--{p.name.replace('_', '-')}{choices} ({default}){text}"

    return "\n".join(["Options of the recipe itself:", *map(line, _parameters(function))]) if _parameters(function) else ""


def _refuse_expanded(overrides: Sequence[str]) -> None:
    """A pattern of shards that a shell has expanded is several arguments, where an option takes one."""
    for first, second in itertools.pairwise(overrides):
        if first.endswith(".tar") and second.endswith(".tar"):
            raise ConfigError(
                f"config: {first} and {second} are two arguments; put a pattern of shards in quotes, or the shell expands it"
            )


def _chosen_evals(overrides: list[str]) -> tuple[list[str], list[str] | None]:
    """The overrides without `--evals NAME ...`, and these names; None where it is not among them."""
    if "--evals" not in overrides:
        return overrides, None
    start = overrides.index("--evals")
    end = next((i for i in range(start + 1, len(overrides)) if overrides[i].startswith("-")), len(overrides))
    return overrides[:start] + overrides[end:], overrides[start + 1 : end]


def _only(evals: Mapping[str, Evaluation], names: Sequence[str]) -> Mapping[str, Evaluation]:
    if list(names) == ["none"]:
        return {}
    known = f"evaluations: {', '.join(evals) or 'none'}"
    if not names:
        raise ConfigError(f"config: --evals needs names, or none; {known}")
    if unknown := [name for name in names if name not in evals]:
        raise ConfigError(f"config: there is no evaluation {unknown[0]!r}; {known}")
    return {name: evaluation for name, evaluation in evals.items() if name in names}
