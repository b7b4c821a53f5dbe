"""The list of lowest versions that pyproject.toml allows."""

import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version
from programs import load_program

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_what_users_install_is_listed_with_its_lower_bound_and_what_only_tests_need_is_not() -> None:
    project = """
[project]
dependencies = ["b>=2.1", "c_d>=0.5; python_version > '3'", "free"]
[project.optional-dependencies]
more = ["jclip[test]", "e[f]", "a-b>=1.0rc1", "b>=2.1"]
test = ["g>=8"]
parity = ["h==3"]
"""
    assert load_program("lowest_versions").constraints(project) == ["a-b==1.0rc1", "b==2.1", "c_d==0.5"]


def test_every_dependency_of_jclip_has_a_lower_bound_that_is_not_above_what_is_installed() -> None:
    listed = dict(line.split("==") for line in load_program("lowest_versions").constraints(PROJECT.read_text(encoding="utf-8")))
    needed = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    assert len([name for name in listed if any(line.startswith(f"{name}>=") for line in needed)]) == len(needed)
    assert all(Version(version(name)) >= Version(lowest) for name, lowest in listed.items())
