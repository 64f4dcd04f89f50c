"""One won kernel as PyTorch sees it: a ``torch.library`` operator with a fake implementation, and a gradient.

The operator has the problem's signature. Its gradient is that of the problem's reference, computed when it is asked
for. An input that the kernel was not judged on (an address that is not aligned) goes to the reference instead, and is
counted. Autocast is off in all of it: no verdict was reached under one.

A small kernel waits for the host, so what stands before it is kept short: who needs no gradient does not pay for one,
who is watched by no tracer does not pay for the dispatcher, and the operator is one Python function behind it, without
the wrappers of ``torch.library.custom_op``.
"""

from __future__ import annotations

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
_library: Any = torch.library.Library("autokernel", "FRAGMENT")  # type: ignore[no-untyped-call]
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
        """The problem's output, with a gradient where one is needed. ``scalars`` are those that differ from the
        problem's own.
        """
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            out: torch.Tensor = _Differentiable.apply(self, scalars, *tensors)  # type: ignore[no-untyped-call]
            return out
        return self.forward(tensors, scalars)

    def forward(self, tensors: tuple[torch.Tensor, ...], scalars: Mapping[str, Scalar]) -> torch.Tensor:
        """The problem's output without a gradient: the operator where a tracer watches, else the kernel itself."""
        if torch.compiler.is_compiling() or _modes_active():
            return self.op(*tensors, *(scalars.get(name, own) for name, own in self.problem.scalars.items()))
        return self._call(tensors, scalars)

    def _call(self, tensors: tuple[torch.Tensor, ...], scalars: Mapping[str, Scalar]) -> torch.Tensor:
        kind = tensors[0].device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._call(tensors, scalars)
        places = [t.data_ptr() for t in tensors]
        for place in places:
            if place % ALIGNMENT_BYTES:
                self.refused["an input is not aligned to 16 bytes"] += 1
                reference: torch.Tensor = self.problem.reference(*tensors, **scalars)
                return reference.contiguous()
        self.calls += 1
        out = self._kernel(*tensors, **{**self.problem.scalars, **scalars})
        place = out.data_ptr()
        if place in places or place % ALIGNMENT_BYTES:  # what follows may write into it, and counts on its alignment
            return out.clone(memory_format=torch.contiguous_format)
        return out.contiguous()

    def _define(self, version: str) -> Callable[..., torch.Tensor]:
        name = f"{kernel_type(self.problem.name).rpartition('.')[2]}_{version}"
        name = "".join(c if c.isalnum() else "_" for c in name)
        parts = [f"Tensor {each}" for each in self.problem.inputs]
        parts += [f"{_SCHEMA_TYPES[type(value)]} {each}" for each, value in self.problem.scalars.items()]
        inputs, scalars = len(self.problem.inputs), tuple(self.problem.scalars)

        def call(*arguments: Any) -> torch.Tensor:
            return self._call(arguments[:inputs], dict(zip(scalars, arguments[inputs:], strict=True)))

        def fake(*arguments: Any) -> torch.Tensor:
            named = dict(zip(scalars, arguments[inputs:], strict=True))
            kind = arguments[0].device.type
            with torch.autocast(kind, enabled=False):
                out = self.problem.reference(*arguments[:inputs], **named)
            return torch.empty_like(out, memory_format=torch.contiguous_format)

        _library.define(f"{name}({', '.join(parts)}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, call, "CompositeExplicitAutograd")  # of every device: which one was judged, Rewriter asks
        torch.library.register_fake(f"autokernel::{name}", fake, lib=_library)
        op: Callable[..., torch.Tensor] = getattr(torch.ops.autokernel, name).default
        return op


class _Differentiable(torch.autograd.Function):
    """A kernel's output, with the gradient of its problem's reference, run again on the saved inputs."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, scalars: Mapping[str, Scalar], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        ctx.kernel, ctx.scalars = kernel, scalars
        return kernel.forward(tensors, scalars)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        with torch.enable_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]
            out = ctx.kernel.problem.reference(*leaves, **ctx.scalars)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, gradients, allow_unused=True))
        return None, None, *(next(found) if leaf.requires_grad else None for leaf in leaves)


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
