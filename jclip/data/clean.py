"""Cleaning of texts before they are encoded: the rules of open_clip, and of transformers' SiglipTokenizer."""

import html
import string
from collections.abc import Callable, Mapping

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
"""Deletes the 32 punctuation marks of ASCII, and no others."""

META_SPACE = "\u2581"
"""Stands for a space in sentencepiece's vocabularies."""


def whitespace(text: str) -> str:
    """Mends mojibake and HTML entities (written twice over, too), and makes white space single spaces."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split())  # most captions: there is nothing to mend, and ftfy takes ten times as long to say so
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def lower(text: str) -> str:
    """`text` cleaned as by `whitespace`, in lower case."""
    return whitespace(text).lower()


def canonicalize(text: str) -> str:
    """`text` cleaned as by `lower`, with spaces for underscores and no other ASCII punctuation (SigLIP's training)."""
    text = whitespace(text).replace("_", " ").translate(NO_PUNCTUATION).lower()
    return " ".join(text.split())


def siglip(text: str) -> str:
    """`text` as transformers' SiglipTokenizer cleans it: `META_SPACE`, then lower case, no punctuation, single spaces.

    Nothing is mended, and underscores leave no space. A space that the text begins with, be it only once a punctuation mark
    has been deleted, stays behind the `META_SPACE`, and is a token of its own.
    """
    text = META_SPACE + text.replace(META_SPACE, " ")
    text = text.lower().translate(NO_PUNCTUATION)
    behind = " " if text[1:2].isspace() else ""
    words = text[1:].split()
    return META_SPACE + (behind + " ".join(words) if words else "")


def msclap(text: str) -> str:
    """`text` with a space behind it: MS-CLAP writes its end of text after one, and GPT-2 makes a token of a space at an end."""
    return f"{text} "


def _unchanged(text: str) -> str:
    return text


RULES: Mapping[str, Callable[[str], str]] = {
    "none": _unchanged,
    "whitespace": whitespace,
    "lower": lower,
    "canonicalize": canonicalize,
    "siglip": siglip,
    "msclap": msclap,
    "siglip2": _unchanged,  # the vocabulary does it, for each letter by itself, where no special token is spelt
}
"""Rules by the name of TokenizerConfig.clean."""
