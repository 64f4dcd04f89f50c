"""Does the model still say the same? Outputs and gradients against a wider run of the original.

Two versions of one model never agree bit for bit, so each is held against the same original in a wider dtype (float64
for a float32 model, float32 for half precision): a rewritten model may be off by a small multiple of what the original
is off itself. Where a kernel rounds on the way (quantises, say), a last digit is worth a whole step wherever a value
lies at a tie, in the original as in the kernel, and seldom in the same places: then the original is run with what its
roundings read a little off, too, and what that changes is allowed besides.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from autokernel.evaluate.jumps import Watch, nudged
from autokernel.problems._common import TORCH_DTYPES
from autokernel.regions.loss import loss_of
from autokernel.regions.model import LoadedModel

NUDGES = 2  # runs of the original whose roundings read something else
MULTIPLE = 3.0  # of the original's own error that is allowed
ROUNDINGS = 4.0  # units in the last place that are allowed where the original makes (nearly) no error
EQUAL_SHARE = 0.999  # of integer outputs (tokens, say): near ties fall either way
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Errors are root mean squares relative to the reference's. ``worst`` names the output or parameter that is
    furthest from what is allowed; ``missing`` what the original gives and the rewritten model does not.
    """

    passed: bool
    error: float
    original_error: float
    worst: str = ""
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


Named = dict[str, torch.Tensor]


class Judge:
    """The original's outputs over fresh input sets, as it runs (in its own dtype, or under its autocast) and in a wider
    dtype. For a model that is trained, the gradient of every parameter as well. ``jumps`` says that a kernel rounds on
    the way.
    """

    def __init__(self, model: LoadedModel, seeds: Sequence[int], *, jumps: bool = False) -> None:
        self.inputs = [model.make_inputs(seed) for seed in seeds]
        self._model = model
        self._narrow = [_run(model, model.module, inputs) for inputs in self.inputs]
        wide = copy.deepcopy(model.module).to(torch.float64 if model.dtype == "fp32" else torch.float32)
        original = dataclasses.replace(model, module=wide, autocast=None)
        self._wide = [_run(original, wide, tree_map(_widened, inputs)) for inputs in self.inputs]
        self._nudged: list[list[Named]] = []
        for inputs in self.inputs:
            self._nudged.append([])
            for seed in range(NUDGES if jumps else 0):
                with Watch(nudged(torch.finfo(TORCH_DTYPES[model.dtype]).eps, seed)):
                    self._nudged[-1].append(_run(original, wide, tree_map(_widened, inputs)))

    def agreement(self, call: Callable[..., Any]) -> Agreement:
        """How far ``call`` (the rewritten model) is from the reference over all input sets."""
        worst: Agreement | None = None
        for inputs, narrow, wide, moved in zip(self.inputs, self._narrow, self._wide, self._nudged, strict=True):
            found = compare(_run(self._model, call, inputs), narrow, wide, moved)
            if worst is None or (worst.passed, -worst.error) > (found.passed, -found.error):
                worst = found
        assert worst is not None, "at least one input set"
        return worst


def _run(model: LoadedModel, call: Callable[..., Any], inputs: tuple[Any, ...]) -> Named:
    """What ``call``, which stands for the model's module, gives: outputs by name, and gradients where it is trained."""
    model.module.zero_grad(set_to_none=True)
    with model.conditions():
        output = call(*inputs)
    outputs = {name: t.detach().clone() for name, t in _named(output).items()}  # the next call may write over them
    if not model.train:
        return outputs
    torch.autograd.backward(loss_of(output))
    parameters = model.module.named_parameters()
    gradients = {f"gradient of {name}": p.grad.clone() for name, p in parameters if p.grad is not None}
    model.module.zero_grad(set_to_none=True)
    return outputs | gradients


def compare(found: Named, narrow: Named, wide: Named, nudged: Sequence[Named] = ()) -> Agreement:
    """``found`` against ``wide``, allowed what ``narrow`` (the original itself) is off, and a little more; and what the
    ``nudged`` ones (``wide``, with roundings that fell otherwise) are off, besides.
    """
    missing = tuple(sorted(set(narrow) - set(found)))
    if missing:
        return Agreement(False, math.inf, 0.0, missing[0], missing)
    worst, ratio = Agreement(True, 0.0, 0.0), -1.0
    for name, reference in wide.items():
        ours, theirs = found[name], narrow[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return Agreement(False, math.inf, 0.0, f"{name}: {ours.dtype} {tuple(ours.shape)}")
        if not theirs.is_floating_point():
            same = float((ours == theirs).double().mean()) if theirs.numel() else 1.0
            error, own, allowed = 1 - same, 0.0, 1 - EQUAL_SHARE
        else:
            error, own = _error(ours, reference), _error(theirs, reference)
            allowed = MULTIPLE * own + ROUNDINGS * torch.finfo(theirs.dtype).eps
            allowed += max((_error(each[name], reference) for each in nudged), default=0.0)
        if math.isnan(error) or error / allowed > ratio:
            ratio = math.inf if math.isnan(error) else error / allowed
            worst = Agreement(ratio <= 1.0, error, own, name)
    return worst


def _error(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of the difference over that of the reference; infinite where one is finite and one is not."""
    values, reference = values.detach().to(reference.dtype), reference.detach()
    finite = reference.isfinite()
    if not torch.equal(finite, values.isfinite()):
        return math.inf
    difference, scale = (values - reference)[finite].norm(), reference[finite].norm()
    if not float(scale):
        return 0.0 if not float(difference) else math.inf
    return float(difference / scale)


def _named(output: Any) -> Named:
    leaves, _ = tree_flatten(output)
    if hasattr(output, "to_tuple"):  # a transformers' ModelOutput
        leaves, _ = tree_flatten(output.to_tuple())
    return {f"output {i}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}


def _widened(value: Any) -> Any:
    return value.to(WIDER.get(value.dtype, value.dtype)) if isinstance(value, torch.Tensor) else value
