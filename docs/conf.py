"""The site of these pages: `pip install -e '.[docs]' && sphinx-build -W -n docs SITE`, without a network."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import jclip

project, author, release = "jclip", "The jclip authors", jclip.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures: those of other libraries are not looked up over the network
suppress_warnings = [
    "ref.python",  # a name that several modules export
]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"
highlight_language = "none"
napoleon_use_ivar, napoleon_use_rtype = True, False

html_theme = "furo"
html_title = "jclip"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sourcelink = html_copy_source = False


PLAIN: dict[str, list[str]] = {}
"""Docstrings of attributes as `plain` leaves them."""


def plain(app: Sphinx, kind: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, in which | and * mean themselves and an indented paragraph is a formula or a command."""
    made: list[str] = []
    section = False
    for line in lines:
        section = section or bool(re.match(r"(Args|Attributes|Raises|Returns):", line))
        begins = line.startswith("    ") and len(made) > 1 and not made[-1] and not made[-2].startswith("    ")
        if begins and not section:
            made += ["::", ""]
        literal = line.startswith("    ") and not section
        texts = line.split("`")
        texts[::2] = [text if literal else re.sub(r"[|*]|(?<=\w)_(?!\w)", r"\\\g<0>", text) for text in texts[::2]]
        made.append("`".join(texts))
    lines[:] = made
    PLAIN[name] = made


def whole(app: Sphinx, kind: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings of attributes say no type, which napoleon takes what is before a colon for."""
    if kind in ("attribute", "data", "property"):
        lines[:] = PLAIN[name]


def short(app: Sphinx, kind: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> tuple[str, str] | None:
    """Dataclasses have their fields below instead."""
    return ("", "") if kind == "class" and dataclasses.is_dataclass(obj) else None


def fields_once(app: Sphinx, kind: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of a tuple that the docstring of its class explains are not listed again."""
    if not str(getattr(obj, "__doc__", "")).startswith("Alias for field number"):
        return None
    place = app.env.current_document
    owner = getattr(sys.modules[place.autodoc_module], place.autodoc_class, None)
    return True if "Attributes:" in str(getattr(owner, "__doc__", "")) else None


def count_lines(app: Sphinx, page: str, source: list[str]) -> None:
    """The headings of the book that name a file tell its lines, too."""
    if page == "book":
        found = re.findall(r"^### `(.*)`$", source[0], re.M)
        lines = {path: len((Path(app.srcdir).parent / path).read_text(encoding="utf-8").splitlines()) for path in found}
        source[0] = re.sub(r"^### `(.*)`$", lambda match: f"{match[0]} · {lines[match[1]]} lines", source[0], flags=re.M)
        source[0] = source[0].replace("a paragraph each.", f"a paragraph each: {sum(lines.values()):,} lines.", 1)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon, which reads the sections
    app.connect("autodoc-process-docstring", whole, priority=600)
    app.connect("autodoc-process-signature", short)
    app.connect("autodoc-skip-member", fields_once)
    app.connect("source-read", count_lines)
