"""``autokernel.apply(model, run=...)``, ``autokernel.restore(model)``, ``torch.compile(model, backend="autokernel")``.

A model is compiled in place, as ``torch.nn.Module.compile`` does it, with a backend that puts a run's kernels where
they belong and leaves all else as the owner wrote it (or to Inductor). Nothing is added to the model: its parameters,
``state_dict`` and pickle are what they were. Dynamo's guards hold each rewritten graph to the shapes, dtypes, strides
and global state (autocast, grad mode) that it was made for; another call is rewritten for itself, or runs as it was.

A model whose GPU waits for the host gains nothing from a faster kernel: a call of one costs the host more than one of
PyTorch's own. ``rest="graphs"`` is for such a model: what the host does is recorded once and replayed.

Not covered: a buffer whose values change after the first forward (a mask that is edited in place): call ``restore`` and
``apply`` again. Under CUDA graphs a replay does not count as a call.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import fx

from autokernel.engage import won
from autokernel.engage.rewrite import Engagement, Rewriter
from autokernel.regions.model import fingerprint
from autokernel.types import AutokernelError

Rest = Literal["eager", "inductor", "graphs"]
Module = TypeVar("Module", bound=torch.nn.Module)
_applied: weakref.WeakKeyDictionary[torch.nn.Module, Rewriter] = weakref.WeakKeyDictionary()


def apply(
    model: Module,
    run: str | os.PathLike[str],
    *,
    kernels: Collection[str] | None = None,
    rest: Rest = "eager",
) -> Module:
    """Puts the kernels that a run won into ``model``, in place, and returns it.

    ``kernels`` names targets (default: those that a verification found to pay beside ``rest``, or all that beat eager).
    ``rest`` says who runs what no kernel covers: PyTorch as the owner wrote it ("eager"), Inductor ("inductor"), or
    Inductor with all of a forward in CUDA graphs ("graphs", on a GPU). A call with other shapes, dtypes or layouts than
    those that were judged runs the original code: see ``engagement``.

    With "graphs" call the model under ``torch.no_grad()`` (where gradients are needed it runs without graphs, and
    ``engagement`` says so). The first two calls of each kind are slow: they warm up and record. An output lives until
    the next call, which writes over it: ``clone`` what you keep. Where outputs of the last step are inputs of the next,
    call ``torch.compiler.cudagraph_mark_step_begin()`` before each step. PyTorch leaves graphs aside for a program that
    it cannot record (one that writes into its inputs, or needs the CPU): TORCH_LOGS=perf_hints,cudagraphs says why.

    Raises AutokernelError where ``run`` is no run, is a run of another model, won nothing, or holds a kernel file that
    was edited since its verdict; where the model is applied already; where its weights lie on another device; and for
    "graphs" on a device that has none.
    """
    if model in _applied:
        raise AutokernelError("this model has kernels applied already: autokernel.restore(model) first")
    found = won.read(Path(run), kernels, rest=rest)
    backend = _Backend(Rewriter(found.won, found.device, {id(b) for b in model.buffers()}), rest)
    check(model, found)
    if not found.won:
        raise AutokernelError(
            f"{found.folder}: no kernel of this run beats eager, or none was shown to pay beside rest='{rest}': there "
            "is nothing to apply (kernels=[...] names one that is wanted all the same)"
        )
    _applied[model] = backend.rewriter
    model.compile(backend=backend, dynamic=False)
    return model


def restore(model: Module) -> Module:
    """Takes the kernels out again: the model runs as its owner wrote it. Returns it; harmless where none is applied."""
    _applied.pop(model, None)
    model._compiled_call_impl = None
    return model


def engagement(model: torch.nn.Module) -> Mapping[str, Engagement]:
    """How often each applied kernel took part since ``apply``, by target. Raises AutokernelError where none is."""
    if model not in _applied:
        raise AutokernelError("this model has no kernels applied: autokernel.apply(model, run=...) first")
    return _applied[model].report()


def check(model: torch.nn.Module, run: won.Run) -> None:
    """Raises AutokernelError where this run cannot be this model's."""
    if run.fingerprint is not None and run.fingerprint != fingerprint(model):
        raise AutokernelError(
            f"{run.folder} is a run of {run.model} {dict(run.settings) or ''}, whose parameters have other names or "
            "shapes than this model's; apply it to the model that was profiled"
        )
    kind = torch.device(run.device).type
    strangers = sorted({p.device.type for p in model.parameters()} - {kind})
    if strangers:
        raise AutokernelError(
            f"{run.folder} was made on {run.device}; the model's weights lie on {strangers[0]}: "
            f"move it with .to('{kind}')"
        )


def backend(
    module: fx.GraphModule, examples: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """``torch.compile(model, backend="autokernel", dynamic=False, options={"run": "results/..."})``: the run's kernels
    where they belong, Inductor for the rest. Without ``run``, $AUTOKERNEL_RUN names it; "kernels" names targets, "rest"
    who runs the others, as in ``apply``.
    """
    given = dict(options or {})
    folder = given.pop("run", None) or os.environ.get("AUTOKERNEL_RUN")
    kernels, rest = given.pop("kernels", None), given.pop("rest", "inductor")
    if folder is None or given:
        found = f"{sorted(given)} found" if given else "none given"
        raise AutokernelError(
            f'torch.compile(backend="autokernel") expects options={{"run": FOLDER}} (also: kernels, rest); {found}'
        )
    run = won.read(Path(folder), kernels, rest=rest)
    return _Backend(Rewriter(run.won, run.device, set()), rest)(module, examples)


class _Backend:
    """What Dynamo calls with each graph that it traced."""

    def __init__(self, rewriter: Rewriter, rest: Rest) -> None:
        if rest not in won.MODES:
            known = ", ".join(f"'{each}'" for each in won.MODES)
            raise AutokernelError(f"rest was expected to be one of {known}; got '{rest}'")
        if rest == "graphs" and rewriter.device.type != "cuda":
            raise AutokernelError(
                f"rest='graphs' records CUDA graphs, and the run was made on {rewriter.device}: take rest='inductor'"
            )
        self.rewriter, self._rest = rewriter, rest

    def __call__(self, module: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        if any(isinstance(e, torch.SymInt) for e in examples):
            self._note("a graph with dynamic shapes: compile with dynamic=False")
            rewritten = module
        else:
            rewritten = self.rewriter.rewrite(module, examples)
        if self._rest == "eager":
            forward: Callable[..., Any] = rewritten.forward
            return forward
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        patches: dict[str, Any] = {"fx_graph_cache": False}  # its key would be a pickle of the operators
        if self._rest == "graphs" and _needs_gradient(examples):
            self._note("CUDA graphs are left aside where gradients are needed: call the model under torch.no_grad()")
        elif self._rest == "graphs":
            patches |= list_mode_options("reduce-overhead")
        compiled: Any = compile_fx(rewritten, list(examples), config_patches=patches)
        return compiled  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Dynamo asks for this when it forgets what it compiled: recorded graphs hold memory."""
        if self._rest == "graphs":
            from torch._inductor.cudagraph_trees import reset_cudagraph_trees

            reset_cudagraph_trees()

    def _note(self, reason: str) -> None:
        for engaged in self.rewriter.engaged.values():
            engaged.refused[reason] += 1


def _needs_gradient(examples: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(getattr(e, "requires_grad", False) for e in examples)
