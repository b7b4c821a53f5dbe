"""Devices that a program is compiled for: slices of TPUs that nobody need own, and emulated devices."""

import importlib.util
import logging
import math
import os
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jclip.config import ConfigError
from jclip.interconnect import Wires
from jclip.memory import GIB, device_memory
from jclip.peaks import PEAKS

log = logging.getLogger("jclip.compile")


class Chip(NamedTuple):
    """A kind of TPU chip."""

    accelerator: str
    """The prefix of its accelerator type."""
    memory: float
    """GiB that a program may use."""
    flops: float
    """Peak of bfloat16 products a second."""
    bandwidth: float
    """Bytes a second of its memory."""
    clock: float
    """Cycles a second: the peak, divided by the products of all its matrix units in a cycle."""
    link: float
    """Bytes a second of one of its links to other chips, in one direction."""
    ring: int
    """Sides of a slice that are a multiple of this close to a ring."""


# Memory as the compiler reports it; the rest as in the system architecture pages of Cloud TPU (docs.cloud.google.com/tpu/docs,
# v5e, v5p and v6e), which give the links of a chip together, in both directions: 4, 6 and 4 of them with 400, 1,200 and 800 GB/s.
# The sides that close are those of a pod of 16 x 16 (v5e, v6e) and of cubes of 4 x 4 x 4 (v5p): Austin et al. 2025, part 2.
CHIPS = {
    "v5e": Chip("v5litepod", 15.75, PEAKS["TPU v5 lite"], 0.819e12, 1.5e9, 50e9, 16),
    "v5p": Chip("v5p", 95.74, PEAKS["TPU v5"], 2.765e12, 1.75e9, 100e9, 4),
    "v6e": Chip("v6e", 31.25, PEAKS["TPU v6 lite"], 1.64e12, 1.75e9, 100e9, 16),
}


class Topology(NamedTuple):
    """Devices that a program is compiled for.

    Attributes:
        devices: all of them; those of a slice are described, and nothing runs on them.
        memory: bytes of one.
        chip: what a slice is made of; None: this is none, and nothing is known of its time.
        sides: of the slice, in chips.
    """

    devices: list[jax.Device]
    memory: float
    chip: Chip | None = None
    sides: tuple[int, ...] = ()

    def wires(self, mesh: Mesh) -> Wires:
        """The links between the devices of a mesh of these, which are those of a slice."""
        assert self.chip is not None
        places = tuple(tuple(device.coords[: len(self.sides)]) for device in mesh.devices.flat)
        closed = [side % self.chip.ring == 0 for side in self.sides]
        if len(self.sides) == 3 and not all(closed):  # part of a cube
            closed = [False] * 3
        return Wires(places, self.sides, tuple(closed), self.chip.link)


def describe(name: str | None) -> Topology:
    """The topology of a name such as "v5e:16x16", "v5p:4x4x4", or "cpu:8" for as many emulated devices; None: this machine's.

    Raises:
        ConfigError: there is no such topology, or the extra `tpu` is missing.
    """
    if name is None:
        return Topology(list(jax.devices()), device_memory(jax.devices()[0]) or math.inf)
    kind, _, layout = name.partition(":")
    if kind == "cpu" and layout.isdigit() and int(layout):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(layout))
        return describe(None)
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", layout):
        raise ConfigError(f"compile: topology {name!r} is unknown; use cpu:8, or like v5e:16x16: {', '.join(CHIPS)}")
    chip, sides = CHIPS[kind], tuple(map(int, layout.split("x")))
    # libtpu compiles anywhere when it is told which slice this is, and not to look for one; nor need it be the only one that
    # runs, because it opens no device.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE=f"{chip.accelerator}-{math.prod(sides)}",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    jax.config.update("jax_platforms", "cpu")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # libtpu raises whatever it likes
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError("compile: TPU topologies need libtpu; `pip install 'jclip[tpu]'`, on x86 Linux") from error
        raise ConfigError(f"compile: topology {name!r}: {str(error).splitlines()[0]}") from error
    if other := other_libtpu():
        log.warning("%s; estimates may differ, or fail", other)
    return Topology(list(found.devices), chip.memory * GIB, chip, sides)


def other_libtpu() -> str:
    """A sentence where the installed libtpu is of another version than this jax was released with; "" where it is that one."""
    wanted = [match[1] for line in requires("jax") or () if (match := re.match(r"libtpu==([\d.]+)\.\*", line))]
    try:
        installed = version("libtpu")
    except PackageNotFoundError:
        return ""
    if not wanted or f"{installed}.".startswith(f"{wanted[0]}."):
        return ""
    return f"libtpu {installed} is installed, and jax {jax.__version__} wants {wanted[0]}: `pip install 'jclip[tpu]'` brings it"
