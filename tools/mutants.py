"""Mutants: one-line mistakes, of the kind a refactoring makes, and which test sees each.

    python tools/mutants.py --check                 whether the list is true of this tree (a second)
    python tools/mutants.py --only losses           the mutants whose "file: name" matches a regex
    python tools/mutants.py --results seen.jsonl    all of them (an hour or two); the same command goes on where it was ended

Each mutant of the list (tools/mutants.toml, which says how to write one) is planted by itself in a copy of the tree, never in the
checkout, and the default tests of its file run on it until one fails: that test has seen it. A mutant that all of them pass is
UNSEEN: something that users rely on may break, and no test would say so. The way on is a test whose value does not come from the
code: mathematics, another implementation, a fixed file. A mutant that makes the tests hang is seen, and marked "timeout".

Before any mutant a test file runs on the unchanged copy: what fails there already sees nothing. The table has a row a mutant; the
exit status is 1 where one was not seen, 2 where the list is wrong or a test fails unchanged.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

UNSEEN, TIMEOUT = "UNSEEN", "timeout"

DEFAULT = "not slow and not exhaustive and not parity"
"""Marks of the tests that count: those that run everywhere, and at every change."""

SKIPPED = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis", ".venv", "build", "*.egg-info")


@dataclass(frozen=True)
class Mutant:
    """A mistake: `old`, part of one line of a file, becomes `new`."""

    file: str
    tests: tuple[str, ...]
    """Test files, those first that are most likely to see it."""
    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file.removeprefix('jclip/').removesuffix('.py')}: {self.name}"

    def planted(self, text: str) -> str:
        """The text of the file with the mistake.

        Raises:
            ValueError: `old` does not occur exactly once, or the result is no Python.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self}: {self.old!r} occurs {count} times in {self.file}; give a part of one line that is there once"
            )
        if self.old == self.new:
            raise ValueError(f"{self}: {self.old!r} becomes itself")
        planted = text.replace(self.old, self.new)
        try:
            compile(planted, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self}: {self.new!r} is no Python there: {error}") from None
        return planted


class Result(NamedTuple):
    """Outcome of the tests: the id of the first that failed, UNSEEN or TIMEOUT; and the seconds they took."""

    seen_by: str
    seconds: float


def read_list(path: Path) -> list[Mutant]:
    """The mutants of a list, in its order: file -> name -> (old, new).

    Raises:
        ValueError: the list is not of this form.
    """
    found = []
    for file, content in tomllib.loads(path.read_text(encoding="utf-8")).items():
        tests = tuple(content.pop("tests", ()))
        if not tests or not content:
            raise ValueError(f"{file}: give its `tests`, and at least one mutant")
        for name, lines in content.items():
            if len(lines) != 2:
                raise ValueError(f"{file}: {name}: give [the line as it stands, the line as it becomes]")
            found.append(Mutant(file, tests, name, *lines))
    return found


def problems(mutants: Sequence[Mutant], root: Path) -> Iterator[str]:
    """Places where a list is not true of a tree."""
    for file, tests in {mutant.file: mutant.tests for mutant in mutants}.items():
        yield from (f"{file}: there is no {test}" for test in tests if not (root / test).is_file())
    for mutant in mutants:
        try:
            mutant.planted((root / mutant.file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            yield str(error)


class Copy:
    """A copy of the tree, which tests run in."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "tree"
        shutil.copytree(root, self.root, ignore=SKIPPED, symlinks=True)
        compiled = folder.parent / "compiled"  # what XLA has compiled for one mutant, another need not
        self._environment = os.environ | {
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",  # two mutants of one second and size would share a .pyc
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(compiled)),
        }

    def run(self, tests: Sequence[str], timeout: float) -> Result:
        """Outcome of the default tests of some files, until one fails."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-rfE", "-m", DEFAULT, "-p", "no:cacheprovider", *tests]
        began = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                return Result(TIMEOUT, time.monotonic() - began)
            finally:
                end_session(process.pid)
        if process.returncode == 0:
            return Result(UNSEEN, time.monotonic() - began)
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", said, re.MULTILINE)
        # Without a line about a test the process itself has ended: by a signal where the status is negative.
        seen_by = failed[1] if failed else f"(pytest ended with status {process.returncode})"
        return Result(seen_by, time.monotonic() - began)

    def run_mutant(self, mutant: Mutant, timeout: float) -> Result:
        """Outcome of a mutant's tests on it; the copy is as before."""
        path = self.root / mutant.file
        text = path.read_text(encoding="utf-8")
        path.write_text(mutant.planted(text), encoding="utf-8")
        try:
            return self.run(mutant.tests, timeout)
        finally:
            path.write_text(text, encoding="utf-8")


def end_session(leader: int) -> None:
    """Ends all processes of a session that still run, such as those that a test has started."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


class Record:
    """Results so far, a line of JSON each, by what was asked."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._found: dict[str, Result] = {}
        if path is not None and path.exists():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self._found = {json.dumps(line["of"]): Result(line["seen_by"], line["seconds"]) for line in lines}

    def get(self, of: Sequence[str]) -> Result | None:
        """The result that is known."""
        return self._found.get(json.dumps(of))

    def add(self, of: Sequence[str], result: Result) -> None:
        """Keeps a result."""
        with self._lock:
            self._found[json.dumps(of)] = result
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"of": of, **result._asdict()}, ensure_ascii=False) + "\n")


def identity(mutant: Mutant) -> list[str]:
    """Key of a result: the same mistake in the same file, whatever it is called."""
    return [mutant.file, mutant.old, mutant.new]


def run_all(mutants: Sequence[Mutant], root: Path, *, jobs: int, timeout: float, record: Record) -> None:
    """Runs mutants in `jobs` copies of the tree at once, prints a row of each and keeps it.

    Raises:
        RuntimeError: a test fails without a mutant.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        free = [Copy(root, Path(folder) / str(number)) for number in range(jobs)]

        @contextmanager
        def borrowed() -> Iterator[Copy]:
            copy = free.pop()
            try:
                yield copy
            finally:
                free.append(copy)

        def version(test: str) -> list[str]:
            return [test, hashlib.sha256((root / test).read_bytes()).hexdigest()]

        def unchanged(test: str) -> None:
            with borrowed() as copy:
                result = copy.run([test], timeout)
            if result.seen_by != UNSEEN:
                raise RuntimeError(f"without a mutant there is a test that fails already: {result.seen_by}")
            record.add(version(test), result)

        def one(mutant: Mutant) -> None:
            with borrowed() as copy:
                result = copy.run_mutant(mutant, timeout)
            record.add(identity(mutant), result)
            print(_row(str(mutant), *result), flush=True)

        for file in dict.fromkeys(mutant.file for mutant in mutants):
            of_file = [mutant for mutant in mutants if mutant.file == file]
            list(pool.map(unchanged, [test for test in of_file[0].tests if record.get(version(test)) is None]))
            list(pool.map(one, of_file))


def _row(name: str, seen_by: str, seconds: float) -> str:
    return f"{name:70} {seen_by:90} {seconds:6.0f}"


def main() -> int:
    """Checks the list, or runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, default=Path(__file__).with_suffix(".toml"), help="default: tools/mutants.toml")
    parser.add_argument("--only", default="", metavar="PATTERN", help='regex; mutants whose "file: name" it matches')
    parser.add_argument("--check", action="store_true", help="run no test: every line occurs once, and every mutant is Python")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once, each in a copy of its own (default: 1)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a mutant's tests may take (default: 900)")
    parser.add_argument("--results", type=Path, help="file of results (JSON lines), which a later run goes on from")
    parser.add_argument("--again", action="store_true", help="run those again that the file of results calls unseen")
    options = parser.parse_args()

    mutants = [mutant for mutant in read_list(options.list) if re.search(options.only, str(mutant))]
    if wrong := list(problems(mutants, ROOT)):
        print(*wrong, sep="\n", file=sys.stderr)
        return 2
    if options.check:
        print(f"{len(mutants)} mutants of {len({mutant.file for mutant in mutants})} files: the list is true of this tree")
        return 0

    # A shell's "&" and nohup have these ignored, which tests would inherit; what is handled here is a child's default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda *_: None)
    record = Record(options.results)
    known = {mutant: result for mutant in mutants if (result := record.get(identity(mutant)))}
    if options.again:
        known = {mutant: result for mutant, result in known.items() if result.seen_by != UNSEEN}
    print(f"{'mutant':70} {'seen by':90} {'s':>6}")
    for mutant, result in known.items():
        print(_row(str(mutant), *result))
    try:
        run_all([m for m in mutants if m not in known], ROOT, jobs=options.jobs, timeout=options.timeout, record=record)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    results = [result for mutant in mutants if (result := record.get(identity(mutant)))]
    unseen, hung = (sum(result.seen_by == what for result in results) for what in (UNSEEN, TIMEOUT))
    seen, seconds = len(results) - unseen, sum(result.seconds for result in results)
    share = f"{seen / max(1, len(results)):.1%}"
    print(f"{seen} of {len(results)} seen ({share}), {hung} of them by a timeout; {unseen} unseen; {seconds:,.0f} s")
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
