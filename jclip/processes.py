"""Several processes as one run: how they find each other, stop together, and notice that one has gone."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

ASK_EVERY = 5
"""Steps between two questions whether any process has been told to stop."""

OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED")
"""How errors of JAX begin that have nothing to do with other processes."""


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
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself; see `stop_signal`
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


def same_everywhere(number: int) -> bool:
    """Whether all processes say the same number; every one has to call it."""
    return jax.process_count() == 1 or len(set(multihost_utils.process_allgather(np.int32(number)).tolist())) == 1


@contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Whether to stop after a step, because SIGTERM or Ctrl-C has come; a second Ctrl-C stops at once.

    Of several processes one signal to one of them stops all, after the same step: every process has to ask after every step.
    They tell each other every ASK_EVERY steps, because none can go on before all have answered.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    def requested(step: int) -> bool:
        if jax.process_count() == 1:
            return bool(received)
        return step % ASK_EVERY == 0 and sum_over_processes(len(received)) > 0

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def leave_together(together: tuple[type[Exception], ...]) -> Iterator[None]:
    """Ends this process, with an explanation, where an error meets it and not the others, or where another one has gone.

    It ends at once: whatever is tidied up on the usual way out waits for the others, which do not come. Errors that all
    processes meet at the same step, `together`, take the usual way.
    """
    try:
        yield
    except together:
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        who = f"jclip: process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(OWN_FAULT):
            print(f"{who} has lost another one: {str(error).splitlines()[0]}", flush=True)
            print("jclip: start the same command again on all hosts; it goes on from the last checkpoint", flush=True)
        else:
            print(f"{who} ends with an error, which stands above; the others end when they miss it", flush=True)
        os._exit(1)
