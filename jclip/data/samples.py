"""Samples of a shard: which members belong together, and which fields they become."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from jclip.data.tar_headers import Member

FIELDS: Mapping[str, str] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp"), "image"),
    "txt": "text",
    "cls": "label",
    "json": "json",
}
"""Fields of members by their extension. Any other extension is itself the name of a field of raw bytes."""

RARE_IMAGES = ("jfif", "jpe", "tif", "tiff", "avif")
"""Extensions that are the image of a sample which has none of FIELDS, and stay fields of raw bytes all the same: depth maps and
masks are often TIFF files beside a JPEG."""

SOUNDS = ("flac", "wav", "ogg", "mp3", "opus")
"""Extensions that are the sound of a sample, and stay fields of raw bytes all the same, which they were before."""

AMBIGUOUS = "names that occur several times, so that nothing says what belongs together"


class Piece(NamedTuple):
    """Members of one name that are adjacent in their shard."""

    place: int
    """Number of members before it."""
    members: list[tuple[str, Member]]
    """(extension, member) each, in order; no extension twice."""

    @property
    def fields(self) -> frozenset[str]:
        """The fields that they become."""
        return frozenset(field_of(extension) for extension, _ in self.members)


@dataclass(frozen=True)
class Samples:
    """The samples of a shard, in the order of their first members."""

    members: dict[str, list[tuple[str, Member]]]
    """(extension, member) pairs by key."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Members that are in no sample, by reason."""

    def fields(self) -> Counter[str]:
        """Number of samples by their fields, whose names are joined by a space."""
        return Counter(" ".join(sorted({field_of(extension) for extension, _ in members})) for members in self.members.values())


def field_of(extension: str) -> str:
    """The field that a member with an extension becomes."""
    return "image" if extension in RARE_IMAGES else FIELDS.get(extension, extension)


def with_sounds(counts: Mapping[str, int]) -> dict[str, int]:
    """Numbers of samples by their fields, as `Samples.fields`, with the field "sound" of those that have one of SOUNDS."""
    found = Counter[str]()
    for names, count in counts.items():
        fields = set(names.split(" "))
        found[" ".join(sorted(fields | {"sound"})) if fields & {*SOUNDS} else names] += count
    return dict(found)


def split_name(name: str) -> tuple[str, str]:
    """A member's name, split at the first dot of its last part; no extension for what belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower().replace("\n", " ") if stem else ""


def group(members: Iterable[Member], cut: str = "") -> Samples:
    """Groups the members of a shard into samples.

    Members of one name (up to the first dot of its last part) that are adjacent are a sample. Members of one name that are not
    adjacent (a tar sorted by extension: 1.jpg 2.jpg 1.txt 2.txt) are a sample only if no field comes twice. A name that comes
    twice with all its fields each time, 1.jpg 1.txt ... 1.jpg 1.txt, is two samples, of which the second has the key NAME#2;
    what lacks fields is left out if a whole sample of that name comes after it. All else would be a guess (two folders flattened
    into one tar: the pictures of both, then the captions of both; a corrected caption, appended): it is left out and counted.

    Args:
        members: the files of the shard, in order.
        cut: name of the member within which the shard is cut; its sample is left out whole.
    """
    lost = Member(cut, -1, -1)
    pieces: dict[str, list[Piece]] = {}
    broken: set[str] = set()
    for name, place, run in _runs([*members, lost] if cut else members):
        parts = _repeats(run)
        if parts is None:
            broken.add(name)
        pieces.setdefault(name, []).extend(Piece(place + i, part) for i, part in enumerate(parts or [run]))
    samples: list[tuple[str, Piece]] = []
    left_out: Counter[str] = Counter()
    for name, found in pieces.items():
        kept, dropped = ([], 1) if name in broken else _samples_of(found)
        if dropped:
            left_out[AMBIGUOUS] += dropped
        samples += [(name, piece) for piece in kept]
    samples.sort(key=lambda sample: sample[1].place)
    keyed: dict[str, list[tuple[str, Member]]] = {}
    numbers: dict[str, int] = {}
    for name, piece in samples:
        if lost in (member for _, member in piece.members):
            continue
        key = name
        while key in keyed:
            numbers[name] = numbers.get(name, 1) + 1
            key = f"{name}#{numbers[name]}"
        keyed[key] = piece.members
    return Samples(keyed, left_out)


def _runs(members: Iterable[Member]) -> Iterator[tuple[str, int, list[tuple[str, Member]]]]:
    """Name, place and members of each longest run of one name; members without an extension do not count."""
    split = ((split_name(member.name), member) for member in members)
    place = 0
    for name, run in groupby(((name, extension, member) for (name, extension), member in split if extension), lambda m: m[0]):
        rows = [(extension, member) for _, extension, member in run]
        yield name, place, rows
        place += len(rows)


def _repeats(run: list[tuple[str, Member]]) -> list[list[tuple[str, Member]]] | None:
    """A run as parts in which no extension comes twice, all with the same ones in the same order; None where there are none."""
    extensions = [extension for extension, _ in run]
    length = len(set(extensions))
    if len(run) == length:
        return [run]
    if extensions != extensions[:length] * (len(run) // length):
        return None
    return [run[start : start + length] for start in range(0, len(run), length)]


def _samples_of(pieces: Sequence[Piece]) -> tuple[list[Piece], int]:
    """The samples among the pieces of one name, and how many things are left out."""
    if len(pieces) == 1:
        return list(pieces), 0
    together = [row for piece in pieces for row in piece.members]
    if len({field_of(extension) for extension, _ in together}) == len(together):
        return [Piece(pieces[0].place, together)], 0
    whole = frozenset[str]().union(*(piece.fields for piece in pieces))
    complete = [piece.fields == whole for piece in pieces]
    first = complete.index(True) if any(complete) else len(pieces)
    if first == len(pieces) or not all(complete[first:]):
        return [], 1
    return list(pieces[first:]), first
