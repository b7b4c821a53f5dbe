"""Memory, transfers and time that a train step takes of a device, as the compiler knows them before there is one."""

import re
from collections import defaultdict
from typing import Any, NamedTuple

import jax

from jclip import interconnect
from jclip.config import ConfigError
from jclip.hlo import Traffic, collectives, traffic
from jclip.hlo_time import estimated_cycles
from jclip.memory import GIB
from jclip.program import Program
from jclip.topology import Topology, other_libtpu


class Estimate(NamedTuple):
    """Needs of a compiled train step on one device.

    Attributes:
        arguments: bytes of what goes in, the state foremost.
        temporaries: bytes of what it makes on its way.
        output: bytes of what comes out, without what takes the place of an argument.
        peak: bytes of all of it, with the program itself.
        traffic: what the device sends and receives, by kind of collective.
        transfers: seconds of that, by kind, as if nothing were computed meanwhile; empty where the wires are not known.
        parts: seconds of computing, by part of the step; empty where the compiler says nothing of time.
    """

    arguments: int
    temporaries: int
    output: int
    peak: int
    traffic: dict[str, Traffic]
    transfers: dict[str, float]
    parts: dict[str, float]

    @property
    def computing(self) -> float:
        """Seconds of computing."""
        return sum(self.parts.values())

    @property
    def step(self) -> float:
        """Seconds of the step, were no transfer hidden behind the computing."""
        return self.computing + sum(self.transfers.values())


class OutOfMemoryError(Exception):
    """The compiler found no way to run a program in the memory of a device; the message is its own.

    Attributes:
        missing: bytes; None where it does not say.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.missing = missing_bytes(message)


def estimate(program: Program, topology: Topology) -> Estimate:
    """Compiles the train step; takes minutes for large models.

    Raises:
        OutOfMemoryError: the compiler says that it does not fit.
    """
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")) from error
    sizes: Any = compiled.memory_analysis()
    text = program_text(compiled)
    output = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    peak = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + output + sizes.generated_code_size_in_bytes
    found, chip, transfers, parts = collectives(text), topology.chip, defaultdict[str, float](float), {}
    if chip is not None:
        wires = topology.wires(program.mesh)
        for collective in found:
            transfers[collective.kind] += interconnect.seconds(collective, wires)
        cycles = estimated_cycles(text, flops=chip.flops, bandwidth=chip.bandwidth, clock=chip.clock)
        parts = {name: count / chip.clock for name, count in cycles.items()}
    return Estimate(
        arguments=sizes.argument_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        output=output,
        peak=peak,
        traffic=traffic(found),
        transfers=dict(transfers),
        parts=parts,
    )


def program_text(compiled: Any) -> str:
    """The HLO of a compiled program.

    Raises:
        ConfigError: the compiler is of another version than jaxlib, which cannot read what it wrote.
    """
    try:
        return str(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        if other := other_libtpu():
            raise ConfigError(f"compile: jaxlib cannot read the compiled program; {other}") from error
        raise


def missing_bytes(message: str) -> int | None:
    """Bytes that the compiler's message says are needed beyond those there are; None where it does not say."""
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds available \w+ \(([\d.]+)([KMG])\)", message) or re.search(
        r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG])", message
    )
    if found is None:
        return None
    need, unit, there, other = found.groups()
    units = {"K": 2**10, "M": 2**20, "G": GIB}
    return int(float(need) * units[unit] - float(there) * units[other])
