"""How many warps an SM can hold at once of a kernel, from what the compiler says of it. Standard library only.

Source: CUDA Programming Guide, technical specifications by compute capability; the rules of allocation are those of
NVIDIA's occupancy calculator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

WARP = 32
SM_REGISTERS = 65536
WARP_REGISTERS = 256  # registers are given to a warp in units of so many
WARPS_TOGETHER = 4  # and the file is shared out to so many warps at a time, one for each part of the SM
SHARED_UNIT_BYTES = 128
RESERVED_SHARED_BYTES = 1024  # the driver's own, of every block


@dataclasses.dataclass(frozen=True)
class Multiprocessor:
    """The most that one SM holds at once."""

    warps: int
    blocks: int
    shared_bytes: int


MULTIPROCESSORS: Mapping[int, Multiprocessor] = {
    80: Multiprocessor(64, 32, 164 << 10),
    86: Multiprocessor(48, 16, 100 << 10),
    87: Multiprocessor(48, 16, 164 << 10),
    89: Multiprocessor(48, 24, 100 << 10),
    90: Multiprocessor(64, 32, 228 << 10),
    100: Multiprocessor(64, 32, 228 << 10),
    103: Multiprocessor(64, 32, 228 << 10),
    120: Multiprocessor(48, 24, 100 << 10),
}


def occupancy(arch: int, registers: int, warps: int, shared_bytes: int) -> float | None:
    """Warps that are resident on an SM over the most it takes, 0 to 1 (0: the block does not fit); None for an SM that
    is not known.

    ``arch`` is the compute capability times ten, ``registers`` those of a thread (above 0), ``warps`` (above 0) and
    ``shared_bytes`` (static and dynamic) those of a block.
    """
    limits = MULTIPROCESSORS.get(arch)
    if limits is None:
        return None
    a_warp = _up(registers * WARP, WARP_REGISTERS)
    by_registers = SM_REGISTERS // a_warp // WARPS_TOGETHER * WARPS_TOGETHER
    a_block = _up(shared_bytes + RESERVED_SHARED_BYTES, SHARED_UNIT_BYTES)
    blocks = min(limits.blocks, limits.warps // warps, by_registers // warps, limits.shared_bytes // a_block)
    return round(blocks * warps / limits.warps, 3)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
