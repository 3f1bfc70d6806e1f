"""What the processor's 8-bit instructions ask of quantized numbers."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CPUINFO = Path("/proc/cpuinfo")
_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}
_ARM = {"aarch64", "arm64", "armv7l", "armv8l"}


@dataclass(frozen=True)
class Numbers:
    """The 8-bit numbers a processor computes with quickly and without overflow.

    Attributes:
        activation: uint8 or int8.
        reduce_range: Whether weights must do with 7 bits: x86 processors without VNNI add two products of uint8 and
            int8 in 16 bits, which saturates.
    """

    activation: Literal["uint8", "int8"]
    reduce_range: bool


def numbers_for(machine: str, flags: frozenset[str]) -> Numbers:
    """Returns the numbers for a processor.

    Args:
        machine: The architecture, as `platform.machine` names it.
        flags: Names of its instruction set extensions, in lower case.
    """
    if machine.lower() in _ARM:
        return Numbers("int8", reduce_range=False)
    return Numbers("uint8", reduce_range=not flags & _DOT_PRODUCTS)


def this_processor() -> Numbers:
    """Returns the numbers for the processor this runs on; one that tells nothing is taken for one without VNNI."""
    return numbers_for(platform.machine(), flags_of(platform.system(), _CPUINFO))


def flags_of(system: str, cpuinfo: Path) -> frozenset[str]:
    """Reads the instruction set extensions of the processor, in lower case.

    Args:
        system: The operating system, as `platform.system` names it.
        cpuinfo: Where Linux describes processors.
    """
    if system == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # a constant
        return frozenset(found.stdout.lower().split())
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.lower().split())
    return frozenset()
