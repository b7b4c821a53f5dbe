"""The dirty shards: every good sample is seen, every bad one counted with its reason, nothing is written, memory is bounded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DIRTY = Path(__file__).parent / "dirty"

CODE = """
import json, resource, sys
from jclip.config import TextTower, VisionTower
from jclip.data import eval_transform, open_source, read_once
source = open_source(sys.argv[1])
towers = {"image": VisionTower(), "text": TextTower()}
evals = {name: eval_transform(tower) for name, tower in towers.items()}
evals["text"]("warm up")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen, problems = [], []
for batch in read_once(source, evals, batch_size=8):
    seen += [key for key, real in zip(batch.keys, batch.mask) if real]
    problems += batch.problems
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
shards = {"skipped": source.skipped_shards, "cut": source.cut_shards}
print(json.dumps({"seen": seen, "problems": problems, "grown": grown, **shards}))
"""

REASONS = {"bad image": "image", "no image": "no image", "bad caption": ("caption", "text is not UTF-8"), "no caption": "no text"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("dirty")
    (folder / "work").mkdir()
    env = {"JCLIP_CACHE": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(folder), "PATH": ""}
    command = [sys.executable, "-c", CODE, f"webdataset:{DIRTY}/dirty-*.tar"]
    done = subprocess.run(command, cwd=folder / "work", env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {**json.loads(done.stdout), "files": files}


def test_every_good_sample_is_seen_and_every_bad_one_counted_with_its_reason(report: dict) -> None:
    expected = json.loads((DIRTY / "expected.json").read_text())
    for shard, samples in expected.items():
        for name, sample in samples.items() if isinstance(samples, dict) else ():
            key, verdict = f"{shard}:{name}", sample["verdict"]
            problems = [problem for problem in report["problems"] if problem.startswith(f"{key}: ")]
            if verdict == "good":
                assert key in report["seen"], sample
                assert not problems, sample
            else:
                assert key not in report["seen"], sample
            if verdict in REASONS:
                assert len(problems) == 1, sample
                assert problems[0].removeprefix(f"{key}: ").startswith(REASONS[verdict]), sample


def test_broken_shards_are_reported(report: dict) -> None:
    assert [text.split(":")[0] for text in report["cut"]] == [f"{DIRTY}/dirty-00001.tar"]
    assert [text.split(":")[0] for text in report["skipped"]] == [f"{DIRTY}/dirty-00003.tar"]


def test_hostile_names_are_read_as_names(report: dict) -> None:
    keys = {key.removeprefix("dirty-00004.tar:") for key in report["seen"] if key.startswith("dirty-00004")}
    assert {"../../escape", "/etc/absolute", "a/b/../c", "café"} <= keys


def test_nothing_is_written_but_the_index(report: dict) -> None:
    assert report["files"]
    assert all(name.startswith("cache/index/") for name in report["files"])
    assert not [path for path in DIRTY.iterdir() if path.suffix not in (".tar", ".json")]


def test_memory_stays_bounded(report: dict) -> None:
    assert report["grown"] < 300_000  # kB: the bombs ask for ten gigabytes
