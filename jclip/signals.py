"""Signals that ask a run to stop: heard in a step, in an evaluation, and while data is waited for."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; the end that schedulers announce; a terminal that is closed; what SLURM's --signal sends most often."""

ASK_EVERY = 5
"""Steps, or batches of an evaluation, between two questions whether any process has been told to stop: none can go on before all
have answered."""


class Stopped(BaseException):
    """The run was told to stop where it can be left at once. No Exception: nothing on the way may take it for an error."""


class StopSignal:
    """The signal that stops a run.

    Of several processes one signal to one of them stops all, after the same step or batch: each asks as often as the others.
    """

    def __init__(self, processes: int = 1, add_up: Callable[[int], int] = lambda count: count) -> None:
        """
        Args:
            processes: how many there are.
            add_up: the sum of a count over all processes.
        """
        self._alone, self._add_up = processes == 1, add_up
        self._received = 0
        self._batches = 0
        self._can_leave = False

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """The handler of the signals; a second Ctrl-C stops at once."""
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received += 1
        if self._can_leave:
            raise Stopped

    def after_step(self, step: int) -> bool:
        """True where the run is to stop after a step; every process asks after every step."""
        if self._alone:
            return self._received > 0
        return step % ASK_EVERY == 0 and self._add_up(self._received) > 0

    def received_anywhere(self) -> bool:
        """True where any process has received a signal; every process asks."""
        return self._add_up(self._received) > 0

    def between_batches(self) -> None:
        """Raises Stopped if the run is to stop; every process asks between every two batches of an evaluation."""
        self._batches += 1
        if self._alone or self._batches % ASK_EVERY == 0:
            received = self._received if self._alone else self._add_up(self._received)
            if received:
                raise Stopped

    @contextmanager
    def may_leave(self) -> Iterator[None]:
        """A block in which a signal raises Stopped at once: around what may take long, and can be left anywhere without harm.

        Of several processes none leaves alone: the others would wait for it.
        """
        self._can_leave = self._alone
        try:
            if self._alone and self._received:  # looked at after: none that comes in between is missed
                raise Stopped
            yield
        finally:
            self._can_leave = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears SIGNALS, except those that whoever started the process has it ignore (as nohup does SIGHUP).

        Python lets the main thread alone handle signals: in another one none is heard.
        """
        in_main = threading.current_thread() is threading.main_thread()
        heard = [number for number in SIGNALS if in_main and signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, self.receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
