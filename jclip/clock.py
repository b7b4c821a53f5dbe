"""The clock of a run: its speed, of training alone."""

import time


class Clock:
    """Examples a second, utilization, the share of time in which there was no data, and the time left, of training alone."""

    def __init__(self, batch_size: int, total_steps: int, start: int = 0, peak_steps: float | None = None) -> None:
        """
        Args:
            batch_size: examples in the global batch.
            total_steps: of the run.
            start: steps that are done.
            peak_steps: steps a second at the peak rate of all devices, beside which utilization (MFU) is computed; None: unknown.
        """
        self._batch_size, self._total, self._peak_steps = batch_size, total_steps, peak_steps
        self._step, self._since = start, time.perf_counter()
        self._paused = self._waited = 0.0

    def wait(self, seconds: float) -> None:
        """Time in which the device had nothing to do but wait for data."""
        self._waited += seconds

    def exclude(self, seconds: float) -> None:
        """Time that went into something other than training, such as an evaluation."""
        self._paused += seconds

    def read(self, step: int) -> dict[str, float]:
        """The speed since the last reading, of the steps since then."""
        now = time.perf_counter()
        elapsed = max(now - self._since - self._paused, 1e-9)
        steps = max(step - self._step, 1)
        waited = min(self._waited / elapsed, 1.0)
        self._step, self._since, self._paused, self._waited = step, now, 0.0, 0.0
        return {
            "examples_per_second": steps * self._batch_size / elapsed,
            "data_wait": waited,
            "seconds_left": (self._total - step) * elapsed / steps,
            **({} if self._peak_steps is None else {"mfu": steps / elapsed / self._peak_steps}),
        }
