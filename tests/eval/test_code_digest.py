"""Features are kept until the code that computes them changes, and no longer."""

import shutil
from pathlib import Path

import pytest

import jclip
from jclip.eval.cache import code_digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    copy = tmp_path / "jclip"
    shutil.copytree(Path(jclip.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.mark.parametrize(
    "file", ["cli.py", "train.py", "report/page.py", "metrics.py", "data/loader.py", "data/reader.py", "weights/hub.py"]
)
def test_other_code_may_change(file: str, package: Path) -> None:
    before = code_digest(package)
    (package / file).write_text((package / file).read_text() + "\nX = 1\n")
    assert code_digest(package) == before


@pytest.mark.parametrize(
    "file", ["models/vit.py", "data/transforms.py", "data/clean.py", "eval/embed.py", "eval/probes.py", "step.py"]
)
def test_code_that_computes_counts_and_comments_do_not(file: str, package: Path) -> None:
    before, text = code_digest(package), (package / file).read_text()
    first = text.index('"""', 3) + 3
    (package / file).write_text('"""Another sentence."""\n# A comment.\n' + text[first:] + "\n\n# Another.\n")
    assert code_digest(package) == before
    (package / file).write_text(text + "\nX = 1\n")
    assert code_digest(package) != before


def test_a_file_that_is_new_or_gone_counts(package: Path) -> None:
    before = code_digest(package)
    (package / "models" / "vit.py").rename(package / "models" / "vision.py")
    assert code_digest(package) != before
