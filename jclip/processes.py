"""Several processes as one run: how they find each other, stop together, and notice that one has gone."""

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED")
"""Beginnings of JAX's errors that have nothing to do with other processes."""


class LostProcess(RuntimeError):
    """Another process of the run has gone, or cannot be reached; the message says what to do."""


class Refused(RuntimeError):
    """Another process of the run cannot take part in it, or they differ in what they would train; the message says which."""


def join_processes() -> None:
    """Connects the processes of a run, where it has several; to be called before anything else of JAX.

    A coordinator is configured by JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, by SLURM where a step has
    several tasks, or by JCLIP_DISTRIBUTED=1 where JAX finds it by itself (TPU slices, Kubernetes, Open MPI). A process that is
    silent for JCLIP_HEARTBEAT_TIMEOUT seconds (100) counts as gone.

    Raises:
        LostProcess: the coordinator does not answer, or the environment does not say who this process is.
    """
    environment = os.environ
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself; see jclip.signals
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
    """True in the process that writes."""
    return jax.process_index() == 0


def sum_over_processes(count: int) -> int:
    """Every process has to call it."""
    return count if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(count)).sum())


def same_everywhere(number: int) -> bool:
    """True where all processes say the same number; every one has to call it."""
    return jax.process_count() == 1 or len(set(multihost_utils.process_allgather(np.int32(number)).tolist())) == 1


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in their order; every one has to call it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes().decode("utf-8", "surrogateescape") for row, length in zip(rows, lengths, strict=True)]


def together(function: Callable[[], T]) -> T:
    """The result of `function`, once it has returned on all processes; every one has to call it.

    Raises:
        Refused: it has raised on another process. Where it raises, its own error goes on.
    """
    problem: BaseException | None = None
    try:
        result = function()
    except (Exception, SystemExit) as error:  # the parser of a command line has said what is wrong with it, and exits
        problem = error
    if jax.process_count() > 1:
        said = gather_texts("" if problem is None else f"{this_process()}: {_said(problem)}")
        if problem is None and any(said):
            raise Refused("; ".join(filter(None, said)))
    if problem is not None:
        raise problem
    return result


def from_first(function: Callable[[], Any]) -> Any:
    """Result, as JSON carries it, of a function that the first process alone calls; every process has to call this one.

    Raises:
        Refused: it has raised there. In the first process its own error goes on.
    """
    text = together(lambda: json.dumps(function()) if is_first() else "")
    return json.loads(gather_texts(text)[0])


def _said(problem: BaseException) -> str:
    """An error as other processes hear of it."""
    if isinstance(problem, SystemExit):
        return "its command line, or its recipe, asks it to exit; it has said why"
    return f"{type(problem).__name__}: {problem}"


def this_process() -> str:
    """Number and host of this process, for messages: "process 1 (node17)"."""
    return f"process {jax.process_index()} ({socket.gethostname()})"


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


def end_with_main_thread(seconds: float = 5.0) -> None:
    """Ends this process soon after its main thread, although another thread waits for a disk that does not answer."""

    def end() -> None:
        threading.main_thread().join()
        time.sleep(seconds)
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()
