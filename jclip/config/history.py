"""Files of an older jclip: the one place where old fields get their meaning, and new ones the value that keeps it."""

from collections.abc import Mapping
from typing import Any

from jclip.config.errors import ConfigError

FORMAT = 2
"""Format of a configuration in config.json, checkpoints and jclip.json; raised when a field gets another meaning.

1: jclip 0.1.0 until November 2026, which wrote no format.
2: the format is written.
"""

ADDED: dict[str, Any] = {
    "Data.max_pixels": 64_000_000,
    "Labels.match": "name",
    "Model.attention": "auto",
    "Suite.max_pixels": 64_000_000,
}
"""Fields that files of before they existed lack, as "Class.field", with the value that means what those files meant. A field's
default may change; its value here never does."""


def upgrade(data: Any, at: str) -> Any:
    """A saved configuration as today's fields; the inverse of nothing, because only today's format is written.

    Raises:
        ConfigError: a later jclip wrote it.
    """
    if not isinstance(data, Mapping):
        return data
    written = data.get("format", 1)
    if not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise ConfigError(f"{at}: format {written!r} is not known; this jclip reads 1 to {FORMAT}: use a later jclip")
    return _with_added({key: value for key, value in data.items() if key != "format"})


def _with_added(data: Any) -> Any:
    if isinstance(data, list):
        return [_with_added(value) for value in data]
    if not isinstance(data, Mapping):
        return data
    fields = {key: _with_added(value) for key, value in data.items()}
    names = {name.partition(".")[2]: value for name, value in ADDED.items() if name.partition(".")[0] == data.get("type")}
    return {**names, **fields}
