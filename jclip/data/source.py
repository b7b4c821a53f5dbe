"""The protocol of sources, and fields of an example."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from jclip.data.addresses import shown
from jclip.files import read_whole

Example = Mapping[str, Any]
"""One example: field names to raw values. "key" (str, unique in its source) is always there; "image" is encoded bytes or
u8[H,W,3], "sound" encoded bytes or a pair (array [n] or [n, channels], samples a second), "text" a str (or with captions=lines a
tuple of several), "label" an int or a str, where a source has them; bool[C] in a multi-label set. "captions" (tuple of str) are
all the captions of an image that has several. A source of selection has "images" and "captions", both tuples, instead: image i
and caption i belong together, and captions beyond the images are wrong."""


class SourceError(ValueError):
    """A source cannot be opened, or hardly anything in it can be read; the message says what to do."""


class BadExample(Exception):
    """One example cannot be used; the text is the reason. It never stops a run: see jclip.data.loader."""


class Unreachable(BadExample):
    """An example whose disk or store does not answer, or refuses: another time it may be there."""


class Lacking(BadExample):
    """An example that has no such field, or nothing in it, and is sound otherwise; see `Data.optional`."""


class Source(Protocol):
    """Examples with random access. A source is picklable, and safe to read from several threads."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, in order; () where there are none."""
        ...

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts that come with the data, with {} for the name of a class; () where there are none."""
        ...

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Example `index`, 0 <= index < len. Raises BadExample, here or when a field is read, if it is broken."""
        ...

    def fingerprint(self) -> str:
        """32 hexadecimal digits that stand for what the examples are: their bytes, their order, and the names of their labels.

        The same for a copy of the data in another place or on another machine; another one as soon as anything of that changes.
        The first call reads the data, later ones only ask whether it is unchanged: see jclip.data.fingerprint.

        Raises:
            SourceError: the data cannot be read, or changes meanwhile.
        """
        ...


def lookup(example: Example, path: str) -> Any:
    """The value at a dotted path: "text", "json.category" for a field of a field, or "json.captions.1" for the second of several.

    A field whose own name has dots ("depth.png") is found by its whole name.

    Raises:
        Lacking: there is no such field.
        BadExample: it cannot be decoded.
    """
    if path in example:
        return example[path]
    value: Any = example
    for depth, name in enumerate(path.split(".")):
        if isinstance(value, list | tuple) and name.isdecimal():
            if int(name) >= len(value):
                raise Lacking(f"no {path}: there are {len(value)}, and the first is 0")
            value = value[int(name)]
            continue
        if not isinstance(value, Mapping) or name not in value:
            parent = ".".join(path.split(".")[:depth])
            fields = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"none, it is a {type(value).__name__}"
            raise Lacking(f"no {path}: fields{f' of {parent}' if parent else ''} are {fields}")
        value = value[name]
    return value


class LazyExample(Mapping[str, Any]):
    """An example whose fields are read when they are asked for, so that a bad caption does not spoil its image."""

    def __init__(
        self, key: str, readers: Mapping[str, Callable[[], Any]], aliases: Mapping[str, Callable[[], Any]] | None = None
    ) -> None:
        self._key = key
        self._readers = readers
        self.aliases = aliases or {}
        """Readers of fields that say what a listed one says, too. They are there for who asks, and not listed: nobody packs them
        twice, and cheap fingerprints are what they were before there were any."""

    def __getitem__(self, name: str) -> Any:
        return self._key if name == "key" else (self._readers[name] if name in self._readers else self.aliases[name])()

    def __contains__(self, name: object) -> bool:
        return name == "key" or name in self._readers or name in self.aliases

    def __iter__(self) -> Iterator[str]:
        yield "key"
        yield from self._readers

    def __len__(self) -> int:
        return 1 + len(self._readers)


def decode_text(value: bytes) -> str:
    """UTF-8 to str. Raises BadExample where it is something else."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadExample(f"text is not UTF-8: {error}") from None


def text_readers(read: Callable[[], str], lines: bool) -> dict[str, Callable[[], Any]]:
    """The readers of the fields that a text becomes: "text", or with captions=lines "text" and "captions".

    With captions=lines both are the tuple of its lines that are not blank: training draws one of "text" each time, embedding
    takes the first, and retrieval takes all of "captions". Lacking is raised where there is none.
    """
    if not lines:
        return {"text": read}
    return dict.fromkeys(("text", "captions"), lambda: caption_lines(read()))


def caption_lines(text: str) -> tuple[str, ...]:
    """The lines of a text that are not blank, at least one. Only a line feed ends a line."""
    captions = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not captions:
        raise Lacking("it has no caption")
    return captions


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file such as classnames.txt, without the white space around them; blank ones at its end do not count.

    Raises:
        SourceError: it cannot be read, is not UTF-8, has no line, or a blank one before others.
    """
    try:
        text = read_whole(path).decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8: {error}; save it as UTF-8") from None
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        raise SourceError(f"{path}: line {lines.index('') + 1} is blank; write something on each line")
    return tuple(lines)


def split_options(spec: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Splits "NAME?a=1&b=2" into its name and its options. What is no option in the query of an address of http stays in it.

    Raises:
        SourceError: an option is not among `allowed`, is given twice or has no value.
    """
    name, _, query = spec.partition("?")
    options: dict[str, str] = {}
    of_address = []
    for part in query.split("&") if query else []:
        option, equals, value = part.partition("=")
        if option not in allowed and name.startswith(("http://", "https://")):
            of_address.append(part)
            continue
        if option not in allowed:
            raise SourceError(f"source {shown(spec)!r}: the option {option!r} is unknown; use {', '.join(allowed)}")
        if not equals or not value:
            raise SourceError(f"source {shown(spec)!r}: the option {option} has no value; write {option}=VALUE")
        if option in options:
            raise SourceError(f"source {shown(spec)!r}: the option {option} is given twice; leave one out")
        options[option] = unquote(value)
    return name + (f"?{'&'.join(of_address)}" if of_address else ""), options
