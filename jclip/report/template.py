"""Pages from templates: one head and one style for all of them, and everything that comes from outside escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = Path(__file__).parent


def fill(template: str, rules: str = "", **values: Any) -> str:
    """A page as text; the same values give the same bytes. It has no script, and its own policy forbids to fetch anything.

    Args:
        template: a file of this folder.
        rules: CSS beside that of page.css, of our own.
        values: what the template names.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["counted"] = counted
    css = Markup((_HERE / "page.css").read_text(encoding="utf-8") + rules)  # ours, not a file's
    return environment.get_template(template).render(css=css, **values).lstrip() + "\n"


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 shot", "1,000 shots"."""
    return f"{count:,} {noun}" + "s" * (count != 1)
