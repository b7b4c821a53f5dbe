"""The lock on a run in a bucket: one run at a time writes there, on whatever machine. See jclip.lock, whose rules it has."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jclip.bucket import LOCK, Bucket
from jclip.lock import BEAT, SILENT, LockedWorkdir, parse, runs_here, this_process

SETTLED = 2.0
"""Seconds after which of two that took a lock at once both see whose it is: the last to write it has it."""


class BucketLock:
    """The lock while this run holds it: an object that is written again every `beat` seconds, which is the sign of life.

    Not every store can make an object only where there is none. So it is written, and looked at again a little later.
    """

    def __init__(
        self,
        bucket: Bucket,
        say: Callable[[str], object],
        *,
        beat: float = BEAT,
        silent: float = SILENT,
        settled: float = SETTLED,
    ) -> None:
        """Takes the lock; that of a process that has ended, or gives no sign of life for `silent` seconds, is taken over.

        Raises:
            LockedWorkdir: another run holds it.
            OSError: the bucket cannot be read or written.
        """
        self._bucket, self._beat, self._silent = bucket, beat, silent
        self._owner, self._count, self._taken = this_process(), 0, ""
        self._ended = threading.Event()
        self._wait_for_other(say)
        self._sign()
        time.sleep(settled)
        if (holder := self._holder()).get("id") != self._owner["id"]:
            raise LockedWorkdir(self._in_use(holder))
        self._thread = threading.Thread(target=self._give_signs, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LockedWorkdir where another run has taken the lock since."""
        if self._taken:
            raise LockedWorkdir(
                f"the lock of {self._bucket.address} was taken over by {self._taken}, because this run gave no sign of life for "
                f"{self._silent:.0f} s (was it paused?); it ends here and writes nothing more there"
            )

    def release(self) -> None:
        """Removes the lock, unless it is another run's. One that cannot be removed is taken over when it has been silent."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            if not self._taken and self._holder().get("id") == self._owner["id"]:
                self._bucket.remove(LOCK)

    def _wait_for_other(self, say: Callable[[str], object]) -> None:
        first = holder = self._holder()
        if not holder:
            return
        if holder.get("machine") == self._owner["machine"]:
            if runs_here(holder):
                raise LockedWorkdir(self._in_use(holder))
            return
        who = f"process {holder.get('pid')} on {holder.get('host')}"
        say(f"{self._bucket.address} is locked by {who}; waiting {self._silent:.0f} s for a sign of life")
        until = time.monotonic() + self._silent
        while time.monotonic() < until:
            time.sleep(min(1.0, self._silent / 10))
            holder = self._holder()
            if not holder:
                return
            if holder != first:
                raise LockedWorkdir(self._in_use(holder))

    def _in_use(self, holder: dict[str, Any]) -> str:
        who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('start')}"
        return (
            f"{self._bucket.address} is in use by {who}; "
            f"wait for it or stop it, or give another --workdir (if no such process runs anywhere, remove {LOCK} there)"
        )

    def _holder(self) -> dict[str, Any]:
        content = self._bucket.read(LOCK)
        return {} if content is None else parse(content)

    def _sign(self) -> None:
        self._count += 1
        self._bucket.write(LOCK, json.dumps({**self._owner, "sign": self._count}).encode())

    def _give_signs(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                holder = self._holder()
                if holder and holder.get("id") != self._owner["id"]:
                    self._taken = f"process {holder.get('pid')} on {holder.get('host')}"
                    return
                self._sign()
            except OSError:  # the store's fault, which the copies report
                continue
