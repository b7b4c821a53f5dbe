"""Field expressions: the small language in which a configuration says what of an example an array is made of.

    json.title                                    a dotted path: a field, or a field of a field
    text*0.5 | json.synthetic*0.5                 one of several, drawn with these relative weights; without one it is 1
    a photo of a {label}                          a template: a text with the values of fields in it
    a photo of a {label}*2 | {json.title}. {text}

White space around an alternative does not count. "{{" and "}}" are braces, and "\\|" is a bar, that mean nothing else. The number
behind a star at the end of an alternative is its weight, so that "v*2*1" is the path "v*2".
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from jclip.config.errors import ConfigError

_TOKEN = re.compile(r"\\\||\{\{|\}\}|[|{}]|[^\\|{}]+|\\")
"""Pieces of an expression outside of a template's braces: what is escaped, what means something, and text."""

_WEIGHT = re.compile(r"\*\s*([-+.\d][^\s*]*|nan|inf|infinity|)\s*\Z", re.IGNORECASE)
"""End of an alternative that is a weight, or was meant to be one."""

_BAR = "\0"
"""A bar in braces that separates nothing, until it is one."""

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Template:
    """A text with the values of fields in it."""

    words: tuple[str, ...]
    """Texts before, between and behind the fields: one more than these."""
    paths: tuple[str, ...]
    """Dotted paths of the fields, at least one."""

    def __str__(self) -> str:
        places = [f"{{{_escaped(path, braces=False)}}}" for path in self.paths]
        return "".join(_escaped(word) + place for word, place in zip(self.words, [*places, ""], strict=True))


@dataclass(frozen=True)
class Alternative:
    """One of several things that an array may be made of."""

    value: str | Template
    """Dotted path of a field; or a text of several."""
    weight: float = 1.0
    """Share of the draws, relative to the weights of the others that are there."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Fields without which it is not there."""
        return self.value.paths if isinstance(self.value, Template) else (self.value,)

    def __str__(self) -> str:
        text = str(self.value) if isinstance(self.value, Template) else _escaped(self.value)
        return text if self.weight == 1 and not _WEIGHT.search(text) else f"{text}*{repr(self.weight).removesuffix('.0')}"


@dataclass(frozen=True)
class FieldExpression:
    """Meaning of a text, which `parse_field` finds."""

    text: str
    """The text. Of an example with a field of this whole name, or path, it is that field, whatever else it means."""
    alternatives: tuple[Alternative, ...]
    """At least one."""

    @property
    def is_path(self) -> bool:
        """True where it is one path and nothing else."""
        return len(self.alternatives) == 1 and self.alternatives[0].value == self.text

    def __str__(self) -> str:
        return " | ".join(map(str, self.alternatives))


@lru_cache(maxsize=1024)
def parse_field(text: str) -> FieldExpression:
    """Meaning of a field expression.

    Raises:
        ConfigError: it means nothing; the message says why, and at which of its characters.
    """
    if text == "":  # a path to nothing, which examples then lack
        return FieldExpression("", (Alternative(""),))
    alternatives, start = list[Alternative](), 0
    words, paths = [""], list[str]()
    for kind, piece, at in [*_pieces(text), ("bar", "", len(text))]:
        if kind == "field":
            paths.append(piece)
            words.append("")
        elif kind == "words":
            words[-1] += piece
        else:
            alternatives.append(_alternative(text, start, at, words, paths))
            words, paths, start = [""], [], at + 1
    if not math.isfinite(sum(one.weight for one in alternatives)):
        raise _problem(text, 0, "the sum of its weights is not finite")
    return FieldExpression(text, tuple(alternatives))


def field_problems(at: str, fields: Mapping[str, str]) -> Iterator[str]:
    """Problems of field expressions by name, each after their place, such as ".fields"."""
    for name, text in fields.items():
        try:
            parse_field(text)
        except ConfigError as error:
            yield f"{at}.{name}: {error}"


def _pieces(text: str) -> Iterator[tuple[str, str, int]]:
    """(kind, text, place) of each piece: "words", the path of a "field", or a "bar" between alternatives."""
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token is not None  # every character begins a piece
        found = token[0]
        if found == "{":
            path, end = _field(text, at)
            yield "field", path, at
            at = end
            continue
        if found == "}":
            raise _problem(text, at, "nothing opens this brace; write }} for a brace that is one")
        yield ("bar", "", at) if found == "|" else ("words", found[1:] if found in ("\\|", "{{", "}}") else found, at)
        at = token.end()


def _field(text: str, at: int) -> tuple[str, int]:
    """Path of the field in a template whose brace is at `at`, and where what follows begins."""
    end = text.find("}", at)
    if end < 0:
        raise _problem(text, at, "nothing closes this brace; write {{ for a brace that is one")
    path = text[at + 1 : end].replace("\\|", _BAR).strip()
    if not path:
        raise _problem(text, at, "these braces name no field; write {label} for the name of the class")
    if "{" in path or "|" in path or _WEIGHT.search(path):
        raise _problem(text, at, "in braces stands one field; alternatives and weights stand outside of them")
    return path.replace(_BAR, "|"), end + 1


def _alternative(text: str, start: int, end: int, words: list[str], paths: list[str]) -> Alternative:
    """The alternative of these pieces, which stands at text[start:end]."""
    weight = 1.0
    if marked := _WEIGHT.search(words[-1]):
        weight = _weight(text, start, end, marked[1])
        words = [*words[:-1], words[-1][: marked.start()]]
    words = [words[0].lstrip(), *words[1:]]
    words[-1] = words[-1].rstrip()
    if not paths and not words[0]:
        raise _problem(text, start, "an alternative is empty; write a field on both sides of |")
    return Alternative(Template(tuple(words), tuple(paths)) if paths else words[0], weight)


def _weight(text: str, start: int, end: int, number: str) -> float:
    place = text.rindex("*", start, end)
    if not number:
        raise _problem(text, place, "no weight stands behind the star; if the star belongs to the text, write *1 behind it")
    weight = float(number) if _NUMBER.fullmatch(number) else math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise _problem(text, place, f"the weight {number} is no number that is positive and finite")
    return weight


def _escaped(text: str, braces: bool = True) -> str:
    text = text.replace("|", "\\|")
    return text.replace("{", "{{").replace("}", "}}") if braces else text


def _problem(text: str, at: int, what: str) -> ConfigError:
    return ConfigError(f"field {text!r}, at character {at + 1} ({text[at : at + 12]!r}): {what}")
