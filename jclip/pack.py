"""`jclip pack`: any source as shards, with smaller pictures if that is asked for."""

import hashlib
import io
import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from jclip.config import ConfigError, Subset
from jclip.data import BadExample, Source, SourceError, open_part, source_name
from jclip.data.addresses import shown
from jclip.data.array_records import ENDING, MANIFEST, writing
from jclip.data.caches import write_atomically
from jclip.data.decoding import MAX_PIXELS, Decode
from jclip.data.fingerprint import sample_fingerprint
from jclip.data.reader import reading_threads
from jclip.data.source import decode_text
from jclip.data.tar_writing import writing_tar
from jclip.files import read_whole

SHARD = {"first", "examples", "several", "broken", "reasons", "problems", "bytes", "sha256"}
FORMAT = "jclip pack 1"

ORIENTATION = 0x0112
"""Tag of EXIF data."""

EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
}
OWN = ("key", "image", "text", "captions", "label", "json")
"""Fields with members of their own; further ones are members if they are bytes or arrays, and otherwise stand in the JSON."""

NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
"""Names of further fields that can be those of members: none leads to another folder, or to another sample."""


@dataclass(frozen=True)
class Options:
    """The form that examples are written in."""

    shorter_side: int | None = None
    """Pixels; pictures whose shorter side is longer are made so small. None: all are written as they are."""
    format: Literal["jpeg", "png", "webp"] = "jpeg"
    """Format of pictures that are encoded anew; others keep their bytes. What comes as an array, without a file, is PNG."""
    quality: int = 95
    """Quality of JPEG and WebP."""
    per_shard: int = 10_000
    """Examples of the source that a shard is made of."""
    max_pixels: int = MAX_PIXELS
    """Larger pictures are left out."""
    shards: Literal["webdataset", "arrayrecord"] = "webdataset"
    """Format of the shards: tars, or array_record files of tf.train.Example (extra: tfds)."""

    def __post_init__(self) -> None:
        for name, least, most in (("quality", 1, 100), ("per_shard", 1, 10**9), ("max_pixels", 1, 10**12)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"pack: --{name.replace('_', '-')} {getattr(self, name)} must be {least} to {most}")
        if self.shorter_side is not None and not 1 <= self.shorter_side <= 65_535:
            raise ConfigError(f"pack: --shorter-side {self.shorter_side} must be 1 to 65535")


class Packed(NamedTuple):
    """An example as members of a shard, or why it is none."""

    members: list[tuple[str, bytes]]
    problem: str = ""
    several: bool = False
    """True: it has several captions, a line each."""


def main(
    source: str | Source, out: str | Path, options: Options | None = None, *, split: str = "train", subset: Subset = Subset()
) -> str:
    """Writes the shards that are missing, and out/manifest.json, which says what each holds; the name of the packed source.

    Shard s has examples s * per_shard and following of the source, in their order and without those that cannot be used; the same
    source gives the same bytes. A call that was stopped is gone on from. A labelled source is written in CLIP_benchmark's layout
    (jclip.data.benchmark), out/SPLIT/0.tar with the names of its classes, others as out/00000.tar. As array_record they are
    out/00000.array_record, in out/SPLIT with labels, and the manifest has the classes.

    Args:
        source: as `open_source`, a folder of images, or a Source.
        out: folder to write to; made where it is missing.
        options: the form of the examples; None: as they are.
        subset: the part of the source that is written.
        split: name of the folder of shards, where the source is labelled.

    Raises:
        ConfigError: `out` holds shards of another source, or of another form; an option is out of range.
        SourceError: the source cannot be opened, or nothing of it can be used.
        SystemExit: status 130, after Ctrl-C; shards that are whole are kept.
    """
    options, console = options or Options(), Console(emoji=False, stderr=True, highlight=False, markup=False)
    examples = open_part(source, subset, "pack")
    if examples.classes and not re.fullmatch(r"[\w-]+", split):
        raise ConfigError(f"pack: --split {split!r} is no name of a folder; use letters, digits, - and _")
    folder = Path(out, split) if examples.classes else Path(out)
    count = -(-len(examples) // options.per_shard)
    records = options.shards == "arrayrecord"
    benchmark = bool(examples.classes) and not records
    names = [f"{i}.tar" if benchmark else f"{i:05}{ENDING if records else '.tar'}" for i in range(count)]
    name = shown(source_name(source))
    manifest = _read_manifest(folder, name, examples, options)
    if benchmark:
        _write_classes(Path(out), examples)
    elif examples.classes:
        if isinstance(_first_label(examples), np.ndarray):
            raise ConfigError("pack: the source has several labels an example, which webdataset shards hold; leave out --shards")
        manifest |= {"classes": list(examples.classes), "templates": list(examples.templates)}
    try:
        with Progress(console=console, transient=True) as progress, ThreadPoolExecutor(reading_threads(examples)) as pool:
            task = progress.add_task("pack", total=len(examples))
            for i, shard in enumerate(names):
                places = range(i * options.per_shard, min((i + 1) * options.per_shard, len(examples)))
                if not _is_whole(folder / shard, manifest["shards"].get(shard)):
                    manifest["shards"][shard] = _write_shard(folder / shard, examples, places, options, pool)
                    _write_manifest(folder, manifest)
                progress.update(task, completed=places.stop)
    except KeyboardInterrupt:
        console.print(f"stopped; whole shards are in {folder}, and the same command goes on from there", soft_wrap=True)
        raise SystemExit(130) from None
    if benchmark:
        (folder / "nshards.txt").write_text(f"{count}\n")
    _say_what_is_there(manifest, folder, console)
    if not any(shard["examples"] for shard in manifest["shards"].values()):
        raise SourceError(f"pack: nothing of {name} can be used; {folder / MANIFEST} says why")
    several = any(shard["several"] for shard in manifest["shards"].values())
    if records:
        return f"arrayrecord:{folder}" + ("?captions=lines" if several else "")
    shards = _tars(folder, names) + ("?captions=lines" if several else "")
    if examples.classes and several:
        console.print(f"its texts are several captions each, which {shards} reads, without the names of classes", soft_wrap=True)
    return f"webdataset:{folder}" if examples.classes else shards


def _tars(folder: Path, names: Sequence[str]) -> str:
    """The source that tars are, by the first and the last of them."""
    first, last = (name.removesuffix(".tar") for name in (names[0], names[-1]))
    return f"webdataset:{folder}/{first if len(names) == 1 else f'{{{first}..{last}}}'}.tar"


def pack_example(source: Source, index: int, options: Options) -> Packed:
    """One example as members: KEY.jpg (or .png, ...), KEY.txt, KEY.cls or KEY.npy, and KEY.json with its key in the source."""
    key, members, more = f"{index:09}", list[tuple[str, bytes]](), dict[str, Any]()
    try:
        example = source[index]
        more["source_key"] = example["key"]
        fields = [name for name in example if name not in OWN]
        if "images" in fields:
            raise ConfigError("pack: a source of selection has several images an example; pack the images themselves")
        image = example.get("image")
        if image is not None:
            members.append(_image(image, options))
        if "captions" in example or "text" in example:
            members.append(("txt", _text(example["captions" if "captions" in example else "text"])))
        if "label" in example:
            label = example["label"]
            if isinstance(label, str) and not source.classes:
                more["label"] = label
            else:
                members.append(_label(label, source.classes))
        if "json" in example:
            value = example["json"]
            more = {**value, **more} if isinstance(value, dict) else {"json": value, **more}
        for name in fields:
            value = example[name]
            if isinstance(value, bytes | np.ndarray) and not NAME.fullmatch(name):
                raise BadExample(f"its field {name!r} cannot be the name of a member; use letters a to z, digits, _ and dots")
            if isinstance(value, bytes):
                twice = (isinstance(image, bytes) and value == image) or (name == "sound" and value in dict(members).values())
                if not twice and name not in dict(members):  # what a field was made of may be one, too
                    members.append((name, value))
            elif isinstance(value, np.ndarray):
                members.append((f"{name}.npy", _npy(value)))
            elif name in more:
                raise BadExample(f"its field {name!r} is in its JSON as well")
            else:
                more[name] = value
        members.append(("json", _json(more)))
    except BadExample as problem:
        return Packed([], f"{more.get('source_key', f'example {index}')}: {problem}")
    several = isinstance(example.get("text"), tuple | list) or "captions" in example
    return Packed([(f"{key}.{extension}", data) for extension, data in members], several=several)


def _text(value: Any) -> bytes:
    """A text, or a line for each of several."""
    texts = value if isinstance(value, tuple | list) else (value,)
    if not texts or not all(isinstance(text, str | bytes) for text in texts):
        raise BadExample(f"its text is a {type(value).__name__}, not a text or several")
    lines = [decode_text(text) if isinstance(text, bytes) else text for text in texts]
    if isinstance(value, tuple | list):
        lines = [" ".join(line.split("\n")) for line in lines]  # a line feed would make two of one caption
    return "\n".join(lines).encode("utf-8", "backslashreplace")


def _json(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, default=str, sort_keys=True).encode("utf-8", "backslashreplace")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadExample(f"its further fields cannot be written as JSON: {error}") from None


def _image(value: Any, options: Options) -> tuple[str, bytes]:
    """Extension and bytes of a picture."""
    decode, small = Decode(options.max_pixels), options.shorter_side
    if isinstance(value, bytes):
        opened = decode.open(value)
        if small is None or min(opened.size) <= small:
            decode.load(opened)  # a broken one is not packed
            return EXTENSIONS[str(opened.format)], value
        return _encode(_resized(decode.load(opened), small), options, _orientation(opened))
    image = decode(value)
    if small is None or min(image.size) <= small:
        return _encode(image, Options(format="png"))
    return _encode(_resized(image, small), options)


def _resized(image: Image.Image, shorter_side: int) -> Image.Image:
    width, height = image.size
    scale = shorter_side / min(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    mode = image.mode if image.mode in ("L", "RGB", "RGBA") else "RGBA" if "transparency" in image.info else "RGB"
    return image.convert(mode).resize(size, Image.Resampling.BICUBIC)


def _encode(image: Image.Image, options: Options, exif: bytes = b"") -> tuple[str, bytes]:
    written, more = io.BytesIO(), {"exif": exif} if exif else {}
    if options.format == "jpeg":
        rgb = image.convert("L" if image.mode == "L" else "RGB")
        rgb.save(written, "JPEG", quality=options.quality, subsampling=0, **more)
        return "jpg", written.getvalue()
    if options.format == "webp":
        image.save(written, "WEBP", quality=options.quality, **more)
        return "webp", written.getvalue()
    image.save(written, "PNG", **more)
    return "png", written.getvalue()


def _orientation(image: Image.Image) -> bytes:
    """EXIF data that say how a picture is held, and nothing else: who reads it upright sees it as before; empty: as it stands."""
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise nearly anything, and the pixels are sound
        return b""
    if turned == 1:
        return b""
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    return exif.tobytes()


def _label(label: Any, classes: tuple[str, ...]) -> tuple[str, bytes]:
    """The number of a class, or the row of a multi-label set."""
    if isinstance(label, np.ndarray):
        return "npy", _npy(label)
    if isinstance(label, str):
        if label not in classes:
            raise BadExample(f"its label {label!r} is no class of the source")
        label = classes.index(label)
    if not isinstance(label, int | np.integer):
        raise BadExample(f"its label is a {type(label).__name__}, not a class or a row of a number for each")
    if classes and not 0 <= int(label) < len(classes):
        raise BadExample(f"its label is {label}, and the source names {len(classes)} classes")
    return "cls", str(int(label)).encode()


def _npy(array: Any) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    return written.getvalue()


def _write_shard(path: Path, source: Source, places: range, options: Options, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Writes one shard in one step; what the manifest says of it."""
    found: dict[str, Any] = {"first": places.start, "examples": 0, "several": 0, "broken": 0, "reasons": {}, "problems": []}
    reasons = Counter[str]()

    def write(part: Path) -> None:
        with writing(part) if options.shards == "arrayrecord" else writing_tar(part) as add:
            for packed in _in_order(source, places, options, pool):
                if packed.problem:
                    found["broken"] += 1
                    reasons[re.sub(r"\d+", "N", packed.problem.partition(": ")[2])[:100]] += 1
                    found["problems"] += [packed.problem] if len(found["problems"]) < 5 else []
                    continue
                found["examples"] += 1
                found["several"] += packed.several
                add(packed.members)
        found.update(bytes=part.stat().st_size, sha256=_sha256(part))

    write_atomically(path, write)
    return {**found, "reasons": dict(reasons.most_common(20))}


def _in_order(source: Source, places: range, options: Options, pool: ThreadPoolExecutor) -> Iterator[Packed]:
    """The examples, some of which are made ahead: not all of a shard wait in memory."""
    waiting: deque[Future[Packed]] = deque()
    for place in places:
        waiting.append(pool.submit(pack_example, source, place, options))
        if len(waiting) >= 64:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read_manifest(folder: Path, spec: str, source: Source, options: Options) -> dict[str, Any]:
    """The manifest that is there, or a new one."""
    path = folder / MANIFEST
    facts = {"examples": len(source), "fingerprint": sample_fingerprint(source), "options": asdict(options)}
    if not path.exists():
        if others := sorted(file.name for end in (".tar", ENDING) for file in folder.glob(f"*{end}")):
            raise ConfigError(f"pack: {folder} has {others[0]}, and no {MANIFEST} that says of what; give another folder")
        return {"format": FORMAT, "source": spec, **facts, "shards": {}}
    try:
        known: dict[str, Any] = json.loads(read_whole(path))
        if known["format"] != FORMAT:
            raise ValueError(f"its format is {known['format']!r}, and this jclip reads {FORMAT!r}")
        there = {name: known[name] for name in facts}
        there["options"] = {"shards": "webdataset", **there["options"]}  # which older manifests leave out
        if not all(shard.keys() >= SHARD for shard in known["shards"].values()):
            raise ValueError("its shards lack entries")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"pack: {path} is damaged ({error}); give another folder, or empty it") from None
    for name, value in facts.items():
        if there[name] != value:
            what = "another form" if name == "options" else f"another source ({known.get('source')!r})"
            raise ConfigError(f"pack: {folder} holds shards of {what}: {name} {there[name]}, not {value}; give another folder")
    return known


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, ensure_ascii=True)
    write_atomically(folder / MANIFEST, lambda part: part.write_text(text + "\n", encoding="ascii"))


def _write_classes(root: Path, source: Source) -> None:
    """The names of the classes and the templates, as CLIP_benchmark's layout has them; other splits have the same."""
    files = {
        "dataset_type.txt": ["multilabel" if isinstance(_first_label(source), np.ndarray) else "classification"],
        "classnames.txt": list(source.classes),
        "zeroshot_classification_templates.txt": [template.replace("{}", "{c}") for template in source.templates],
    }
    for name, lines in files.items():
        for line in lines:
            if line != line.strip() or not line or "\n" in line:
                raise ConfigError(f"pack: {line!r} of the source cannot be a line of {name}")
        text, path = "".join(f"{line}\n" for line in lines), root / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(f"pack: {path} has other names than the source; give another folder")
        if lines:
            write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))


def _first_label(source: Source) -> Any:
    """The first label that can be read; None where there is none."""
    for i in range(len(source)):
        with suppress(BadExample, KeyError):
            return source[i]["label"]
    return None


def _is_whole(path: Path, shard: dict[str, Any] | None) -> bool:
    if shard is None or not path.exists() or path.stat().st_size != shard["bytes"]:
        return False
    return bool(_sha256(path) == shard["sha256"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say_what_is_there(manifest: dict[str, Any], folder: Path, console: Console) -> None:
    shards = list(manifest["shards"].values())
    examples, broken, size = (sum(shard[name] for shard in shards) for name in ("examples", "broken", "bytes"))
    console.print(f"{examples:,} examples in {len(shards):,} shards, {size / 1e6:,.1f} MB, in {folder}", soft_wrap=True)
    if broken:
        reasons = Counter[str]()
        for shard in shards:
            reasons.update(shard["reasons"])
        said = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))
        console.print(f"left out: {broken:,} ({said}); {MANIFEST} names the first of each shard", soft_wrap=True)
