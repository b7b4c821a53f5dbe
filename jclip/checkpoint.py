"""Checkpoints: saved while training goes on, restored onto any mesh, each complete in itself."""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import flax
import jax
import optax
from orbax.checkpoint import v1 as ocp

from jclip import __version__
from jclip.config import Config, from_json, to_json
from jclip.tree import flatten


class CheckpointError(RuntimeError):
    """There is no checkpoint, or it does not fit what it is loaded into; the message says what to do."""


class Checkpoints:
    """The checkpoints of a workdir: W/checkpoints/STEP, with parameters, optimizer state, configuration and versions.

    A context manager: leaving it waits until what is being written is safe.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 1, best: str | None = None, read_only: bool = False) -> None:
        """
        Args:
            workdir: folder of the run; made where it is missing.
            keep: how many of the latest checkpoints stay.
            best: metric whose highest checkpoint stays as well.
            read_only: leave alone what another process may be writing; otherwise what a killed one left unfinished is removed.
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        policies: list[Any] = [ocp.training.preservation_policies.LatestN(keep)]
        if best is not None:
            policies.append(
                ocp.training.preservation_policies.BestN(
                    n=1, get_metric_fn=lambda metrics: metrics[best], keep_checkpoints_without_metrics=False
                )
            )
        self.best = best
        # In a new folder nothing is unfinished, and Orbax's thread that looks for it would outlive a run that is refused at once.
        # Of several processes one may have made the folder already, and they must do the same.
        unfinished = not read_only and (self.directory.exists() or jax.process_count() > 1)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # the loop decides
            preservation_policy=ocp.training.preservation_policies.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=unfinished,
            context=_context(),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The last step saved."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def steps(self) -> list[int]:
        """The steps saved, in order."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def config(self, step: int) -> Config:
        """The configuration that the checkpoint was trained with."""
        saved = self._checkpointer.metadata(step).custom_metadata
        if not saved or "config" not in saved:
            raise CheckpointError(f"checkpoint: {self.directory / str(step)} holds no configuration; it is not one of jclip's")
        return from_json(saved["config"])

    def save(self, step: int, parts: Mapping[str, Any], config: Config, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to save; training goes on. The previous save has ended first, and its error surfaces here."""
        self._checkpointer.wait()
        ranked = dict(metrics) if metrics is not None and self.best in metrics else None
        extra = {"config": to_json(config), "versions": versions()}
        self._checkpointer.save_checkpointables_async(step, dict(parts), force=True, metrics=ranked, custom_metadata=extra)

    def wait(self) -> None:
        """Until the last save is safe on disk."""
        self._checkpointer.wait()

    def restore(self, step: int, parts: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of a checkpoint, laid out as the given shapes and shardings say, whatever the mesh that wrote them.

        Raises:
            CheckpointError: a parameter is missing, extra, or of another shape; all are listed.
        """
        saved = self._checkpointer.checkpointables_metadata(step).metadata
        for name, part in parts.items():
            if isinstance(part, Mapping):
                _check_fits(f"{self.directory / str(step)}: {name}", saved[name], part)
        return self._checkpointer.load_checkpointables(step, dict(parts))


def _context() -> ocp.Context:
    """Devices that hold the same array share the writing of it, unless it is so small that cutting it up takes longer."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    return context


def _check_fits(at: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    have, want = flatten(saved), flatten(wanted)
    problems = [f"missing {path} {want[path].shape}" for path in want if path not in have]
    problems += [f"extra {path} {tuple(have[path].shape)}" for path in have if path not in want]
    problems += [
        f"{path} is {tuple(have[path].shape)}, not {want[path].shape}"
        for path in want
        if path in have and tuple(have[path].shape) != want[path].shape
    ]
    if problems:
        raise CheckpointError(f"checkpoint {at} does not fit this model: {'; '.join(problems)}")


def versions() -> dict[str, str]:
    """Of everything that a result may depend on."""
    return {
        "jclip": __version__,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "flax": flax.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
    }
