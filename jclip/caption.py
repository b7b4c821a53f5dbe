"""`jclip caption`: what a model with a decoder writes of images or sounds, one line each."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import track

from jclip.config import ConfigError, SoundTower
from jclip.data.decoding import MAX_PIXELS
from jclip.data.pictures import example_files, read_pictures, read_sounds
from jclip.inference import Encoder, load


def main(
    model: str | Path | Encoder,
    images: Sequence[str | Path],
    *,
    beams: int = 1,
    length: int | None = None,
    length_penalty: float = 1.0,
    batch_size: int = 64,
    out: str | Path | None = None,
    as_json: bool = False,
    step: int | None = None,
    max_pixels: int = MAX_PIXELS,
    **how: Any,
) -> list[dict[str, str]]:
    """Prints a caption of each image, or of each sound where that is what the model's decoder describes.

    Args:
        model: as `jclip.load` takes it.
        images: files, folders and globs, as `example_files` takes them: all of images, turned as their EXIF data say, or all of
            sounds.
        beams: as in `Encoder.caption`.
        length: likewise.
        length_penalty: likewise.
        batch_size: images or sounds a batch.
        out: file that gets a JSON object for each, in place of the terminal; it is there as soon as the first batch is done.
        as_json: print JSON objects instead of text.
        step: which checkpoint of a workdir.
        max_pixels: a larger image is refused before it is decoded.
        how: further arguments of `jclip.load`.

    Returns:
        For each {"image" or "sound": its path, "caption"}, or of one that cannot be read the path and "problem": it is said, and
        the others go on.

    Raises:
        ConfigError: the model has nothing that writes captions of these, a number is out of range, or no file can be read.
        SourceError: a folder has no images and no sounds, a glob matches none, or there are both.
    """
    if batch_size < 1:
        raise ConfigError(f"caption: --batch-size {batch_size} must be at least 1")
    paths, kind = example_files(images)
    encoder, say = load(model, step=step, **how), Console(emoji=False, stderr=True, highlight=False, markup=False)
    described = encoder.captioner().how.image  # or there is nothing to do
    if isinstance(encoder.config.towers[described], SoundTower) != (kind == "sound"):
        other = "images" if kind == "sound" else "sounds"
        raise ConfigError(f"caption: the model describes {other}, by its tower {described!r}; these files are {kind}s")
    answers: list[dict[str, str]] = []
    search: dict[str, Any] = {"beams": beams, "length": length, "length_penalty": length_penalty}
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ExitStack() as stack:
        sink = sys.stdout if out is None else stack.enter_context(Path(out).open("w", encoding="utf-8"))
        for batch in track(batches, f"captions of {len(paths):,} {kind}s", console=say, disable=len(batches) < 2):
            new = _captions(encoder, kind, batch, batch_size, max_pixels, search)
            _show(new, kind, say, sink, as_json or out is not None, alone=len(paths) == 1)
            answers += new
    if not any("caption" in answer for answer in answers):
        raise ConfigError(f"caption: none of {len(paths)} {kind}s can be read")
    return answers


def _show(answers: Sequence[dict[str, str]], kind: str, say: Console, sink: TextIO, as_json: bool, *, alone: bool) -> None:
    """Prints the answers of a batch, with its path before a caption that is not `alone`."""
    for answer in answers:
        if "problem" in answer:
            say.print(f"{answer[kind]}: {answer['problem']}", soft_wrap=True)
        if as_json:
            print(json.dumps(answer), file=sink)
        elif "caption" in answer:
            print(answer["caption"] if alone else f"{answer[kind]}: {answer['caption']}")
    sink.flush()


def _captions(
    encoder: Encoder, kind: str, paths: list[Path], batch_size: int, max_pixels: int, search: dict[str, Any]
) -> list[dict[str, str]]:
    """The answers of a batch, in its order."""
    contents, problems = read_sounds(paths) if kind == "sound" else read_pictures(paths, max_pixels)
    texts = encoder.caption(list(contents.values()), batch_size=batch_size, max_pixels=max_pixels, **search) if contents else []
    captions = dict(zip(contents, texts, strict=True))
    return [{kind: str(p), **({"caption": captions[p]} if p in captions else {"problem": problems[p]})} for p in paths]
