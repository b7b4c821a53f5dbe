"""The lowest versions that pyproject.toml allows, a constraint a line: the oldest installation that has to work.

    python tools/lowest_versions.py > lowest.txt
    pip install -e '.[test]' -c lowest.txt && pytest -W ignore

Other releases of a library warn of other things, hence -W ignore. What only tests, documents and comparisons need is left at its
newest.
"""

import re
import tomllib
from pathlib import Path

OURS = ("test", "docs", "parity")
"""Extras of those who work on jclip."""


def constraints(project: str) -> list[str]:
    """A line "NAME==VERSION" for each requirement of a pyproject.toml that has a lower bound, sorted."""
    table = tomllib.loads(project)["project"]
    needed = [table["dependencies"], *(lines for name, lines in table["optional-dependencies"].items() if name not in OURS)]
    bounds = {(match[1], match[2]) for lines in needed for line in lines if (match := re.match(r"([\w-]+)>=([\w.]+)", line))}
    return sorted(f"{name}=={version}" for name, version in bounds)


if __name__ == "__main__":
    print("\n".join(constraints((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))))
