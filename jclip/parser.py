"""The parser of the command line: every command with its arguments and its help."""

import argparse
from typing import Any

from jclip import __version__
from jclip.arguments import OWNERS, add_model_options, add_subset_options, checkpoint_step, image_size, writable
from jclip.help import (
    ADAPT,
    CAPTION,
    CLASSIFY,
    COMPILE,
    CONVERT,
    DATA,
    DESCRIPTION,
    EMBED,
    EVAL,
    FILTER,
    INFO,
    INSPECT,
    PACK,
    REPORT,
    TRAIN,
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. What it returns has the name of the command, and as `parser` that of its own arguments."""
    parser = argparse.ArgumentParser("jclip", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"jclip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, summary: str, description: str, **options: Any) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        own: argparse.ArgumentParser = commands.add_parser(
            name, help=summary, description=description, formatter_class=raw, **options
        )
        own.set_defaults(parser=own)
        return own

    # --help after a recipe belongs to the recipe: it explains every field with the recipe's values.
    _add_train(command("train", "train the model of a recipe", TRAIN, add_help=False, allow_abbrev=False))
    _add_eval(command("eval", "evaluate a model", EVAL, allow_abbrev=False))
    _add_report(command("report", "results as a page", REPORT))
    _add_classify(command("classify", "name what is in images", CLASSIFY))
    _add_caption(command("caption", "write what is in images, or in sounds", CAPTION))
    _add_embed(command("embed", "write embeddings to .npy", EMBED))
    _add_data(command("data", "what a source holds", DATA))
    _add_filter(command("filter", "which examples are worth training on", FILTER, add_help=False, allow_abbrev=False))
    _add_adapt(command("adapt", "adapt a model to a few examples a class", ADAPT, add_help=False, allow_abbrev=False))
    _add_pack(command("pack", "a source as shards, with smaller pictures", PACK))
    _add_convert(command("convert", "weights in and out", CONVERT))
    _add_info(command("info", "what a model is", INFO))
    _add_inspect(command("inspect", "what a recipe will do, as a page", INSPECT, allow_abbrev=False))
    _add_compile(command("compile", "does a recipe fit a TPU slice, and how fast is it?", COMPILE, allow_abbrev=False))
    commands.metavar = f"{{{','.join(commands.choices)}}}"
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("recipe", nargs="?", metavar="CONFIG.py", help="a Python file that defines get_config()")
    train.add_argument("--workdir", metavar="W", help="folder of the run, or its address (s3://, gs://)")
    resume = "go on from this checkpoint of W; later ones move to W/set_aside. After an interruption the same command goes on"
    train.add_argument("--resume-from", type=checkpoint_step, metavar="STEP", help=f"{resume} from what it has saved since")
    train.add_argument("-h", "--help", action="store_true", help="with a recipe: every field; without: this")
    train.add_argument("--quiet", action="store_true", help="show nothing but errors; metrics.jsonl has all")


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


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument(
        "results", nargs="+", metavar="RESULTS", help="files that `jclip eval --json` wrote, or one folder of `jclip adapt`"
    )
    report.add_argument("--html", type=writable, metavar="FILE", help="the page (default: report.html beside the first)")


def _add_classify(classify: argparse.ArgumentParser) -> None:
    files = "files of images or of sounds, folders of them, and patterns in quotes"
    classify.add_argument("images", nargs="+", metavar="FILES", help=files)
    classify.add_argument("--model", required=True, metavar="MODEL", help="as in `jclip eval`")
    classify.add_argument("--labels", nargs="+", default=[], metavar="NAME", help="classes; file:PATH: the lines of a file")
    prompts = 'prompts with {} for the class, set:NAME or file:PATH (default: "a photo of a {}." or "This is a sound of {}.")'
    classify.add_argument("--templates", nargs="+", default=[], metavar="TEXT", help=prompts)
    classify.add_argument("--probe", metavar="FILE", help="a saved linear probe, in place of --labels")
    classify.add_argument("--truth", metavar="NAME", help="the right class of all files, whose rank is printed")
    top = "classes of each in tables, with --json and in --output (default: 5); a line has the best"
    classify.add_argument("--top", type=int, default=5, metavar="K", help=top)
    classify.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a batch (default: 64)")
    add_model_options(classify)
    classify.add_argument("--output", type=writable, metavar="FILE", help="write a line an image: .csv, .tsv, or JSON lines")
    classify.add_argument("--json", action="store_true", help="print one JSON object a file")
    _add_max_pixels(classify)


def _add_caption(caption: argparse.ArgumentParser) -> None:
    caption.add_argument("model", metavar="MODEL", help="a --workdir, or weights as in `jclip convert`")
    caption.add_argument("images", nargs="+", metavar="FILES", help="images or sounds: files, folders, and patterns in quotes")
    caption.add_argument("--beams", type=int, default=1, metavar="N", help="captions followed at a time (default: 1, greedy)")
    caption.add_argument("--length", type=int, metavar="N", help="tokens at most, start and end among them (default: all)")
    caption.add_argument(
        "--length-penalty", type=float, default=1.0, metavar="X", help="0 prefers short captions, 1 compares means (default: 1)"
    )
    caption.add_argument("--batch-size", type=int, default=64, metavar="N", help="files a batch (default: 64)")
    add_model_options(caption)
    caption.add_argument("--output", type=writable, metavar="FILE", help="write JSON lines to a file")
    caption.add_argument("--json", action="store_true", help="print one JSON object an image")
    _add_max_pixels(caption)


def _add_embed(embed: argparse.ArgumentParser) -> None:
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
    add_subset_options(embed)
    add_model_options(embed)
    _add_max_pixels(embed)


def _add_data(data: argparse.ArgumentParser) -> None:
    data.add_argument("source", metavar="SOURCE", help="a folder of images or sounds, or a source as in `jclip train --help`")
    data.add_argument("--json", action="store_true", help="print one JSON object")
    instead = data.add_mutually_exclusive_group()
    instead.add_argument("--html", type=writable, metavar="FILE", help="write a page with pictures, too (extra: report)")
    instead.add_argument("--rate", action="store_true", help="print pictures a second instead")
    data.add_argument("--most", type=int, default=2000, metavar="N", help="examples that are read (default: 2000)")
    data.add_argument("--context-length", type=int, default=77, metavar="N", help="tokens of a caption that count (default: 77)")
    data.add_argument("--image", default="image", metavar="FIELD", help="field of the image, as in data.fields (default: image)")
    data.add_argument("--sound", default="sound", metavar="FIELD", help="field of the sound, as in data.fields (default: sound)")
    data.add_argument("--text", default="text", metavar="FIELD", help="field of the caption, as in data.fields (default: text)")
    add_subset_options(data)
    rate = data.add_argument_group("for --rate")
    rate.add_argument("--size", type=image_size, default=224, metavar="N|HxW", help="pixels of what a tower sees (default: 224)")
    rate.add_argument("--workers", type=int, default=0, metavar="N", help="as data.workers (default: 0, threads)")
    rate.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of each of four measurements (default: 5)")


def _add_filter(rules: argparse.ArgumentParser) -> None:
    rules.add_argument(
        "source", nargs="?", metavar="SOURCE", help="a folder of images, or a source as in `jclip train --help`; comes first"
    )
    rules.add_argument("folder", nargs="?", type=writable, metavar="DIR", help="folder to write to")
    rules.add_argument("--recipe", metavar="FILE.py", help="a Python file that defines get_filter() (default: no rule)")
    rules.add_argument("-h", "--help", action="store_true", help="this, and every rule")


def _add_adapt(adapt: argparse.ArgumentParser) -> None:
    adapt.add_argument("model", nargs="?", metavar="MODEL", help="as in `jclip eval`; comes first")
    adapt.add_argument("--method", nargs="+", default=[], metavar="NAME", help="tip, tip_f, coop, ...: which methods")
    adapt.add_argument("--out", type=writable, metavar="DIR", help="folder to write to")
    adapt.add_argument("--recipe", metavar="FILE.py", help="a Python file that defines get_adapt()")
    add_model_options(adapt)
    adapt.add_argument("--json", action="store_true", help="print one JSON object in place of a table")
    adapt.add_argument(
        "--cache",
        type=writable,
        metavar="DIR",
        help="where features are kept (default: features in $JCLIP_CACHE or ~/.cache/jclip)",
    )
    adapt.add_argument("--no-cache", action="store_true", help="keep no features")
    adapt.add_argument("-h", "--help", action="store_true", help="this, and every option of the protocol")


def _add_pack(pack: argparse.ArgumentParser) -> None:
    pack.add_argument("source", metavar="SOURCE", help="a folder of images, or a source as in `jclip train --help`")
    pack.add_argument("folder", type=writable, metavar="DIR", help="folder to write to")
    pack.add_argument("--shorter-side", type=int, metavar="N", help="pixels; larger pictures are made so small (default: as is)")
    formats = ("jpeg", "png", "webp")
    pack.add_argument("--format", choices=formats, default="jpeg", help="of pictures that are encoded anew (default: jpeg)")
    pack.add_argument("--quality", type=int, default=95, metavar="N", help="of JPEG and WebP, 1 to 100 (default: 95)")
    kinds = ("webdataset", "arrayrecord")
    pack.add_argument("--shards", choices=kinds, default="webdataset", help="their format (default: webdataset, which are tars)")
    pack.add_argument("--per-shard", type=int, default=10_000, metavar="N", help="examples a shard (default: 10,000)")
    pack.add_argument("--split", default="train", metavar="NAME", help="folder of shards, of a labelled source (default: train)")
    add_subset_options(pack)
    _add_max_pixels(pack)


def _add_convert(convert: argparse.ArgumentParser) -> None:
    convert.add_argument(
        "source", metavar="SRC", help="a --workdir, a folder of weights, or a .safetensors, .bin, .pt or .npz file"
    )
    convert.add_argument("folder", type=writable, metavar="DST", help="folder to make")
    convert.add_argument("--to", choices=OWNERS, default="jclip", help="whose (default: jclip)")
    add_model_options(convert)


def _add_info(info: argparse.ArgumentParser) -> None:
    info.add_argument(
        "model", nargs="?", metavar="MODEL", help="an architecture, a --workdir, or weights (default: all architectures)"
    )
    add_model_options(info)
    info.add_argument("--json", action="store_true", help="print one JSON object")


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("recipe", metavar="CONFIG.py", help="a Python file that defines get_config()")
    inspect.add_argument("--html", type=writable, default="inspect.html", metavar="FILE", help="the page (default: inspect.html)")
    inspect.add_argument("--topology", metavar="NAME", help="the devices it is meant for, as in `jclip compile` (default: these)")
    inspect.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of the loader's measurement (default: 5)")


def _add_compile(compile_: argparse.ArgumentParser) -> None:
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


def _add_max_pixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-pixels", type=int, default=64_000_000, metavar="N", help="of an image; larger ones are refused")
