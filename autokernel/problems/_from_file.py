"""A problem that its owner wrote: the path of a Python file, where a name of this folder would stand.

The file holds one of

    PROBLEM = Problem(...)                               everything, as each file of this folder does
    reference(x, ..., eps=1e-5) and make_inputs(n=1024)  or get_inputs(): tensors and numbers in the signature's order
    class Model, get_inputs() and get_init_inputs()      KernelBench's convention; the weights become further inputs

A kernel of it is ``kernel_fn(*tensors, **numbers)``: the tensors in this order, numbers by keyword. These are optional:

    SHAPES, EDGE_SHAPES  sizes to judge, each a dict for make_inputs      held_out(rng)    a dict of sizes nobody knows
    DTYPES               those that must work; default: the inputs' own   TOLERANCES       dtype -> (atol, rtol)
    flops(**sizes), bytes_moved(**sizes)  of one call                     library(...)     the best known call
    CONTIGUOUS = True    promises that no input is ever strided
    JUMPS = True         it rounds on the way: a value near a tie may fall to either side, all others must be right
    GRAPH                the lines of the graph that it was printed from (``regions/printed.py``)

It is trusted: the judge runs it. What is weaker than in a problem of this folder: with ``get_inputs()`` there is one
shape, so a kernel may be right for that shape alone; sizes that are derived from make_inputs are only those on which
the reference itself runs; inputs that break this one kind of kernel are not known, so generic ones stand in, and only
where the reference survives them in its own dtype; values that ``get_inputs()`` does not draw at random stay what they
are; floating-point work other than products counts as no flops, so that the floor is that of the bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from autokernel.evaluate.correctness import FLOAT64_MAX_FLOPS, expected, mismatch
from autokernel.problems import _ties
from autokernel.problems._common import ELEMENT_BYTES, LOOSE, TORCH_DTYPES
from autokernel.problems._owner import REFUSALS, Owned, sizes_or_raise, understand
from autokernel.regions.model import execute, user_code
from autokernel.regions.sizes import solved
from autokernel.types import (
    DTYPES,
    AdversarialInput,
    AutokernelError,
    Binding,
    Dims,
    DType,
    Problem,
    Tolerance,
    Window,
    Workload,
)

Change = Callable[[tuple[torch.Tensor, ...], torch.Generator], tuple[torch.Tensor, ...]]
SMALL, ODD = 64, (1, 37, 1023)
HELD_OUT_TRIES, HELD_OUT_MOST = 20, 512
TOLERANCE_REASON = "The default of each dtype: the file names no tolerances of its own."


def load(path: str) -> Problem:
    """The problem of a file; ``name`` is its absolute path. Raises AutokernelError that names what the file lacks."""
    file = Path(path).resolve()
    if not file.is_file():
        raise AutokernelError(f"a reference file was expected at {path}; there is none")
    return _load(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _load(path: Path, modified_ns: int) -> Problem:
    namespace = execute(path)
    if isinstance(given := getattr(namespace, "PROBLEM", None), Problem):
        return dataclasses.replace(given, name=str(path))
    return _Build(path, namespace, understand(path, namespace)).whole


class _Build:
    """A Problem from what the file says, the rest derived."""

    def __init__(self, path: Path, namespace: Any, owned: Owned) -> None:
        self.path, self.says, self.owned = path, namespace, owned
        self.given = dict(owned.sizes) or owned.described
        self.dtypes = self._dtypes()
        self.tolerances = self._tolerances()
        self._costs: dict[tuple[tuple[str, int], ...], tuple[int, int, int]] = {}
        self._sound: dict[tuple[str, DType], bool] = {}
        self.whole = self._problem()

    def _problem(self) -> Problem:
        with user_code(self.path, "the reference on its own inputs"):
            self._cost(self.given)
        shapes = self._shapes()
        library = getattr(self.says, "library", None)
        return Problem(
            name=str(self.path),
            summary=(getattr(self.says, "__doc__", None) or self.path.stem).strip(),
            reference=self.owned.call,
            inputs=self.owned.names,
            make_inputs=self.make_inputs,
            shapes={"cpu": shapes, "cuda": shapes},
            edge_shapes=self._edges(),
            adversarial=self._adversarial(),
            tolerances=self.tolerances,
            tolerance_reason=TOLERANCE_REASON,
            flops=self._flops,
            bytes=self._bytes,
            baselines={"eager": self.owned.call, **({"library": self.owned.like(library)} if library else {})},
            propose_bindings=self._bindings,
            held_out=self._held_out,
            scalars=self.owned.scalars,
            dtypes=self.dtypes,
            strided=not getattr(self.says, "CONTIGUOUS", False),
            program=tuple(getattr(self.says, "GRAPH", ())),
            jumps=bool(getattr(self.says, "JUMPS", False)),
        )

    def make_inputs(self, dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        with user_code(self.path, "drawing the inputs"):
            drawn = self.owned.draw({n: dims.get(n, v) for n, v in self.owned.sizes.items()}, generator)
        return tuple(t.to(TORCH_DTYPES[dtype]) if t.is_floating_point() else t for t in drawn)

    def _bindings(self, window: Window) -> Sequence[Binding]:
        """The inputs as they are, of a window that holds the file's own program; sizes follow from their shapes."""
        if not hasattr(self.says, "GRAPH") or len(window.tensors) != len(self.owned.names):
            return ()
        dims = solved(self.owned.shapes, [t.shape for t in window.tensors])
        if dims is None or set(dims) != set(self.owned.sizes):
            return ()
        return [Binding(dims, self.owned.scalars, lambda *tensors: tensors, lambda out, *tensors: out)]

    # ------------------------------------------------------------------------------------------ what the file may say

    def _dtypes(self) -> tuple[DType, ...]:
        said = getattr(self.says, "DTYPES", None)
        if said is None:
            return (self.owned.dtype,)
        unknown = [d for d in said if d not in DTYPES]
        if unknown or not said:
            raise AutokernelError(f"{self.path}: DTYPES was expected to name some of {', '.join(DTYPES)}; got {said!r}")
        return tuple(said)

    def _tolerances(self) -> Mapping[DType, Tolerance]:
        found = dict(LOOSE)
        for dtype, bounds in getattr(self.says, "TOLERANCES", {}).items():
            if dtype not in DTYPES or not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
                raise AutokernelError(f"{self.path}: TOLERANCES was expected to be like {{'fp32': (1e-4, 1e-4)}}")
            found[dtype] = Tolerance(*bounds)
        return found

    def _shapes(self) -> Sequence[Dims]:
        """Smallest first: the first is the smoke test's."""
        said = getattr(self.says, "SHAPES", None)
        if said is not None:
            return sizes_or_raise(self.path, "SHAPES", said, self.owned.sizes)
        sizes = self.owned.sizes
        small = {n: min(v, SMALL) for n, v in sizes.items()}
        half = {n: max(1, v // 2) for n, v in sizes.items()}
        distinct = [d for i, d in enumerate((small, half)) if d != self.given and d not in (small, half)[:i]]
        return (*(d for d in distinct if sizes and self._accepts(d)), self.given)

    def _edges(self) -> Sequence[Dims]:
        said = getattr(self.says, "EDGE_SHAPES", None)
        if said is not None:
            return sizes_or_raise(self.path, "EDGE_SHAPES", said, self.owned.sizes)
        sizes = self.owned.sizes
        small = {n: min(v, SMALL) for n, v in sizes.items()}
        odd = [{**small, n: value} for n in small for value in ODD if small[n] != value <= sizes[n]]
        return [dims for dims in odd if self._accepts(dims)]

    def _held_out(self, rng: random.Random) -> Dims:
        own = getattr(self.says, "held_out", None)
        if own is not None:
            with user_code(self.path, "held_out(rng)"):
                return dict(own(rng))
        for _ in range(HELD_OUT_TRIES if self.owned.sizes else 0):
            dims = {n: rng.randint(1, max(2, min(v, HELD_OUT_MOST))) for n, v in self.owned.sizes.items()}
            if self._accepts(dims):
                return dims
        return self.given

    def _accepts(self, dims: Dims) -> bool:
        """Whether the reference runs on inputs of these sizes."""
        try:
            out = self.owned.call(*self.owned.draw(dims, torch.Generator().manual_seed(0)), **self.owned.scalars)
        except REFUSALS:
            return False
        return isinstance(out, torch.Tensor)

    # ------------------------------------------------------------------------------------------ cost

    def _flops(self, workload: Workload) -> int:
        if own := getattr(self.says, "flops", None):
            return int(own(**{n: workload.dims.get(n, v) for n, v in self.owned.sizes.items()}))
        return self._cost(workload.dims)[0]

    def _bytes(self, workload: Workload) -> int:
        if own := getattr(self.says, "bytes_moved", None):
            return int(own(**{n: workload.dims.get(n, v) for n, v in self.owned.sizes.items()}))
        _, floats, others = self._cost(workload.dims)
        return floats * ELEMENT_BYTES[workload.dtype] + others

    def _cost(self, dims: Dims) -> tuple[int, int, int]:
        """(flops of products, float elements read and written, bytes of the other inputs) of one call.

        Where there are indices among the inputs, a tensor counts at most as often as the output has elements: how much
        of a table a lookup reads is not known, and the floor must not be above what is needed.
        """
        key = tuple(sorted(dims.items()))
        if key not in self._costs:
            sizes = {n: dims.get(n, v) for n, v in self.owned.sizes.items()}
            tensors = self.owned.draw(sizes, torch.Generator().manual_seed(0))
            flops, out = self._trace(tensors)
            floats = [t.numel() for t in tensors if t.is_floating_point()]
            others = [t for t in tensors if not t.is_floating_point()]
            if others:
                floats = [min(n, out.numel()) for n in floats]
            nbytes = sum(t.numel() * t.element_size() for t in others)
            self._costs[key] = (flops, sum(floats) + out.numel(), nbytes)
        return self._costs[key]

    def _trace(self, tensors: tuple[torch.Tensor, ...]) -> tuple[int, torch.Tensor]:
        """Flops and output of a call, on the meta device where the reference allows it."""
        try:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                out = self.owned.call(*(t.to("meta") for t in tensors), **self.owned.scalars)
        except REFUSALS:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                out = self.owned.call(*tensors, **self.owned.scalars)
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            got = f"{out.dtype} tensor" if isinstance(out, torch.Tensor) else type(out).__name__
            raise AutokernelError(
                f"{self.path}: the reference was expected to return one floating-point tensor; it returned a {got}"
            )
        return int(counter.get_total_flops()), out

    # ------------------------------------------------------------------------------------------ hard inputs

    def _adversarial(self) -> Sequence[AdversarialInput]:
        def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
            return lambda tensors, _: tuple(
                change(t) if t.is_floating_point() and i < self.owned.arguments else t for i, t in enumerate(tensors)
            )

        def rounded(change: Callable[..., tuple[torch.Tensor, ...]]) -> Change:
            call = functools.partial(self.owned.call, **self.owned.scalars)
            return lambda tensors, generator: change(call, tensors, self.owned.arguments, generator)

        changes = {name: each(change) for name, change in CHANGES.items()}
        if getattr(self.says, "JUMPS", False):
            changes |= {"ties": rounded(_ties.on_ties), "levels": rounded(_ties.on_levels)}
        return [AdversarialInput(n, self.given, self._adversary(n, change)) for n, change in changes.items()]

    def _adversary(
        self, name: str, change: Change
    ) -> Callable[[Dims, DType, torch.Generator], tuple[torch.Tensor, ...]]:
        """Draws inputs and changes them, where the reference itself gets the changed ones right in this dtype."""

        def make(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
            plain = self.make_inputs(dims, dtype, generator)
            changed = change(plain, generator)
            if (name, dtype) not in self._sound:
                self._sound[name, dtype] = self._survives(dims, dtype, changed)
            return changed if self._sound[name, dtype] else plain

        return make

    def _survives(self, dims: Dims, dtype: DType, tensors: tuple[torch.Tensor, ...]) -> bool:
        flops = self._cost(dims)[0]
        if flops > FLOAT64_MAX_FLOPS:
            return False
        try:
            want = expected(self.whole, tensors, self.owned.scalars, flops, str(tensors[0].device))
            out = self.owned.call(*tensors, **self.owned.scalars)
        except REFUSALS:
            return False
        finite = bool(torch.isfinite(out).all())
        return finite and mismatch(out, want, self.tolerances[dtype], statistical=False)[1] is None


def _large(x: torch.Tensor) -> torch.Tensor:
    return (x.float() * (30.0 if x.dtype == torch.float16 else 1e3)).to(x.dtype)


def _tiny(x: torch.Tensor) -> torch.Tensor:
    return (x.float() * 1e-4).to(x.dtype)


def _outlier(x: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    if out.dim() and out.numel():
        out[..., out.shape[-1] // 2] = 1e3
    return out


CHANGES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "large": _large,
    "tiny": _tiny,
    "zeros": torch.zeros_like,
    "equal": lambda x: torch.full_like(x, 3.0),
    "outlier": _outlier,
}
