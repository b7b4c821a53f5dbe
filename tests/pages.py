"""The pages that people read, README.md and docs/, and a reader who does what they show."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from test_cli import exit_status
from test_train import write_shard

ROOT = Path(__file__).parents[1]
PATHS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PATHS}

SHORT = {"duration": "2", "optim.warmup": "1", "batch-size": "32", "eval-batch-size": "64", "log-every": "1"}
SHALLOW = {"model.towers.image.depth": "1", "model.towers.text.depth": "1"}
NO_EVALUATION = {"evals": "none", "checkpoint.best": "None", "checkpoint.every": "2"}
LARGE = {"duration": "1", "optim.warmup": "0", "batch-size": "8", "data.workers": "0", "mesh.fsdp": "8"}
TUNED = {"data.workers": "0", "model.dtype": "float32"}
FEW = {
    "evals.seen.source": "shapes:test?size=32&length=256&classes=seen",
    "evals.heldout.source": "shapes:heldout?size=32&length=64",
    "evals.retrieval.source": "shapes:val?size=32&length=128",
    "evals.probe.train": "shapes:test?size=32&length=256&seed=1",
    "evals.probe.source": "shapes:test?size=32&length=256",
}
FEWER = {"900": "4", "675": "2", "135": "2", "shapes:train": "shapes:train?length=64", "shapes:test": "shapes:test?length=64"}
SUITE = ("zero_shot", "heldout", "retrieval", "probe", "neighbours", "counting", "left_right")
"""Evaluations of the suite that are run: not the curve over examples, which needs 16 of each of 56 classes."""


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str, program: str) -> list[list[str]]:
    """The commands of a program that a page shows, in order, as lists of arguments."""
    joined = "\n".join(blocks(text, "bash")).replace("\\\n", " ")
    parts = [part.strip() for line in joined.splitlines() for part in line.split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.startswith(f"{program} ")]


def made_by(command: list[str]) -> list[str]:
    """The files and folders that a command leaves."""
    options = ("--workdir", "--out", "--json", "--html")
    named = [value for option, value in pairwise(command) if option in options]
    return [path for path in named + command[3:4] * (command[1] in ("convert", "pack", "filter")) if path.startswith("runs/")]


SHOWN = [command for text in PAGES.values() for command in commands(text, "jclip")]
MAKERS = {path: command for command in reversed(SHOWN) for path in made_by(command)}
"""The command that makes each file or folder: the first that says so."""


def files(text: str) -> dict[str, str]:
    """Python files that a page shows, by their names, which stand in a comment in their first lines."""
    return {match[1]: code for code in blocks(text, "python") if (match := re.match(r"# (\w+\.py)\n", code))}


class Reader:
    """Somebody with the recipes, shards and photos who runs each command once, after those that make what it reads."""

    def __init__(self, home: Path) -> None:
        self.home, self.done = home, set[tuple[str, ...]]()
        for name in ("configs", "tools"):
            (home / name).symlink_to(ROOT / name)
        for folder in ("data/clipart", "data/mine", "photos"):
            (home / folder).mkdir(parents=True)
        for name in ("val-00000", *(f"train-{i:05}" for i in range(6))):
            write_shard(home / f"data/clipart/clipart-{name}.tar", broken=())
        for i in range(10):
            write_shard(home / f"data/mine/{i:05}.tar", broken=(3,))
        for name, code in (item for text in PAGES.values() for item in files(text).items()):
            (home / name).write_text(code)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(home / "photos/one.jpg")

    def run(self, command: list[str]) -> None:
        if tuple(command) not in self.done:
            self.done.add(tuple(command))
            self.make(" ".join({*command} - {*made_by(command)}))
            assert exit_status(shortened(command)[1:]) == 0, command

    def make(self, text: str) -> None:
        """Runs what makes the files and folders that a text names."""
        for path in sorted(set(re.findall(r"runs/[\w.]*\w", text)) & MAKERS.keys()):
            self.run(MAKERS[path])


def shortened(command: list[str]) -> list[str]:
    """A command on little data and for few steps."""
    words = [FEWER.get(word, word) for word in command]
    if "configs/suite_shapes.py" in words:
        return [*words, "--length", "200", "--cache", "runs/cache", "--evals", *SUITE]
    if words[1] == "adapt" and "--out" in words:
        return [*words, "--shots", "1", "--seeds", "1"]
    if words[1] != "train" or "--help" in words:
        return words
    options = SHORT | SHALLOW
    if {"configs/vit_b16.py", "configs/open_clip.py"} & {*words}:
        options |= LARGE
    if {"configs/shapes_sound.py", "configs/imagebind.py"} & {*words}:
        options = dict(SHORT)
    if "--weights" in words:
        options = SHORT | TUNED
    if "runs/quickstart" in made_by(words):
        options |= FEW
    elif not any(word.startswith("--evals") for word in words) and "configs/clipart.py" not in words:
        options |= NO_EVALUATION
    given = {word.removeprefix("--") for word in words}
    return [*words, *(part for name, value in options.items() if name not in given for part in (f"--{name}", value))]
