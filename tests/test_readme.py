"""The README is short, and its second command is the one that guards main; test_docs.py runs what it shows."""

from pages import PAGES, ROOT

README = PAGES["README.md"]


def test_it_is_short() -> None:
    assert len(README.split()) < 850


def test_its_test_command_is_the_one_that_ci_runs() -> None:
    assert "pip install -e '.[test]' && pytest" in README
    assert "pip install -e '.\\[test\\]' && pytest" in (ROOT / ".ci/run").read_text()
