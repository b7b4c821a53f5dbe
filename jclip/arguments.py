"""Arguments of the command line that several commands take."""

import argparse
import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jclip.config import Subset

OWNERS = ("jclip", "open_clip", "hugging_face")
"""Libraries whose folders of weights are read and written."""


def writable(path: str) -> str:
    """A path that is written to. An address would become folders of such names."""
    if "://" in path:
        raise argparse.ArgumentTypeError(f"{path} is an address and no path; mount the bucket and give the path it has then")
    return os.path.expanduser(path)  # which a shell leaves to us in --out=~/run, and in quotes


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say more of a model, the same in every command that takes one."""
    model = parser.add_argument_group("what MODEL does not say itself")
    model.add_argument("--step", type=int, help="which checkpoint of a workdir (default: the last)")
    model.add_argument(
        "--architecture", dest="architecture_name", metavar="NAME", help="of a weight file: ViT-B-32-quickgelu, ..."
    )
    model.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="vocabulary of a big_vision .npz, a SigLIP architecture, or a CLAP: left out there",
    )
    model.add_argument("--from", dest="kind", choices=OWNERS, help="as whose a folder is read, if it has the files of several")
    model.add_argument(
        "--image-size", type=image_size, metavar="N|HxW", help="resample the positions for images of N by N, or H by W, pixels"
    )
    model.add_argument("--context-length", type=int, metavar="N", help="interpolate the positions for texts of N tokens")
    model.add_argument("--mean", nargs=3, type=float, metavar="X", help="of a weight file: mean of red, green and blue, 0 to 1")
    model.add_argument("--std", nargs=3, type=float, metavar="X", help="of a weight file: their standard deviation")
    model.add_argument("--interpolation", choices=("bicubic", "bilinear"), help="of a weight file: filter of the resize")
    model.add_argument("--resize", choices=("shortest", "longest", "squash"), help="of a weight file: which side is resized")


def add_subset_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which examples of a source are meant, the same in every command that takes one; see `Subset`."""
    subset = parser.add_argument_group("a part of SOURCE, as data.subset: what all of these keep")
    subset.add_argument("--keys", default="", metavar="FILE", help="keys of examples: .txt, .jsonl, .npy or .parquet")
    subset.add_argument("--by", default="key", metavar="FIELD", help="what stands in FILE, such as json.uid (default: key)")
    subset.add_argument("--where", default="", metavar="CONDITION", help="such as 'json.width >= 256 and score > 0.28'")
    subset.add_argument("--table", default="", metavar="FILE", help=".parquet with a column key, and further fields of examples")
    subset.add_argument(
        "--best", nargs=2, metavar=("FIELD", "SHARE"), help="the share of SOURCE with the highest numbers, such as: score 0.3"
    )


def subset_options(options: argparse.Namespace) -> "Subset":
    """The options of `add_subset_options`."""
    from jclip.config import Subset

    subset = Subset(options.keys, options.by, options.where, options.table)
    if options.best is None:
        return subset
    field, share = options.best[0], _number(options.best[1])
    if not 0 < share <= 1:
        options.parser.error(f"--best {field} {options.best[1]}: the share must be above 0 and at most 1, such as 0.3")
    return replace(subset, best=(field, share))


def _number(text: str) -> float:
    """The number that a text is; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def image_size(text: str) -> int | tuple[int, ...]:
    """384, or of "96x64" height and width."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a side, such as 384, nor height and width, such as 96x64")
    return int(sides[0]) if len(sides) == 1 else tuple(map(int, sides))


def checkpoint_step(text: str) -> int:
    """The number of a checkpoint."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no step, such as 1000; to go on from the last checkpoint leave it out")
    return int(text)


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `jclip.load`: the options of `add_model_options` that are given."""
    names = ("step", "architecture_name", "tokenizer", "kind", "image_size", "context_length")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    pixels = {name: getattr(options, name) for name in ("mean", "std", "interpolation", "resize")}
    preprocess = {name: tuple(v) if isinstance(v, list) else v for name, v in pixels.items() if v is not None}
    return given | ({"preprocess": preprocess} if preprocess else {})
