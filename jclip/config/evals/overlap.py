"""The dataclass of the evaluation that looks for test examples in the training data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jclip.config.durations import Duration
from jclip.config.evals.base import Evaluation
from jclip.config.fields import field_problems


@dataclass(frozen=True)
class Overlap(Evaluation):
    """Examples of a test set that are in the training data: by their ids, and by the bytes of their inputs.

    It measures no quality of a model, but says whether the other numbers on this set are of examples that it has not seen.
    """

    source: str
    """The test set."""
    train: str = ""
    """The training data: a source, or a table of ids alone ("csv:ids.csv"). Empty: what the model's run was trained on, as far as
    that is known; data of weights that it began from are not."""
    tower: str = "image"
    """Tower whose inputs are compared."""
    by: str = ""
    """Field of a test example with its id, such as ESC-50's `src_file`, the number of a recording at Freesound; empty: ids are
    not compared."""
    train_by: str = ""
    """Field with the ids of the training data; empty: that of `by`. Ids are compared without hosts and folders before them and
    without what follows their first dot: "freesound/1234.flac" is 1234."""
    contents: bool = True
    """False: inputs are not compared, which reads all of the training data."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for both."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def towers(self) -> tuple[str, ...]:
        """The tower."""
        return (self.tower,)

    def sources(self) -> Mapping[str, str]:
        """The test set, and the training data where they are named."""
        return {"source": self.source, **({"train": self.train} if self.train else {})}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        fields = {"by": self.by, "train_by": self.train_by}
        yield from field_problems("", {name: text for name, text in fields.items() if text})
        if self.train_by and not self.by:
            yield f".train_by {self.train_by!r}: no field of the test set is compared with it; give by"
        if not (self.by or self.contents):
            yield ": nothing is compared; give by, or leave contents as it is"
