"""The judge's defences by name, each with the line that the documentation gives it.

All are on. A test may switch one off for one assignment, to show what it alone stops; the verdict's environment then
names it under "disabled", so that no such verdict can be taken for a sound one. The levels of the sandbox have names
of their own, in autokernel/isolation.py. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autokernel.types import AutokernelError

DEFENCES: Mapping[str, str] = {
    "policy": "a reading of the source refuses what no kernel needs (advice, not a wall)",
    "audit": "the aten operations that a call dispatches are listed, and only allocation and views are allowed",
    "oracle": "every output is compared with a float64 oracle, elementwise",
    "rms": "on random inputs the mean square error must stay near PyTorch's own in that dtype",
    "form": "shape, dtype and type of the output are those of the reference",
    "stability": "inputs made to break a careless kernel of this one problem",
    "determinism": "three runs on the same inputs, over differently poisoned memory, agree bit by bit",
    "edges": "sizes 1, 1023, 1537, 4097 and 0, other scalars, other strides",
    "held-out": "shapes that no file names, drawn for each candidate",
    "sealed": "inputs lie in memory that only the judge can write",
    "fresh": "every input of every timed call is new",
    "hidden": "new inputs are written while the candidate stands still, and it resumes when the clock runs",
    "timed": "outputs of timed calls are compared with the oracle, in random order",
    "all-kept": "any output of a turn may be checked, not only the last, and none may overlap another",
    "committed": "outputs are read out of the stopped process: nothing can be computed once the clock has stopped",
    "clock": "times are the judge's, around the turn; what a runner says of time counts as far as they confirm it",
    "still": "a runner stands still outside its turns, and may not have helpers",
    "floor": "nothing beats the measured roofline",
    "deadline": "every answer is due at a time that the judge sets; who is late is killed",
    "process": "a process of its own, with nothing of the judge in it: no oracle, no tolerance, no clock, no seed",
}
SWITCHABLE = frozenset(DEFENCES) - {"process", "deadline", "form", "oracle"}  # without these no judge is left


def checked(names: Iterable[str]) -> frozenset[str]:
    """These names, when each is a defence that can be switched off. Raises AutokernelError."""
    wanted = frozenset(names)
    if unknown := sorted(wanted - SWITCHABLE):
        raise AutokernelError(
            f"expected names of defences, got {', '.join(unknown)}: known are {', '.join(sorted(SWITCHABLE))}"
        )
    return wanted
