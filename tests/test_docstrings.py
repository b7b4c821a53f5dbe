"""Docstrings say first what a thing is, by a noun, or what it does, by a verb."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("jclip", "configs", "examples", "tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
ODD = re.compile(r"\s*(As|By|For|How|Of|That|Those|To|What|Where|Whether|Which|Whose|Without)\b")
"""Openings that say neither."""


def odd_docstrings(source: str) -> list[str]:
    """Texts that stand as statements, of modules, functions, fields and constants, with an odd opening; each after its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))) if ODD.match(text):
                found.append(f"line {node.lineno}: {text}")
    return found


def test_no_docstring_begins_with_a_preposition_or_a_question() -> None:
    odd = {str(path.relative_to(ROOT)): odd_docstrings(path.read_text(encoding="utf-8")) for path in FILES}
    assert not {path: lines for path, lines in odd.items() if lines}


@pytest.mark.parametrize(
    "place", ['"""{}"""', 'def f():\n    """{}"""', 'class A:\n    x: int\n    """{}"""', '"""\n    {}\n"""']
)
def test_odd_openings_are_found_wherever_they_stand(place: str) -> None:
    assert odd_docstrings(place.format("What it is."))
    assert not odd_docstrings(place.format("Whatever it is, as it is."))
