"""A part of a source, by keys, by a condition, or by a score."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from jclip.config.conditions import parse_condition
from jclip.config.errors import ConfigError
from jclip.config.ranges import Range

KEY_FILES = (".txt", ".jsonl", ".npy", ".parquet")
"""Endings of files of keys."""


@dataclass(frozen=True)
class Subset:
    """A part of a source: the examples that every field given here keeps; by default all."""

    keys: str = ""
    """File of the examples' keys: .txt with a key a line, .jsonl with a JSON string a line, .npy of texts or of DataComp's uids
    (pairs of u64), or .parquet with a column of the name `by`."""
    by: str = "key"
    """Field of an example that stands in `keys`, such as json.uid."""
    where: str = ""
    """Condition on the fields of an example and the columns of `table`: "json.width >= 256 and score > 0.28", see
    jclip.config.conditions. An example of which it says nothing, because a field is missing, is left out."""
    table: str = ""
    """Parquet file with further fields of examples: a column "key", and others; `jclip filter` writes one."""
    best: tuple[str, Annotated[float, Range(above=0, most=1)]] | None = None
    """(field, share): the examples with the highest numbers of this field, as ("score", 0.3); a share of the whole source."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.keys and not self.keys.endswith(KEY_FILES):
            yield f".keys {self.keys!r}: its name ends in none of {', '.join(KEY_FILES)}"
        if self.by != "key" and not self.keys:
            yield f".by {self.by!r}: there is no file of keys; give keys"
        if not self.by:
            yield ".by is empty; write key, or a field"
        if self.table and not self.table.endswith(".parquet"):
            yield f".table {self.table!r} is no .parquet file"
        if self.table and not (self.where or self.best):
            yield f".table {self.table!r}: nothing asks for its columns; give where or best"
        if self.best is not None and not self.best[0]:
            yield ".best: name a field"
        if self.where:
            try:
                parse_condition(self.where)
            except ConfigError as error:
                yield f".where: {error}"
