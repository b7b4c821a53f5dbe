"""The threads and the processes that read batches of training."""

import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

from jclip.data.allocator import keep_freed_memory
from jclip.data.reader import reading_threads


def read_batches(batches: Any, workers: int) -> Any:
    """A grain.IterDataset of these batches, read by threads or by so many processes."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, and raises where no absl program has parsed them.
    keep_freed_memory()
    threads = reading_threads() if workers == 0 else 1
    read = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        read = read.mp_prefetch(options, worker_init_fn=_start_worker)
    return read


def _start_worker(index: int, count: int) -> None:
    """A worker process never takes an accelerator: Grain has imported JAX there, which must stay on the CPU if it is used."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()
    # They may reach the whole group; the main process ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_platforms", "cpu")


def _end_with_parent() -> None:
    """A worker whose main process was killed would wait for ever, and hold its batches in shared memory."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def why_lost(code: int) -> str:
    """Message about a worker process that ended with this exit code, which is minus a signal's number where one ended it."""
    try:
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    except ValueError:
        end = f"was killed by signal {-code}"
    reasons = {
        signal.SIGKILL: "most likely the machine, or the container, is out of memory: use fewer data.workers",
        signal.SIGBUS: "/dev/shm is too small for the batches that workers hand over: start the container with a larger "
        "--shm-size (such as 16g) or --ipc=host, or use fewer data.workers",
    }
    advice = reasons.get(-code, "what it has printed above may say why")  # type: ignore[call-overload]
    return f"a worker process that reads data {end}; {advice} (data.workers 0 uses threads)"
