"""The data of a part of a run on one host: its source, the order of its examples, and its batches from any step on."""

from collections.abc import Mapping

from jclip.config import Config, Plan
from jclip.data.blocks import BlockOrder, any_remote, run_order, said_blocks
from jclip.data.loader import Loader, make_run_loader
from jclip.data.mixture import Mixture, in_numbers
from jclip.data.source import Source
from jclip.data.survey import shortcomings


class RunData:
    """The data of a part of a run, as one host reads them.

    Attributes:
        source: all examples, a mixture with the run's phases.

    Raises:
        SourceError: examples are shuffled in blocks, and the source has no shards, or fewer than lanes.
        ValueError: the batch is not divisible by the lanes, or these by the blocks.
    """

    def __init__(self, config: Config, source: Source, plan: Plan, *, host: int = 0, hosts: int = 1) -> None:
        self.source = source
        self._config, self._plan, self._host, self._hosts = config, plan, host, hosts
        self._order = run_order(config, source, plan.skipped)

    def require_room(self) -> None:
        """Raises SourceError where two blocks of each lane of this host are more than its cache holds."""
        if isinstance(self._order, BlockOrder) and any_remote(self.source):
            from jclip.data.ahead import plan_copies  # it imports what reads remote files

            plan_copies(self._order, self.source, self._host, self._hosts)

    def order_lines(self) -> list[str]:
        """Lines for people on the order: shares and epochs of a mixture's sources, and what blocks change."""
        lines, skipped = list[str](), self._plan.skipped
        if isinstance(self.source, Mixture) and self._order is not None:
            lines += in_numbers(self.source, self._order, skipped, skipped + self._plan.length * self._config.batch_size)
        return lines + (said_blocks(self._order, self._hosts) if isinstance(self._order, BlockOrder) else [])

    def shortcomings(self) -> list[str]:
        """A line for each thing that training will miss in the source, from its index."""
        fields = {name: view.field for name, view in self._config.inputs().items()}
        return shortcomings(self.source, fields, self._config.batch_size, self._config.data.optional)

    def counts(self, step: int) -> Mapping[str, int]:
        """Number of examples of each source of a mixture that a run has seen after a step; none where it is no mixture."""
        if not isinstance(self.source, Mixture) or self._order is None:
            return {}
        return self._order.counts(self._plan.skipped + (step - self._plan.first) * self._config.batch_size)

    def loader(self, step: int, *, ahead: bool = True) -> Loader:
        """The host's batches from a step of this part on; raises as `make_loader`. Without `ahead` no remote shard is copied."""
        return make_run_loader(
            self._config,
            self.source,
            start=step - self._plan.first,
            skipped=self._plan.skipped,
            host=self._host,
            hosts=self._hosts,
            ahead=ahead,
        )
