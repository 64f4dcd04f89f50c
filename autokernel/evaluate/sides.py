"""A runner as a party to a comparison, and one timed turn of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from autokernel.evaluate.device_memory import opened
from autokernel.evaluate.pool import Handle
from autokernel.evaluate.stages import Examination, Failed
from autokernel.types import Status


class RivalFailed(Exception):
    """A runner that the candidate is measured against failed: not the candidate's doing, and no verdict on it."""


@dataclasses.dataclass
class Recording:
    """What a runner recorded of one workload's calls, and what it said of it; without an answer it could not."""

    order: tuple[int, ...]  # of the calls: positions of their sets in the rotation
    answer: Mapping[str, Any]

    @property
    def recorded(self) -> bool:
        return self.answer.get("recorded") is True


@dataclasses.dataclass
class Side:
    """One runner in a comparison, with the ids under which it knows each rotation's sets. ``rival`` names what the
    candidate is measured against; empty for the candidate itself.
    """

    handle: Handle
    exam: Examination
    rival: str = ""
    ids: list[list[int]] = dataclasses.field(default_factory=list)
    trusted: bool = False  # our own code, which may have helpers
    disturbed_turns: int = 0
    turns: int = 0
    outputs: str = "none"  # of timed calls that were checked: "read" by the judge, or "asked" of the runner
    claims: list[float] = dataclasses.field(default_factory=list)  # the runner's own time of each turn over the judge's
    recordings: dict[int, Recording] = dataclasses.field(default_factory=dict)
    _opened: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @property
    def timed(self) -> str:
        """What a turn is made of: "graph" replays of recorded calls, "calls", or both where workloads differ."""
        kinds = {"graph" if each.recorded else "calls" for each in self.recordings.values()}
        return " and ".join(sorted(kinds)) or "calls"

    def failed(self, status: Status, reason: str, log_tail: str = "") -> Failed | RivalFailed:
        """What a failure of this runner means: a verdict on the candidate, or none."""
        if self.rival:
            return RivalFailed(f"the {self.rival} failed: {status.value}, {reason}")
        return Failed(status, reason, log_tail)

    def keep(self, index: int, recording: Recording) -> None:
        """Take note of what the runner recorded anew of one workload: what it had recorded before is gone."""
        self._opened.clear()
        self.recordings[index] = recording

    def read_device(self, answer: Mapping[str, Any], address: int, nbytes: int) -> torch.Tensor:
        """A copy of bytes that lie in an allocation of the runner's on the device. Raises OSError when none is named
        that holds them.
        """
        for handle, base, size in answer.get("allocations", []):
            if base <= address and address + nbytes <= base + size:
                if handle not in self._opened:
                    try:
                        self._opened[handle] = opened(handle, size, self.exam.where)
                    except (RuntimeError, ValueError) as error:
                        raise OSError(0, str(error)) from None
                found = self._opened[handle]
                if address + nbytes - base <= found.numel():
                    return found[address - base : address - base + nbytes].clone()
        raise OSError(14, "no allocation that it named holds it")

    def close(self) -> None:
        """End the runner."""
        self._opened.clear()
        self.exam.close()
        self.handle.close()


@dataclasses.dataclass(frozen=True)
class Turn:
    """One timed turn: seconds a call by the clock that is fine, and by the judge's own (see clocks.py); the sets in the
    order of the calls, and what the runner said of its outputs. ``seen`` says that these can be read where they lie.
    """

    seconds: float
    own_seconds: float
    order: tuple[int, ...]
    answer: Mapping[str, Any]
    seen: bool
