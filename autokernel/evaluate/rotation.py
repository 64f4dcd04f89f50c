"""The inputs of timed calls: sets that the judge owns, together larger than the last-level cache, new for every turn.

New must mean new. Where only a part is rewritten, a kernel can keep its last answer and mend that part; where a set is
a shifted copy of another, sums over windows of it follow from sums already made.
"""

from __future__ import annotations

import math
import random

import torch

from autokernel.evaluate.memory import InputSets, extent, relaid
from autokernel.types import Problem, Workload

ROTATED = 2.0  # sets of one workload together, in units of the last-level cache
MIN_SETS = 2
MAX_SETS = {"cpu": 1024, "cuda": 4096}
CPU_BYTES = 512 << 20  # of all input sets; and of the outputs of one turn
GPU_SHARE = 1 / 8  # of a GPU's memory, for the sets; a third of that for the outputs of each of up to 13 runners
OWN_SHARE, LEAST_OTHER, MOST_OTHER = 0.8, 0.2, 0.4  # a new input is 0.8 of one random tensor and so much of another
STRIDES = (199, 257)  # how much further on in the two each set of a turn begins


class Rotation:
    """The input sets of one workload, owned by the judge."""

    def __init__(
        self, problem: Problem, work: Workload, cache_bytes: int, seed: int, device: str, *, sealed: bool
    ) -> None:
        self.problem = problem
        self.work = work
        self._sealed = sealed
        self.scalars = {**problem.scalars, **work.scalars}
        self._where = torch.device(device)
        self._most_sets = MAX_SETS[self._where.type]
        self.calls = 1  # of a turn; set by Bench.calibrate
        self._drawn = self._draw(seed)
        self._other = self._draw(seed + 1)
        out = problem.reference(*self._drawn, **self.scalars)
        self._most_bytes = kept = CPU_BYTES
        if self._where.type != "cpu":
            self._most_bytes = int(GPU_SHARE * torch.cuda.mem_get_info(self._where)[1])
            kept = self._most_bytes // 3
        self.most_calls = max(1, min(self._most_sets - 1, kept // max(1, out.numel() * out.element_size())))
        self._cache_bytes = cache_bytes
        self._one_bytes = max(1, sum(t.numel() * t.element_size() for t in self._drawn))
        self.inputs = self._lay_out(self.sets_for(1))
        self._pools: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def sets_for(self, calls: int) -> int:
        """How many sets a turn of so many calls wants: one a call and one to warm up, more than the cache holds."""
        least = math.ceil(ROTATED * self._cache_bytes / self._one_bytes)
        return int(max(MIN_SETS, min(max(least, calls + 1), self._most_sets, self._most_bytes // self._one_bytes)))

    def grow(self, sets: int) -> None:
        """Replace the sets by more of them."""
        self.inputs.close()
        self._pools = {}
        self.inputs = self._lay_out(sets)

    def rewrite(self, first: int, calls: int, rng: random.Random) -> None:
        """New values in every float input of so many sets: a mixture of two random tensors, at other places of both
        for each set and each turn, so that no set is a shifted copy of another, now or earlier.
        """
        for index, tensor in enumerate(self.inputs.tensors[0]):
            span = extent(tensor.shape, tensor.stride())
            if not tensor.is_floating_point() or span == 0:
                continue
            if index not in self._pools:
                length = span + max(STRIDES) * len(self.inputs.tensors) + max(4096, span // 8)
                own, other = self._drawn[index] * OWN_SHARE, self._other[index]
                self._pools[index] = repeated(own, length), repeated(other, length)
            windows = [
                pool.as_strided((calls, span), (stride, 1), rng.randrange(pool.numel() - span - stride * (calls - 1)))
                for pool, stride in zip(self._pools[index], STRIDES, strict=True)
            ]
            self.inputs.mix(index, first, windows, rng.uniform(LEAST_OTHER, MOST_OTHER))

    def close(self) -> None:
        self.inputs.close()

    def _draw(self, seed: int) -> tuple[torch.Tensor, ...]:
        with torch.device(self._where):
            generator = torch.Generator(self._where).manual_seed(seed)
            drawn = self.problem.make_inputs(self.work.dims, self.work.dtype, generator)
        return tuple(tensor.to(self._where) for tensor in drawn)

    def _lay_out(self, sets: int) -> InputSets:
        named = list(zip(self.problem.inputs, self._drawn, strict=True))
        strides = self.work.strides
        rolled = ([(n, t.reshape(-1).roll(1009 * i).reshape(t.shape)) for n, t in named] for i in range(sets))
        laid = [[relaid(t, strides[n]) if n in strides else t for n, t in each] for each in rolled]
        return InputSets(laid, sealed=self._sealed)


def repeated(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """The tensor's elements as one dimension, over and over, up to ``length`` of them."""
    flat = tensor.reshape(-1)
    return flat.repeat(-(-length // flat.numel()))[:length].contiguous()
