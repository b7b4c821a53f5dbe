"""Several processes as one run: how they find each other, stop together, and notice that one has gone."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils


class LostProcess(RuntimeError):
    """Another process of the run has gone, or cannot be reached; the message says what to do."""


def join_processes() -> None:
    """Connects the processes of a run, where it has several; to be called before anything else of JAX.

    A coordinator is configured by JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, by SLURM where a step has
    several tasks, or by JCLIP_DISTRIBUTED=1 where JAX finds it by itself (TPU slices, Kubernetes, Open MPI). A process that is
    silent for JCLIP_HEARTBEAT_TIMEOUT seconds (100) counts as gone.

    Raises:
        LostProcess: the coordinator does not answer, or the environment does not say who this process is.
    """
    environment = os.environ
    timeout = int(environment.get("JCLIP_HEARTBEAT_TIMEOUT", "100"))
    try:
        if address := environment.get("JAX_COORDINATOR_ADDRESS"):
            jax.distributed.initialize(
                address,
                int(environment["JAX_NUM_PROCESSES"]),
                int(environment["JAX_PROCESS_ID"]),
                cluster_detection_method="deactivate",
                heartbeat_timeout_seconds=timeout,
            )
        elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or environment.get("JCLIP_DISTRIBUTED") == "1":
            jax.distributed.initialize(heartbeat_timeout_seconds=timeout)
    except KeyError as missing:
        raise LostProcess(
            f"JAX_COORDINATOR_ADDRESS is set, but not {missing}; set JAX_NUM_PROCESSES and JAX_PROCESS_ID too"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise LostProcess(f"the processes of the run do not find each other: {error}") from error


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def sum_over_processes(count: int) -> int:
    """Every process has to call it."""
    return count if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(count)).sum())


@contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Whether to stop after a step, because SIGTERM or Ctrl-C has come; a second Ctrl-C stops at once.

    Of several processes one signal to one of them stops all, after the same step: every process has to ask after every step.
    """
    several = jax.process_count() > 1
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        if several:  # SIGTERM is what JAX takes as the notice that it passes on to the others
            os.kill(os.getpid(), signal.SIGTERM)

    handled = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield multihost_utils.reached_preemption_sync_point if several else lambda step: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def notice_lost_processes() -> Iterator[None]:
    """Ends this process, with an explanation, where a collective fails because another one has gone.

    It ends at once: whatever is tidied up on the usual way out waits for the others, which do not come.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"jclip: process {jax.process_index()} of {jax.process_count()} has lost another one: {str(error).splitlines()[0]}\n"
            "jclip: start the same command again on all hosts; it goes on from the last checkpoint",
            flush=True,
        )
        os._exit(1)
