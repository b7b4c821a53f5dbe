"""The workdir of a run: its place, its lock, and what is in it when training begins."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jclip.bucket import read_token
from jclip.checkpoint import Checkpoints
from jclip.config import Config, ConfigError, to_saved
from jclip.data.caches import write_atomically
from jclip.files import is_bucket, is_run, is_run_config, read_whole
from jclip.lock import lock
from jclip.metrics import Terminal
from jclip.mirror import local_folder, mirrored
from jclip.processes import is_first, same_everywhere, together
from jclip.resume import Start

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".msgpack")
"""Ends of names of weight files."""


def folder(workdir: str | Path) -> Path:
    """The local path of a workdir, of one in a bucket that of its copy; raises ConfigError where it can be none."""
    if is_bucket(workdir):
        return local_folder(str(workdir))
    if "://" in str(workdir):
        raise ConfigError(
            f"config: --workdir {workdir} is no folder, nor in a bucket (s3://, gs://); mount it and give that path"
        )
    workdir = Path(workdir).expanduser()
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"config: --workdir {workdir} is a file; give a folder")
    if found := foreign(workdir):
        raise ConfigError(f"config: --workdir {workdir} is no run of jclip's, it holds {found}; give a folder of its own")
    return workdir


def foreign(workdir: Path) -> str:
    """A file of a folder that a run would write over, or be taken for in place of; "" in a run's own folder."""
    if not workdir.is_dir() or is_run(workdir):
        return ""
    config, weights = workdir / "config.json", (path.name for path in workdir.iterdir() if path.suffix in WEIGHTS)
    if config.exists() and not is_run_config(read_whole(config)):
        return "config.json of something else"
    return next(weights, "")


@contextmanager
def locked(workdir: Path) -> Iterator[Callable[[], object]]:
    """The lock on the workdir, which the first process holds for all; yields what raises there where it is another run's."""
    with ExitStack() as stack:
        hold = together(lambda: stack.enter_context(lock(workdir, say=_say)) if is_first() else None)
        yield hold.check if hold else lambda: None


@contextmanager
def copied(workdir: str | Path, local: Path, hold: Callable[[], object]) -> Iterator[Callable[[], object]]:
    """The bucket of a workdir, kept up with its local folder by the first process; yields `hold` for both.

    Raises:
        ConfigError: the bucket cannot be used, or processes do not share the local folder.
        LockedWorkdir, NotCopied: as `mirrored`.
    """
    if not is_bucket(workdir):
        yield hold
        return
    with ExitStack() as stack:
        check = together(lambda: _begin_copy(stack, str(workdir), local) if is_first() else None)
        if not same_everywhere(read_token(local)):
            raise ConfigError(
                f"config: with --workdir {workdir} the processes of a run have to share {local}; set JCLIP_CACHE to a folder "
                "that all hosts share, or mount the bucket and give the path it has then"
            )

        def both() -> None:
            hold()
            if check:
                check()

        yield both


def _begin_copy(stack: ExitStack, address: str, local: Path) -> Callable[[], object]:
    try:
        return stack.enter_context(mirrored(address, local, _say))
    except (OSError, ImportError) as error:
        raise ConfigError(f"config: --workdir {address} cannot be used: {error}") from error


def tidy(workdir: Path, config: Config, checkpoints: Checkpoints, start: Start, terminal: Terminal) -> None:
    """The workdir as it is to be at the start."""
    if problem := checkpoints.read_scores():
        terminal.say(f"jclip: {problem}")
    if is_first():
        for path in checkpoints.set_aside(after=start.step):
            terminal.say(f"jclip: a checkpoint of a later step was moved to {path}")
        if start.step > start.first and not _is_json(workdir / "config.json"):
            terminal.say(f"jclip: {workdir / 'config.json'} is missing or damaged; it is written anew")
        text = json.dumps(to_saved(config), indent=2)
        try:
            write_atomically(workdir / "config.json", lambda part: part.write_text(text, encoding="utf-8"))
        except OSError as error:
            terminal.say(f"jclip: {workdir / 'config.json'} could not be written: {error}")
    checkpoints.forget(after=start.step)


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(read_whole(path)), dict)
    except (OSError, ValueError, RecursionError):
        return False


def last_good(checkpoints: Checkpoints, step: int) -> str:
    """The last checkpoint before a step, in words."""
    checkpoints.wait()
    good = [saved for saved in checkpoints.steps if saved < step]
    return f"The last good checkpoint is {checkpoints.directory / str(good[-1])}" if good else "There is no good checkpoint"


def _say(message: str) -> None:
    print(f"jclip: {message}", flush=True)
