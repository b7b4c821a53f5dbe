"""The command line: `jclip train | eval | report | classify | caption | embed | data | convert | info | inspect | compile`.

Nothing heavy is imported before it is needed.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING

from jclip import __version__
from jclip.arguments import OWNERS, add_model_options, image_size, model_options, writable
from jclip.help import CAPTION, CLASSIFY, COMPILE, CONVERT, DATA, DESCRIPTION, EMBED, EVAL, INFO, INSPECT, REPORT, TRAIN

if TYPE_CHECKING:
    from jclip.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, or 1 after an error that has been explained."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and options.command not in ("train", "inspect", "compile", "eval"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}{_hint(overrides)}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(options.run(options, overrides) or 0)
    except _expected_errors() as error:
        print(f"jclip: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _hint(unknown: Sequence[str]) -> str:
    """Cause of arguments too many that are files: a shell has expanded a pattern."""
    files = any(name.endswith(".tar") or os.path.exists(name) for name in unknown)
    return "; a pattern of files is one argument: put it in quotes, or the shell expands it" if files else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("jclip", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"jclip {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{train,eval,report,classify,caption,embed,data,convert,info,inspect,compile}"
    )
    raw = argparse.RawDescriptionHelpFormatter

    # --help after a recipe belongs to the recipe: it explains every field with the recipe's values.
    train = commands.add_parser(
        "train", help="train the model of a recipe", description=TRAIN, formatter_class=raw, add_help=False, allow_abbrev=False
    )
    train.add_argument("recipe", nargs="?", metavar="CONFIG.py", help="a Python file that defines get_config()")
    train.add_argument("--workdir", metavar="W", help="folder of the run: config.json, metrics.jsonl, checkpoints/")
    train.add_argument(
        "--resume-from", type=int, metavar="STEP", help="go on from this checkpoint of W; later ones move to W/set_aside"
    )
    train.add_argument("-h", "--help", action="store_true", help="with a recipe: every field; without: this")
    train.add_argument("--quiet", action="store_true", help="show nothing but errors; metrics.jsonl has all")
    train.set_defaults(run=lambda options, overrides: _train(options, overrides, train))

    _add_eval(commands.add_parser("eval", help="evaluate a model", description=EVAL, formatter_class=raw, allow_abbrev=False))

    report = commands.add_parser("report", help="results as a page", description=REPORT, formatter_class=raw)
    report.add_argument("results", nargs="+", metavar="OUT.json", help="files that `jclip eval --json` wrote")
    report.add_argument("--html", type=writable, metavar="FILE", help="the page (default: report.html beside the first)")
    report.set_defaults(run=_report)

    _add_classify(commands.add_parser("classify", help="name what is in images", description=CLASSIFY, formatter_class=raw))

    _add_caption(commands.add_parser("caption", help="write what is in images", description=CAPTION, formatter_class=raw))

    embed = commands.add_parser("embed", help="write embeddings to .npy", description=EMBED, formatter_class=raw)
    embed.add_argument(
        "model", metavar="MODEL", help="a --workdir, weights as in `jclip convert`, or an architecture (random weights)"
    )
    embed.add_argument("source", metavar="SOURCE", help="a folder of images, or a source as in `jclip train --help`")
    embed.add_argument("--out", required=True, type=writable, metavar="DIR", help="folder to write to")
    embed.add_argument("--towers", nargs="+", default=["image"], metavar="TOWER", help="which towers (default: image)")
    embed.add_argument(
        "--fields",
        nargs=2,
        action="append",
        default=[],
        metavar=("TOWER", "FIELD"),
        help="what a tower sees, as in data.fields (default: the field of its name)",
    )
    embed.add_argument("--batch-size", type=int, default=64, help="rows a batch (default: 64)")
    add_model_options(embed)
    embed.add_argument("--max-pixels", type=int, default=64_000_000, metavar="N", help="of an image; larger ones are refused")
    embed.set_defaults(run=_embed)

    data = commands.add_parser("data", help="what a source holds", description=DATA, formatter_class=raw)
    data.add_argument("source", metavar="SOURCE", help="a folder of images, or a source as in `jclip train --help`")
    data.add_argument("--json", action="store_true", help="print one JSON object")
    instead = data.add_mutually_exclusive_group()
    instead.add_argument("--html", type=writable, metavar="FILE", help="write a page with pictures, too (extra: report)")
    instead.add_argument("--rate", action="store_true", help="print pictures a second instead")
    data.add_argument("--most", type=int, default=2000, metavar="N", help="examples that are read (default: 2000)")
    data.add_argument("--context-length", type=int, default=77, metavar="N", help="tokens of a caption that count (default: 77)")
    data.add_argument("--image", default="image", metavar="FIELD", help="field of the image, as in data.fields (default: image)")
    data.add_argument("--text", default="text", metavar="FIELD", help="field of the caption, as in data.fields (default: text)")
    rate = data.add_argument_group("for --rate")
    rate.add_argument("--size", type=image_size, default=224, metavar="N|HxW", help="pixels of what a tower sees (default: 224)")
    rate.add_argument("--workers", type=int, default=0, metavar="N", help="as data.workers (default: 0, threads)")
    rate.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of each of four measurements (default: 5)")
    data.set_defaults(run=_data)

    _add_convert(commands.add_parser("convert", help="weights in and out", description=CONVERT, formatter_class=raw))

    info = commands.add_parser("info", help="what a model is", description=INFO, formatter_class=raw)
    info.add_argument(
        "model", nargs="?", metavar="MODEL", help="an architecture, a --workdir, or weights (default: all architectures)"
    )
    add_model_options(info)
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(run=_info)

    inspect = commands.add_parser(
        "inspect", help="what a recipe will do, as a page", description=INSPECT, formatter_class=raw, allow_abbrev=False
    )
    inspect.add_argument("recipe", metavar="CONFIG.py", help="a Python file that defines get_config()")
    inspect.add_argument("--html", type=writable, default="inspect.html", metavar="FILE", help="the page (default: inspect.html)")
    inspect.add_argument("--topology", metavar="NAME", help="the devices it is meant for, as in `jclip compile` (default: these)")
    inspect.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of the loader's measurement (default: 5)")
    inspect.set_defaults(run=_inspect)

    compile_ = commands.add_parser(
        "compile",
        help="does a recipe fit a TPU slice, and how fast is it?",
        description=COMPILE,
        formatter_class=raw,
        allow_abbrev=False,
    )
    compile_.add_argument("recipe", metavar="CONFIG.py", help="a Python file that defines get_config()")
    compile_.add_argument(
        "--topology", metavar="KIND:SIZE", help="v5e:16x16, v5p:4x4x4, v6e:8x8, cpu:8, ... (default: this machine's devices)"
    )
    compile_.add_argument(
        "--sweep",
        nargs="*",
        metavar="PATH=VALUE,...",
        help="compile every combination: model.remat=none,q+k+v batch_size=1024,2048 (default: some around the recipe)",
    )
    compile_.add_argument("--json", type=writable, metavar="FILE", help="rows of --sweep; what FILE has is not compiled again")
    compile_.set_defaults(run=partial(_compile, parser=compile_))
    return parser


def _add_eval(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("model", metavar="MODEL", help="a --workdir, weights as in `jclip convert`, or an architecture")
    evaluate.add_argument("--suite", metavar="FILE.py", help="evaluations (default: those of the run's own recipe)")
    evaluate.add_argument("--help-suite", action="store_true", help="print the options of the suite")
    evaluate.add_argument("--evals", nargs="+", default=[], metavar="NAME", help="which evaluations (default: all)")
    add_model_options(evaluate)
    evaluate.add_argument(
        "--json",
        nargs="?",
        const=True,
        type=writable,
        metavar="OUT.json",
        help="write results to a file; without a name: print one JSON object",
    )
    evaluate.add_argument(
        "--cache",
        type=writable,
        metavar="DIR",
        help="where features are kept (default, of suites: features in $JCLIP_CACHE or ~/.cache/jclip)",
    )
    evaluate.add_argument(
        "--max-pixels", type=int, metavar="N", help="of an image; larger ones are broken (default: as the suite or run says)"
    )
    evaluate.add_argument("--no-cache", action="store_true", help="keep no features")
    evaluate.set_defaults(run=_eval)


def _add_classify(classify: argparse.ArgumentParser) -> None:
    classify.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    classify.add_argument("--model", required=True, metavar="MODEL", help="as in `jclip eval`")
    classify.add_argument("--labels", nargs="+", default=[], metavar="NAME", help="classes; file:PATH: the lines of a file")
    prompts = 'prompts with {} for the class, set:NAME or file:PATH (default: "a photo of a {}.")'
    classify.add_argument("--templates", nargs="+", default=[], metavar="TEXT", help=prompts)
    classify.add_argument("--probe", metavar="FILE", help="a saved linear probe, in place of --labels")
    classify.add_argument("--truth", metavar="NAME", help="the right class of all images, whose rank is printed")
    classify.add_argument("--top", type=int, default=5, metavar="K", help="classes printed (default: 5)")
    add_model_options(classify)
    classify.add_argument("--json", action="store_true", help="print one JSON object an image")
    classify.add_argument("--max-pixels", type=int, default=64_000_000, metavar="N", help="of an image; larger ones are refused")
    classify.set_defaults(run=_classify)


def _add_caption(caption: argparse.ArgumentParser) -> None:
    caption.add_argument("model", metavar="MODEL", help="a --workdir, or weights as in `jclip convert`")
    caption.add_argument("images", nargs="+", metavar="IMAGES", help="image files, and folders of them")
    caption.add_argument("--beams", type=int, default=1, metavar="N", help="captions followed at a time (default: 1, greedy)")
    caption.add_argument("--length", type=int, metavar="N", help="tokens at most, start and end among them (default: all)")
    caption.add_argument(
        "--length-penalty", type=float, default=1.0, metavar="X", help="0 prefers short captions, 1 compares means (default: 1)"
    )
    caption.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a batch (default: 64)")
    add_model_options(caption)
    caption.add_argument("--output", type=writable, metavar="FILE", help="write JSON lines to a file")
    caption.add_argument("--json", action="store_true", help="print one JSON object an image")
    caption.add_argument("--max-pixels", type=int, default=64_000_000, metavar="N", help="of an image; larger ones are refused")
    caption.set_defaults(run=_caption)


def _add_convert(convert: argparse.ArgumentParser) -> None:
    convert.add_argument(
        "source", metavar="SRC", help="a --workdir, a folder of weights, or a .safetensors, .bin, .pt or .npz file"
    )
    convert.add_argument("folder", type=writable, metavar="DST", help="folder to make")
    convert.add_argument("--to", choices=OWNERS, default="jclip", help="whose (default: jclip)")
    add_model_options(convert)
    convert.set_defaults(run=_convert)


def _train(options: argparse.Namespace, overrides: list[str], parser: argparse.ArgumentParser) -> int:
    if options.recipe is None:
        parser.print_help()
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
            parser.error("the following arguments are required: --workdir")
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
    config = load(options.recipe, overrides)
    from jclip.report import inspect

    inspect.main(config, options.recipe, options.html, options.topology, options.seconds)


def _compile(options: argparse.Namespace, overrides: list[str], parser: argparse.ArgumentParser) -> int:
    from jclip.config import load

    _quiet()
    if options.sweep is not None:
        from jclip import sweep

        make = partial(load, options.recipe)
        return 0 if sweep.main(make, overrides, options.sweep, options.topology, options.json) else 1
    if options.json is not None:
        parser.error("--json keeps the rows of --sweep; give both")
    config = load(options.recipe, overrides)
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
            image=options.image,
            size=options.size,
            workers=options.workers,
            seconds=options.seconds,
            as_json=options.json,
        )
        return
    data.main(
        options.source,
        html=options.html,
        as_json=options.json,
        context_length=options.context_length,
        most=options.most,
        image=options.image,
        text=options.text,
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
    """Orbax and absl tell every step of a save as INFO on stderr; warnings and errors stay."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


def _expected_errors() -> tuple[type[BaseException], ...]:
    """Errors whose message says it all: no traceback. Those of modules that have not been imported cannot have been raised."""
    names = {
        "jclip.config": ("ConfigError",),
        "jclip.checkpoint": ("CheckpointError",),
        "jclip.data.source": ("SourceError", "BadExample"),
        "jclip.data.loader": ("LostWorker",),
        "jclip.lock": ("LockedWorkdir",),
        "jclip.metrics": ("NonFiniteLoss",),
        "jclip.processes": ("LostProcess", "Refused"),
        "jclip.weights.errors": ("WeightsError",),
    }
    found = [getattr(sys.modules[module], name) for module in names if module in sys.modules for name in names[module]]
    return (*found, OSError)


if __name__ == "__main__":
    sys.exit(main())
