"""One won kernel as PyTorch sees it: a ``torch.library`` operator with a fake implementation and a gradient.

The operator has the problem's signature. Its gradient is that of the problem's reference, computed when it is asked
for. An input that the kernel was not judged on (another device, an address that is not aligned) goes to the reference
instead, and is counted. Autocast is off in all of it: no verdict was reached under one.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from autokernel import assets, registry, runfile
from autokernel.engage.won import Won
from autokernel.types import AutokernelError, Problem, Scalar, kernel_type, source_id

ALIGNMENT_BYTES = 16  # what an allocator gives at least, so that every verdict was reached with it
_SCHEMA_TYPES = {bool: "bool", int: "int", float: "float", type(None): "float?"}
_kernels: dict[tuple[str, str], Kernel] = {}


class Kernel:
    """A kernel file, loaded, and the operator ``torch.ops.autokernel.<name>`` that calls it. What it was won for is not
    its business: two runs may hold the same file.
    """

    def __init__(self, won: Won) -> None:
        self.problem: Problem = registry.load("problems", won.target.problem)
        self.calls = 0
        self.refused: Counter[str] = Counter()
        self._kernel = _load(won)
        # An operator that is registered twice is broken: its name tells apart what ``of`` tells apart.
        self.op = self._define(source_id(f"{won.target.problem}\n{won.source}")[:12])

    @classmethod
    def of(cls, won: Won) -> Kernel:
        """The kernel of this source; the same object each time, since operators live as long as the process."""
        key = won.target.problem, source_id(won.source)
        if key not in _kernels:
            _kernels[key] = cls(won)
        return _kernels[key]

    def __call__(self, tensors: tuple[torch.Tensor, ...], scalars: Mapping[str, Scalar]) -> torch.Tensor:
        """The problem's output. The operator where a gradient or a tracer may be watching, else the kernel itself:
        the dispatcher's way there costs more than a small kernel.
        """
        watched = torch.compiler.is_compiling() or torch.is_grad_enabled() or _modes_active()
        if watched:
            out: torch.Tensor = self.op(*tensors, *self._in_order(scalars))
            return out
        return self._call(*tensors, *self._in_order(scalars))

    def _in_order(self, scalars: Mapping[str, Scalar]) -> list[Scalar]:
        return [{**self.problem.scalars, **scalars}[name] for name in self.problem.scalars]

    def _call(self, *arguments: Any) -> torch.Tensor:
        tensors, scalars = arguments[: len(self.problem.inputs)], arguments[len(self.problem.inputs) :]
        named = dict(zip(self.problem.scalars, scalars, strict=True))
        misaligned = any(t.data_ptr() % ALIGNMENT_BYTES for t in tensors)
        with _no_autocast(tensors[0]):
            if misaligned:
                self.refused["an input is not aligned to 16 bytes"] += 1
                out: torch.Tensor = self.problem.reference(*tensors, **named)
                return out.contiguous()
            self.calls += 1
            out = self._kernel(*tensors, **named)
            return out.contiguous()

    def _define(self, version: str) -> Callable[..., torch.Tensor]:
        name = f"{kernel_type(self.problem.name).rpartition('.')[2]}_{version}"
        name = "".join(c if c.isalnum() else "_" for c in name)
        parts = [f"Tensor {each}" for each in self.problem.inputs]
        parts += [f"{_SCHEMA_TYPES[type(value)]} {each}" for each, value in self.problem.scalars.items()]
        schema = f"({', '.join(parts)}) -> Tensor"
        op = torch.library.custom_op(f"autokernel::{name}", self._call, mutates_args=(), schema=schema)
        inputs, scalars = len(self.problem.inputs), tuple(self.problem.scalars)

        def fake(*arguments: Any) -> torch.Tensor:
            named = dict(zip(scalars, arguments[inputs:], strict=True))
            with _no_autocast(arguments[0]):
                out = self.problem.reference(*arguments[:inputs], **named)
            return torch.empty_like(out, memory_format=torch.contiguous_format)

        def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            tensors = inputs[: len(self.problem.inputs)]
            ctx.save_for_backward(*tensors)
            ctx.scalars = dict(zip(scalars, inputs[len(tensors) :], strict=True))

        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            return self._gradients(ctx.saved_tensors, ctx.scalars, gradient, ctx.needs_input_grad)

        op.register_fake(fake)
        op.register_autograd(backward, setup_context=setup)
        return op

    def _gradients(
        self,
        tensors: tuple[torch.Tensor, ...],
        scalars: Mapping[str, Scalar],
        gradient: torch.Tensor,
        needed: tuple[bool, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        """Those of the reference, run again on the saved inputs; None for what needs none."""
        with torch.enable_grad(), _no_autocast(tensors[0]):
            leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=False)]
            out = self.problem.reference(*leaves, **scalars)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, gradient, allow_unused=True))
        given = [next(found) if leaf.requires_grad else None for leaf in leaves]
        return (*given, *(None for _ in scalars))


def _no_autocast(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Autocast off for a device where it is on: to ask costs little, a small kernel less."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _modes_active() -> bool:
    """Whether a dispatch mode (fake tensors, a tracer, a profiler of operators) must see each operator."""
    return torch._C._len_torch_dispatch_stack() > 0


def _load(won: Won) -> Callable[..., torch.Tensor]:
    """The kernel file's ``kernel_fn``; it builds as its backend builds. Raises AutokernelError where it cannot."""
    backend = registry.load("backends", won.target.backend)
    missing = [f"{need.what}: {need.mend}" for need in backend.missing()]
    if missing:
        raise AutokernelError(f"the kernel for {won.target.name} cannot be built here; missing {'; '.join(missing)}")
    cache = assets.cache_folder() / "engaged"
    folder = cache / source_id(won.source)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(won.target.file).stem}.py"
    path.write_text(won.source)
    name = f"autokernel_engaged_{path.stem}_{folder.name}"
    users = {name: value for name, value in os.environ.items() if name != "PATH"}
    with runfile.environment({**backend.environment(str(cache)), **users}):
        function: Callable[..., torch.Tensor] = runfile.run(path, name).kernel_fn
    return function
