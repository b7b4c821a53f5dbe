"""`jclip caption`: what a model with a decoder writes of images, one line each."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from jclip.config import ConfigError
from jclip.data.decoding import MAX_PIXELS
from jclip.data.pictures import picture_files, read_pictures
from jclip.inference import Encoder, load


def main(
    model: str,
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
    """Prints a caption of each image.

    Args:
        model: as `jclip.load` takes it.
        images: files, folders and globs, as `picture_files` takes them; they are turned as their EXIF data say.
        beams: as in `Encoder.caption`.
        length: likewise.
        length_penalty: likewise.
        batch_size: images a batch.
        out: file that gets a JSON object an image, in place of the terminal; it is there as soon as the first batch is done.
        as_json: print JSON objects instead of text.
        step: which checkpoint of a workdir.
        max_pixels: a larger image is refused before it is decoded.
        how: further arguments of `jclip.load`.

    Returns:
        For each image {"image", "caption"}, or {"image", "problem"} of one that cannot be read: it is said, and the others go on.

    Raises:
        ConfigError: the model has nothing that writes captions, a number is out of range, or there is no image that can be read.
        SourceError: a folder has no images, or a glob matches none.
    """
    if batch_size < 1:
        raise ConfigError(f"caption: --batch-size {batch_size} must be at least 1")
    paths = picture_files(images)
    encoder, say = load(model, step=step, **how), Console(stderr=True, highlight=False, markup=False)
    encoder.captioner()  # or there is nothing to do
    answers: list[dict[str, str]] = []
    search: dict[str, Any] = {"beams": beams, "length": length, "length_penalty": length_penalty}
    remaining, batches = iter(paths), range(0, len(paths), batch_size)
    with ExitStack() as stack:
        sink = sys.stdout if out is None else stack.enter_context(Path(out).open("w", encoding="utf-8"))
        shown = track(batches, f"captions of {len(paths):,} images", console=say, disable=len(batches) < 2)
        for _ in shown:
            new = _captions(encoder, list(islice(remaining, batch_size)), batch_size, max_pixels, search)
            for answer in new:
                if "problem" in answer:
                    say.print(f"{answer['image']}: {answer['problem']}", soft_wrap=True)
                if as_json or out is not None:
                    print(json.dumps(answer), file=sink)
                elif "caption" in answer:
                    print(answer["caption"] if len(paths) == 1 else f"{answer['image']}: {answer['caption']}")
            sink.flush()
            answers += new
    if not any("caption" in answer for answer in answers):
        raise ConfigError(f"caption: none of {len(paths)} images can be read")
    return answers


def _captions(
    encoder: Encoder, paths: list[Path], batch_size: int, max_pixels: int, search: dict[str, Any]
) -> list[dict[str, str]]:
    """The answers of a batch, in its order."""
    contents, problems = read_pictures(paths, max_pixels)
    texts = encoder.caption(list(contents.values()), batch_size=batch_size, max_pixels=max_pixels, **search) if contents else []
    captions = dict(zip(contents, texts, strict=True))
    return [{"image": str(p), **({"caption": captions[p]} if p in captions else {"problem": problems[p]})} for p in paths]
