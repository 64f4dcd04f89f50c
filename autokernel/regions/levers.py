"""What the model gains without any new kernel: torch.compile, another attention backend, a narrower dtype.

Whole steps against the model as it is, interleaved in one process. A lever that cannot be pulled here, or takes too
long to be tried, is skipped with a word. bf16 autocast changes the model's numbers: it is there as information only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from autokernel.regions.model import LoadedModel
from autokernel.regions.race import race, timed

BLOCKS = 6
LEAST_S = 0.3  # of one lever's race
BACKENDS = {
    "cpu": (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
    "cuda": (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.MATH,
    ),
}
Kind = Literal["compile", "attention", "information"]
REFUSALS = (RuntimeError, NotImplementedError, torch._dynamo.exc.TorchDynamoException)


@dataclasses.dataclass(frozen=True)
class Lever:
    """``speedup`` of one whole step over eager, with its interval; None where it was ``skipped``, and why."""

    name: str
    kind: Kind
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    skipped: str = ""


class _TooLong(BaseException):
    """Not an Exception: what compiles must not take it for a failure of the model."""


def measure(
    model: LoadedModel, attention: bool, limit_s: float, on_step: Callable[[str], None] = lambda name: None
) -> list[Lever]:
    """Tries each lever on the model's most frequent inputs, each for ``limit_s`` seconds at most, compilation included.

    ``attention`` says whether the model calls scaled_dot_product_attention, whose backends are then tried.
    """
    return [_try(model, name, kind, make, limit_s, on_step) for name, kind, make in _levers(model, attention)]


Make = Callable[[], Callable[..., Any]]


def _levers(model: LoadedModel, attention: bool) -> Sequence[tuple[str, Kind, Make]]:
    found: list[tuple[str, Kind, Make]] = [
        ("torch.compile", "compile", lambda: torch.compile(model.module, dynamic=False))
    ]
    if model.device.type == "cuda":
        found.append(
            (
                'torch.compile(mode="reduce-overhead")',
                "compile",
                lambda: torch.compile(model.module, dynamic=False, mode="reduce-overhead"),
            )
        )
    for backend in BACKENDS[model.device.type] if attention else ():
        found.append((backend.name.removesuffix("_ATTENTION").lower(), "attention", _pinned(model, backend)))
    if model.dtype == "fp32" and model.autocast is None:
        found.append(("bf16 autocast", "information", lambda: _autocast(model)))
    return found


def _pinned(model: LoadedModel, backend: SDPBackend) -> Make:
    def call(*inputs: Any) -> Any:
        with sdpa_kernel(backend):
            return model.module(*inputs)

    return lambda: call


def _autocast(model: LoadedModel) -> Callable[..., Any]:
    def call(*inputs: Any) -> Any:
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            return model.module(*inputs)

    return call


def _try(
    model: LoadedModel, name: str, kind: Kind, make: Make, limit_s: float, on_step: Callable[[str], None]
) -> Lever:
    on_step(name)
    torch._dynamo.reset()
    try:
        with _limited(limit_s):
            call = make()
            timed(lambda: model.step(call), 1, model.device)  # compiles
            calls = {"eager": model.step, "lever": lambda: model.step(call)}
            gain = race(calls, model.device, BLOCKS, random.Random(0), LEAST_S).gain("lever", "eager")
    except _TooLong:
        return Lever(name, kind, skipped=f"not done after {limit_s:g} s")
    except REFUSALS as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Lever(name, kind, skipped=f"{type(error).__name__}: {first[:120]}")
    return Lever(name, kind, math.exp(gain.mean), math.exp(gain.low), math.exp(gain.high))


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _TooLong in the main thread after so many seconds; elsewhere signals do not arrive, and nothing is
    limited.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
