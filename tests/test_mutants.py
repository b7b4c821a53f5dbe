"""The program mutants: its list is true of this tree, and it tells what tests see from what they do not."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from programs import load_program

ROOT = Path(__file__).parents[1]

CODE = """def double(x: int) -> int:
    return 2 * x


def turn(n: int) -> int:
    while n > 0:
        n -= 1
    return n
"""
TESTS = """from code_room import double, turn


def test_twice():
    assert double(2) == 4


def test_end():
    assert turn(3) == 0
"""
LIST = """
["code_room.py"]
tests = ["test_room.py"]
"a product becomes a sum" = ['2 * x', '2 + x']
"a product becomes a power" = ['2 * x', '2 ** x + x - 2']
"a product is doubled" = ['2 * x', '4 * x']
"a loop never ends" = ['n -= 1', 'n -= 0']
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_program("mutants")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of one file with its tests, and a list of mutants."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "code_room.py").write_text(CODE)
    (root / "test_room.py").write_text(TESTS)
    (root / "pytest.ini").write_text("[pytest]\n")
    (root / "mutants.toml").write_text(LIST)
    return root


def test_every_mutant_of_the_list_can_be_planted_once_and_every_file_has_its_tests(tool: ModuleType) -> None:
    mutants = tool.read_list(ROOT / "tools" / "mutants.toml")
    assert list(tool.problems(mutants, ROOT)) == []
    assert len(mutants) >= 64


def test_a_line_that_is_gone_or_there_twice_is_said_at_once(tool: ModuleType, tree: Path) -> None:
    mutants = tool.read_list(tree / "mutants.toml")
    (tree / "code_room.py").write_text(CODE.replace("2 * x", "x + x") + "\n\nn = 3\nn -= 1\n")
    found = list(tool.problems(mutants, tree))
    assert found[0] == (
        "code_room: a product becomes a sum: '2 * x' occurs 0 times in code_room.py; give a part of one line that is there once"
    )
    assert "code_room: a loop never ends: 'n -= 1' occurs 2 times in code_room.py" in found[3]
    (tree / "test_room.py").unlink()
    assert next(tool.problems(mutants, tree)) == "code_room.py: there is no test_room.py"


def test_a_mutant_that_is_no_python_is_no_mutant(tool: ModuleType) -> None:
    mutant = tool.Mutant("code_room.py", ("test_room.py",), "a bracket is lost", "2 * x", "(2 * x")
    with pytest.raises(ValueError, match="is no Python there"):
        mutant.planted(CODE)


@pytest.mark.slow
def test_mutants_are_seen_by_the_first_test_that_fails_unseen_or_out_of_time(tool: ModuleType, tree: Path) -> None:
    """2 ** x + x - 2 is 4 as well at the only value that the test asks for."""
    sum_, power, doubled, endless = tool.read_list(tree / "mutants.toml")
    copy = tool.Copy(tree, tree.parent / "0")
    assert copy.run(sum_.tests, 60).seen_by == tool.UNSEEN  # nothing is planted
    assert [copy.run_mutant(mutant, 60).seen_by for mutant in (sum_, power, doubled)] == [
        tool.UNSEEN,
        tool.UNSEEN,
        "test_room.py::test_twice",
    ]
    assert copy.run_mutant(endless, 3).seen_by == tool.TIMEOUT
    assert (copy.root / "code_room.py").read_text() == (tree / "code_room.py").read_text() == CODE


@pytest.mark.slow
def test_a_run_goes_on_from_its_results_and_its_status_says_what_is_unseen(tree: Path) -> None:
    (tree / "tools").mkdir()
    (tree / "tools" / "mutants.py").write_text((ROOT / "tools" / "mutants.py").read_text())
    results = tree.parent / "seen.jsonl"

    def run(only: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tree / "tools/mutants.py"), "--list", str(tree / "mutants.toml")]
        command += ["--results", str(results), "--only", only]
        return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)

    assert run("doubled").returncode == 0
    (tree / "test_room.py").write_text("def test_nothing():\n    assert True\n")
    again = run("sum|doubled")
    assert again.returncode == 1
    assert "1 of 2 seen (50.0%), 0 of them by a timeout; 1 unseen" in again.stdout
    (tree / "test_room.py").write_text("def test_nothing():\n    assert False\n")
    broken = run("power")
    assert broken.returncode == 2
    assert "without a mutant there is a test that fails already: test_room.py::test_nothing" in broken.stderr
