"""Base of the dataclasses of all objectives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from jclip.config.kinds import Kind
from jclip.config.ranges import Range
from jclip.config.towers import Tower


@dataclass(frozen=True, kw_only=True)
class Family(Kind):
    """Base of the dataclasses of objectives."""

    weight: Annotated[float, Range(above=0, most=1e6)] = 1.0
    """Factor in the total loss."""
    begin: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the run after which it takes part (SigLIP 2: 0.8). It costs nothing before, except that its views are read."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        raise NotImplementedError

    def encodes(self) -> tuple[str, ...]:
        """Views among these that the towers are to see."""
        return self.views()

    def teachers(self) -> tuple[str, ...]:
        """Views among these whose embeddings may be stored instead, and whose towers it never trains."""
        return ()

    def sees_whole(self) -> tuple[str, ...]:
        """Views that a moving average of the tower sees; they must have the tower's own size."""
        return ()

    def makes(self, name: str) -> Mapping[str, str]:
        """Views that the objective of this name makes on the device, and that of `views` whose tower sees them, by view."""
        return {}

    def trains(self) -> tuple[str, ...]:
        """Views among these whose towers its gradient reaches."""
        return self.views()

    def may_lack(self) -> tuple[str, ...]:
        """Views among these that an example may lack; see `Data.optional`."""
        return ()

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Contradictions with the rest of the configuration, each after the place of this dataclass.

        Args:
            tower_of: names of the towers by view.
            towers: towers by name.
            batch_size: of the run.
        """
        return iter(())
