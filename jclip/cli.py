"""The command line: `jclip COMMAND`, of which COMMANDS is the table.

Nothing heavy is imported before it is needed.
"""

import argparse
import logging
import os
import re
import select
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

from jclip.arguments import model_options, subset_options
from jclip.parser import make_parser

if TYPE_CHECKING:
    from jclip.config import Config, Filter


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, or 1 after an error that has been explained."""
    try:
        return _main(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:
        if not _is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes when it ends
        return 141  # as of a program that SIGPIPE has ended


def _is_closed() -> bool:
    """True where whoever reads the output, such as `head`, has gone."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


def _main(arguments: list[str]) -> int:
    parser = make_parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and options.command not in ("train", "inspect", "compile", "eval", "filter", "adapt"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}{_hint(overrides, options.parser.format_usage())}")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("jclip.data.ways").setLevel(logging.INFO)  # says how remote data are read, in a line for each source
    try:
        return int(COMMANDS[options.command](options, overrides) or 0)
    except _expected_errors() as error:
        if isinstance(error, BrokenPipeError) and _is_closed():
            raise
        print(_shown(f"jclip: {type(error).__name__}: {error}"), file=sys.stderr)
        return 1


class _Formatter(logging.Formatter):
    """Lines of a log, and tracebacks, without what is secret in the addresses of data."""

    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record))


def _shown(text: str) -> str:
    if "://" not in text:
        return text
    from jclip.data.addresses import shown

    return shown(text)


def _hint(unknown: Sequence[str], usage: str) -> str:
    """Cause of arguments too many: a shell has expanded a pattern, or an option of the `usage` is misspelt."""
    if any(name.endswith(".tar") or os.path.exists(name) for name in unknown if not name.startswith("-")):
        return "; a pattern of files is one argument: put it in quotes, or the shell expands it"
    known = dict.fromkeys(re.findall(r"--[a-z-]+", usage))
    near = [match for name in unknown if name.startswith("--") for match in get_close_matches(name.partition("=")[0], known, 1)]
    return f"; perhaps {', '.join(near)}" if near else ""


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.recipe is None:
        options.parser.print_help()
        return 0 if options.help else 2
    from jclip.config import load

    if options.help:
        load(options.recipe, [*overrides, "--help"])
    _quiet()
    from jclip import train
    from jclip.compiled import keep_compiled
    from jclip.processes import join_processes, together

    def read() -> "Config":
        config = load(options.recipe, overrides)
        if options.workdir is None:
            options.parser.error("the following arguments are required: --workdir")
        return config

    join_processes()  # first: what one process cannot read ends the others too
    config = together(read)
    keep_compiled()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if options.quiet else nullcontext():
        train.main(config, options.workdir, resume_from=options.resume_from)
    return 0


def _inspect(options: argparse.Namespace, overrides: list[str]) -> None:
    from jclip.config import load

    _quiet()
    config = load(options.recipe, overrides, command="inspect")
    from jclip.report import require_extra

    require_extra("inspect")
    from jclip.report import inspect

    inspect.main(config, options.recipe, options.html, options.topology, options.seconds)


def _compile(options: argparse.Namespace, overrides: list[str]) -> int:
    from jclip.config import load

    _quiet()
    if options.sweep is not None:
        from jclip import sweep

        make = partial(load, options.recipe, command="compile")
        return 0 if sweep.main(make, overrides, options.sweep, options.topology, options.json) else 1
    if options.json is not None:
        options.parser.error("--json keeps the rows of --sweep; give both")
    config = load(options.recipe, overrides, command="compile")
    from jclip import compile

    return 0 if compile.main(config, options.topology) else 1


def _eval(options: argparse.Namespace, overrides: list[str]) -> int:
    from jclip.config import load_suite

    if options.suite is None and (overrides or options.help_suite):
        print(f"jclip eval: unknown: {' '.join(overrides) or '--help-suite'}; options of a suite need --suite", file=sys.stderr)
        return 2
    if options.suite and options.help_suite:
        load_suite(options.suite, ["--help"])
    _quiet()
    from jclip import evaluate
    from jclip.compiled import keep_compiled
    from jclip.processes import join_processes, together

    join_processes()  # first: what one process cannot read ends the others too
    suite = together(lambda: load_suite(options.suite, overrides) if options.suite else None)
    keep_compiled()
    evaluate.main(
        options.model,
        suite=suite,
        names=options.evals,
        **model_options(options),
        out=options.json if isinstance(options.json, str) else None,
        as_json=options.json is True,
        cache=None if options.no_cache else options.cache or (evaluate.default_cache() if suite else None),
        title=options.suite or "",
        max_pixels=options.max_pixels,
    )
    return 0


def _report(options: argparse.Namespace, overrides: list[str]) -> None:
    from jclip import report

    report.main(options.results, html=options.html)


def _classify(options: argparse.Namespace, overrides: list[str]) -> None:
    _quiet()
    from jclip import classify
    from jclip.compiled import keep_compiled

    keep_compiled()
    classify.main(
        options.images,
        options.model,
        labels=options.labels,
        templates=options.templates,
        probe=options.probe,
        truth=options.truth,
        top=options.top,
        batch_size=options.batch_size,
        out=options.output,
        as_json=options.json,
        max_pixels=options.max_pixels,
        **model_options(options),
    )


def _caption(options: argparse.Namespace, overrides: list[str]) -> None:
    _quiet()
    from jclip import caption
    from jclip.compiled import keep_compiled

    keep_compiled()
    caption.main(
        options.model,
        options.images,
        beams=options.beams,
        length=options.length,
        length_penalty=options.length_penalty,
        batch_size=options.batch_size,
        out=options.output,
        as_json=options.json,
        max_pixels=options.max_pixels,
        **model_options(options),
    )


def _embed(options: argparse.Namespace, overrides: list[str]) -> None:
    _quiet()
    from jclip import embed
    from jclip.compiled import keep_compiled

    keep_compiled()
    embed.main(
        options.model,
        options.source,
        options.out,
        towers=options.towers,
        subset=subset_options(options),
        fields=dict(options.fields),
        batch_size=options.batch_size,
        **model_options(options),
        max_pixels=options.max_pixels,
    )


def _data(options: argparse.Namespace, overrides: list[str]) -> None:
    from jclip.report import data, rate

    if options.rate:
        rate.main(
            options.source,
            subset=subset_options(options),
            image=options.image,
            size=options.size,
            workers=options.workers,
            seconds=options.seconds,
            as_json=options.json,
        )
        return
    data.main(
        options.source,
        subset=subset_options(options),
        html=options.html,
        as_json=options.json,
        context_length=options.context_length,
        most=options.most,
        image=options.image,
        text=options.text,
        sound=options.sound,
    )


def _convert(options: argparse.Namespace, overrides: list[str]) -> None:
    _quiet()
    from jclip import convert

    convert.main(
        options.source,
        options.folder,
        to=options.to,
        **model_options(options),
    )


def _info(options: argparse.Namespace, overrides: list[str]) -> None:
    _quiet()
    from jclip import info

    info.main(options.model, as_json=options.json, **model_options(options))


def _quiet() -> None:
    """Orbax and absl log every step of a save as INFO on stderr; warnings and errors stay."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


def _pack(options: argparse.Namespace, overrides: list[str]) -> None:
    from jclip import pack

    sizes = options.shorter_side, options.format, options.quality, options.per_shard, options.max_pixels
    form = pack.Options(*sizes, options.shards)
    print(pack.main(options.source, options.folder, form, split=options.split, subset=subset_options(options)))


def _filter(options: argparse.Namespace, overrides: list[str]) -> int:
    from jclip.config import load_filter

    if options.help:
        options.parser.print_help()
        print()
        load_filter(options.recipe, ["--help"])
    _quiet()
    from jclip import filter
    from jclip.compiled import keep_compiled
    from jclip.processes import is_first, join_processes, together

    def read() -> "Filter":
        rules = load_filter(options.recipe, overrides)
        if options.source is None or options.folder is None:
            options.parser.error("the following arguments are required: SOURCE, DIR")
        return rules

    join_processes()  # first: what one process cannot read ends the others too
    rules = together(read)
    keep_compiled()
    kept = filter.main(options.source, options.folder, rules)
    if is_first():
        print(f"jclip train CONFIG.py --data.source {shlex.quote(options.source)} --data.subset.keys {shlex.quote(str(kept))}")
    return 0


def _adapt(options: argparse.Namespace, overrides: list[str]) -> None:
    from jclip.config import load_adapt

    if options.help:
        options.parser.print_help()
        print()
        load_adapt(options.recipe, options.method, ["--help"])
    _quiet()
    from jclip import adaptation, evaluate
    from jclip.compiled import keep_compiled
    from jclip.processes import join_processes, together

    join_processes()  # first: what one process cannot read ends the others too
    config = together(lambda: load_adapt(options.recipe, options.method, overrides))
    if options.model is None or options.out is None:
        options.parser.error("the following arguments are required: MODEL, --out")
    keep_compiled()
    adaptation.main(
        options.model,
        config,
        options.out,
        cache=None if options.no_cache else options.cache or evaluate.default_cache(),
        as_json=options.json,
        **model_options(options),
    )


def _expected_errors() -> tuple[type[BaseException], ...]:
    """Errors whose message says it all: no traceback. Those of modules that have not been imported cannot have been raised."""
    names = {
        "jclip.config": ("ConfigError",),
        "jclip.checkpoint": ("CheckpointError",),
        "jclip.data.source": ("SourceError", "BadExample"),
        "jclip.data.loader": ("LostWorker",),
        "jclip.lock": ("LockedWorkdir",),
        "jclip.mirror": ("NotCopied",),
        "jclip.metrics": ("NonFiniteLoss",),
        "jclip.processes": ("LostProcess", "Refused"),
        "jclip.weights.errors": ("WeightsError",),
    }
    found = [getattr(sys.modules[module], name) for module in names if module in sys.modules for name in names[module]]
    return (*found, OSError)


COMMANDS: Mapping[str, Callable[[argparse.Namespace, list[str]], int | None]] = {
    "train": _train,
    "eval": _eval,
    "report": _report,
    "classify": _classify,
    "caption": _caption,
    "embed": _embed,
    "data": _data,
    "filter": _filter,
    "adapt": _adapt,
    "pack": _pack,
    "convert": _convert,
    "info": _info,
    "inspect": _inspect,
    "compile": _compile,
}
"""Function that runs each command, given its options and the overrides of a recipe or suite."""

if __name__ == "__main__":
    sys.exit(main())
