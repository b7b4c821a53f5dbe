"""Makes WebDataset shards of captioned clip art from the Debian packages openclipart-png and openclipart-svg."""

import argparse
import hashlib
import io
import json
import re
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.parsers import expat

from PIL import Image
from rich.progress import track

HELP = """\
Makes WebDataset shards of captioned clip art, for `webdataset:OUT/clipart-train-*.tar`.

The pictures are those of the Open Clip Art Library 0.18, which is in the public domain. On Debian or Ubuntu, get
them without installing anything (160 MB):

    apt-get download openclipart-png openclipart-svg
    for package in openclipart-*.deb; do dpkg -x $package clipart; done
    python tools/make_clipart.py clipart/usr/share/openclipart data/clipart

Each sample is KEY.jpg (longest side --size, white background), KEY.txt (title and up to four tags) and KEY.json (key,
title, description, keywords, and category, which is the library's folder). Links, pictures equal to an earlier one and
pictures without a word about them are left out. About one picture in ten goes to clipart-val-*.tar, chosen by a hash of its
key, so that the same packages always give the same shards.
"""

VAL_PARTS = 10
"""One of so many parts of the pictures is for validation."""

GENERIC = 12
"""A title that so many pictures share is that of a collection; the file's name says more."""

NO_TAGS = ("", "hash", "unsorted")
"""Keywords that say nothing about a picture."""

MAX_PIXELS = 64_000_000
"""Larger pictures are left out."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the folders png/ and svg/ of the packages")
    parser.add_argument("out", type=Path, help="folder for the shards; made if there is none")
    parser.add_argument("--size", type=int, default=112, help="longest side of a picture in pixels (default 112)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 95 (default 90)")
    parser.add_argument("--shard-size", type=int, default=1000, help="samples in a shard (default 1000)")
    options = parser.parse_args(arguments)
    folders = [options.source, options.source / "openclipart", options.source / "usr" / "share" / "openclipart"]
    source = next((folder for folder in folders if (folder / "png").is_dir() and (folder / "svg").is_dir()), None)
    if source is None:
        print(f"make_clipart: there are no folders png and svg in {options.source}; see --help", file=sys.stderr)
        return 2
    if options.size < 1 or options.shard_size < 1 or not 1 <= options.quality <= 95:
        print("make_clipart: --size and --shard-size must be at least 1, --quality from 1 to 95", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `shrink` has a lower limit of its own
    samples = list(read_samples(source, options.size, options.quality))
    options.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        chosen = sorted((s for s in samples if split_of(s["json"]["key"]) == split), key=lambda s: _digest(s["json"]["key"]))
        shards = write_shards(chosen, options.out / f"clipart-{split}", options.shard_size)
        print(f"{split}: {len(chosen)} samples in {shards} shards")
    return 0


def split_of(key: str) -> str:
    """Split that a picture belongs to: a function of its key alone."""
    return "val" if int(_digest(key), 16) % VAL_PARTS == 0 else "train"


def read_samples(source: Path, size: int, quality: int) -> Iterator[dict[str, Any]]:
    """Yields {"jpg": bytes, "txt": str, "json": dict} of every usable picture below `source`."""
    paths = [path for path in sorted((source / "png").rglob("*.png")) if path.is_file() and not path.is_symlink()]
    keys = [path.relative_to(source / "png").with_suffix("").as_posix() for path in paths]
    records = [read_metadata(source / "svg" / f"{key}.svg") for key in track(keys, "reading titles")]
    shared = Counter(record["title"] for record in records)
    seen: set[bytes] = set()
    skipped: Counter[str] = Counter()
    for path, key, record in track(list(zip(paths, keys, records, strict=True)), "resizing pictures"):
        category, _, name = key.rpartition("/")
        title = record["title"]
        if not title or shared[title] >= GENERIC:
            title = re.sub(r"[_\W]+", " ", name).strip().rstrip("0123456789 ") or name
        text = caption(title, record["keywords"], category)
        try:
            picture = shrink(path, size, quality)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            skipped[f"cannot be decoded: {type(error).__name__}"] += 1
            continue
        if picture in seen or not text:
            skipped["equal to an earlier one" if text else "nothing is said about it"] += 1
            continue
        seen.add(picture)
        yield {"jpg": picture, "txt": text, "json": {"key": key, "category": category, **record}}
    for reason, count in skipped.most_common():
        print(f"left out {count}: {reason}")


def caption(title: str, keywords: list[str], category: str) -> str:
    """Title and up to four tags, which come from the keywords, then from the folders, innermost first.

    >>> caption("Electric lighter", ["lighter", "tools", "fire"], "tools")
    'Electric lighter, tools, fire'
    """
    tags: list[str] = []
    for tag in [*keywords, *(part.replace("_", " ") for part in reversed(category.split("/")))]:
        if tag and tag.lower() not in title.lower() and tag not in tags:
            tags.append(tag)
    return ", ".join(part for part in [title, *tags[:4]] if part)


def shrink(path: Path, size: int, quality: int) -> bytes:
    """The picture on white, its longest side at most `size`, as JPEG."""
    with Image.open(path, formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        rgba = image.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    picture.thumbnail((size, size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


class _Metadata:
    """Collects dc:title, dc:description and dc:subject of the work an SVG shows, not those of its authors or publisher."""

    def __init__(self) -> None:
        self.path: list[str] = []
        self.title = ""
        self.description = ""
        self.keywords: list[str] = []
        self.text = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.path.append(name.rpartition(":")[2])
        self.text = ""

    def data(self, text: str) -> None:
        self.text += text

    def end(self, name: str) -> None:
        value = " ".join(self.text.replace("_", " ").split())
        match self.path:
            case [*_, "Work", "title"] if not self.title:
                self.title = value
            case [*_, "Work", "description"] if not self.description:
                self.description = value
            case [*_, "Work", "subject", "Bag", "li"] if value not in NO_TAGS and value not in self.keywords:
                self.keywords.append(value)
        self.path.pop()
        self.text = ""


class _Refused(ValueError):
    """An SVG declares entities, which could make a small file huge."""


def read_metadata(path: Path) -> dict[str, Any]:
    """Title, description and keywords of an SVG file; empty where it has none or is no XML. Entities are never expanded."""
    found = _Metadata()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.data
    parser.EntityDeclHandler = _refuse
    with suppress(OSError, expat.ExpatError, _Refused):  # what was found before a mistake is used
        parser.Parse(path.read_bytes(), True)
    return {"title": found.title, "description": found.description, "keywords": found.keywords}


def _refuse(*declaration: object) -> None:
    raise _Refused("entities are not expanded")


def write_shards(samples: list[dict[str, Any]], stem: Path, size: int) -> int:
    """Writes STEM-00000.tar and so on, `size` samples each; returns how many."""
    starts = range(0, len(samples), size)
    for number, start in enumerate(starts):
        with tarfile.open(f"{stem}-{number:05}.tar", "w") as shard:
            for index, sample in enumerate(samples[start : start + size], start):
                record = json.dumps(sample["json"], ensure_ascii=False, sort_keys=True)
                for kind, data in (("jpg", sample["jpg"]), ("txt", sample["txt"].encode()), ("json", record.encode())):
                    member = tarfile.TarInfo(f"{index:08}.{kind}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
    return len(starts)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
