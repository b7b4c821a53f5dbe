"""The error of everything about foreign weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WeightsError(ValueError):
    """Weights cannot be read, or not be reproduced exactly; the message names the file, the cause and what to do."""


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Puts the file's name before the message of a WeightsError."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error.__cause__
