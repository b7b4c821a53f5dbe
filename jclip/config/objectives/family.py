"""What the dataclasses of all objectives have in common."""

from collections.abc import Iterator, Mapping
from typing import Annotated

from jclip.config.ranges import Range
from jclip.config.towers import Tower

Weight = Annotated[float, Range(above=0, most=1e6)]


class Family:
    """Base of the dataclasses of objectives."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        raise NotImplementedError

    def trains(self) -> tuple[str, ...]:
        """Those among them whose towers its gradient reaches."""
        return self.views()

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Contradictions with the rest of the configuration, each after the place of this dataclass.

        Args:
            tower_of: names of the towers by view.
            towers: towers by name.
            batch_size: of the run.
        """
        return iter(())
