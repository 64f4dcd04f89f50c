"""The untrusted side: a process that loads one candidate, runs it on inputs it is given, and hands back bytes.

Nothing here decides anything. Whatever this process says is checked by the judge, because the candidate shares it.
``serve`` is the conversation; how such a process comes to be is nursery.py's business.
"""

from __future__ import annotations

import gc
import os
import secrets
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autokernel import registry, runfile
from autokernel.evaluate import sandbox
from autokernel.evaluate.device_memory import allocations_of
from autokernel.evaluate.memory import map_readable, map_writable, tensors_of
from autokernel.evaluate.protocol import Channel

TRACEBACK_CHARS = 4000
MOVE_BYTES = 1 << 20


class Refused(Exception):
    """The candidate did something that is answered with a message, not with a crash."""


class OpAudit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the aten operations that a call dispatches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func.name()).split(".")[0].removeprefix("aten::"))
        return func(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under it; PyTorch would import all of Dynamo, a second's worth, to leave it out."""
        return False


class Runner:
    """State of one runner: at most one loaded function, and the sets of inputs it was shown."""

    def __init__(self, device: str, scratch: Path) -> None:
        self.device = torch.device(device)
        self.scratch = scratch
        self.function: Callable[..., Any] | None = None
        self.sets: dict[int, tuple[torch.Tensor, ...]] = {}
        self.scalars: dict[int, dict[str, Any]] = {}
        self.input_bytes = torch.empty(0)
        self.output_bytes: torch.Tensor | None = None
        self.outs: list[Any] = []
        self.recorded: dict[int, tuple[torch.cuda.CUDAGraph, list[Any]]] = {}
        self.poisoned = 0
        self.pinned = False
        self.padding = torch.empty(0)

    def wake(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Open the device, and let its first use be over. To do so again costs nothing."""
        torch.zeros(1, dtype=torch.uint8, device=self.device)
        self.synchronize()
        return {}

    def load(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Import the candidate's file (this builds it), or take one of a problem's baselines."""
        if self.function is not None:
            raise Refused("this runner has loaded a candidate before")
        torch.set_num_threads(message["threads"])
        if "baseline" in message:
            problem = registry.load("problems", message["problem"])
            name = message["baseline"]
            self.function = problem.baselines["eager" if name == "compile" else name]
            if name == "compile":
                self.function = torch.compile(self.function, dynamic=False)
            return {}
        path = self.scratch / "kernel.py"
        path.write_text(message["source"], encoding="utf-8")
        function = getattr(runfile.run(path, "kernel"), "kernel_fn", None)
        if not callable(function):
            raise Refused("the file defines no function kernel_fn")
        self.function = function
        return {}

    def inputs(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Take note of sets of inputs, all of one layout, that lie one after the other in memory behind a descriptor:
        map it, or without one take what was mapped last.
        """
        for fd in fds:
            self.input_bytes = map_readable(fd, message["nbytes"], self.device, sealed=message["sealed"])
            os.close(fd)  # the mapping holds the memory
        raw = self.input_bytes
        for position, key in enumerate(message["ids"]):
            self.sets[key] = tensors_of(raw, message["layout"], position * message["set_bytes"])
            self.scalars[key] = message["scalars"]
        return {}

    def ready(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Awake, and nothing left to do on the device."""
        self.synchronize()
        return {}

    def forget(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        for key in message["ids"]:
            del self.sets[key], self.scalars[key]
        self.outs, self.recorded = [], {}
        return {}

    def output(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Map the memory in which results are handed back."""
        (fd,) = fds
        self.output_bytes = map_writable(fd, message["nbytes"], self.device)
        os.close(fd)
        return {}

    def poison(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        if self.device.type == "cpu":
            sandbox.perturb_malloc(message["byte"])
        self.poisoned = message["byte"]
        return {}

    def poison_device(self) -> None:
        """Fill the memory that the allocator will hand out next: what is left uninitialised shows as wrong numbers."""
        if self.device.type != "cpu" and self.poisoned and self.output_bytes is not None:
            held = [torch.full_like(self.output_bytes, self.poisoned) for _ in range(2)]
            del held

    def call(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Run once on one set and hand back the result; with "audit", also which aten operations ran."""
        assert self.function is not None
        self.outs = []
        self.poison_device()
        tensors, scalars = self.sets[message["id"]], self.scalars[message["id"]]
        answer: dict[str, Any] = {}
        if message.get("audit"):
            with OpAudit() as audit:
                self.outs = [self.function(*tensors, **scalars)]
            answer["ops"] = sorted(audit.names)
        else:
            self.outs = [self.function(*tensors, **scalars)]
        self.synchronize()
        return {**answer, **self.fetch(message, fds)}

    def time(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Run once on each set of message["order"], as fast as it goes; say where each output lies. All outputs stay
        until the next turn: which of them are checked is drawn when this process stands still again.
        """
        assert self.function is not None
        function = self.function
        self.pin()
        if message.get("move"):
            self.outs = []
            self.move()
        calls = [(self.sets[key], self.scalars[key]) for key in message["order"]]
        outs: list[Any] = []
        keep = outs.append
        start = time.perf_counter_ns()
        for tensors, scalars in calls:
            keep(function(*tensors, **scalars))
        self.synchronize()
        claim = time.perf_counter_ns() - start
        self.outs = outs
        if not outs:
            return {"claim_ns": claim}
        return {"claim_ns": claim, "at": [out.data_ptr() for out in outs], **described(outs[-1])}

    def record(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Record one call on each set of message["order"] as a CUDA graph, under message["key"]; say where the outputs
        will lie. "recorded" False, with the reason in "message", for what cannot be recorded.
        """
        assert self.function is not None
        function, key = self.function, message["key"]
        self.recorded.pop(key, None)
        self.outs = []
        calls = [(self.sets[each], self.scalars[each]) for each in message["order"]]
        for _ in range(2):  # builds what is built at the first call of a shape
            function(*calls[0][0], **calls[0][1])
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        outs: list[Any] = []
        start = time.perf_counter_ns()
        try:
            with torch.cuda.graph(graph):
                for tensors, scalars in calls:
                    outs.append(function(*tensors, **scalars))
            launch = (time.perf_counter_ns() - start) // len(calls)
            graph.replay()
            self.synchronize()
        except Exception as error:  # whatever a candidate does that cannot be recorded: it is timed by its calls
            return {"recorded": False, "message": describe(error)}
        said = described(outs[-1])
        at = [out.data_ptr() for out in outs]
        self.recorded[key] = (graph, outs)
        return {"recorded": True, "launch_ns": launch, "at": at, "allocations": allocations_of(at), **said}

    def replay(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Run what was recorded under message["key"], once."""
        graph, self.outs = self.recorded[message["key"]]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        self.synchronize()
        return {"claim_ns": int(start.elapsed_time(end) * 1e6)}

    def fetch(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """Write the last result's bytes to the output memory and describe it."""
        out = self.outs[message.get("which", 0)]
        said = described(out)
        if self.output_bytes is None or out.numel() * out.element_size() > self.output_bytes.numel():
            raise Refused(f"the output is larger than expected: shape {list(out.shape)}, {out.dtype}")
        dense = torch.empty(out.shape, dtype=out.dtype, device=self.output_bytes.device).copy_(out)
        raw = dense.reshape(-1).view(torch.uint8)  # contiguous() would have kept odd strides of a single element
        self.output_bytes[: raw.numel()].copy_(raw)
        self.synchronize()
        return said

    def move(self) -> None:
        """Let what is allocated from now on lie somewhere else.

        Where outputs lie relative to inputs is worth up to 9 % on a CPU, and depends on all that was allocated before,
        the length of the source included. Drawn anew for every turn, it is noise that averages out, not a bias.
        """
        del self.padding
        self.padding = torch.empty(secrets.randbelow(MOVE_BYTES), dtype=torch.uint8)

    def pin(self) -> None:
        """Keep this thread on its first processor: OpenMP has bound the others, and two on one cost milliseconds."""
        if self.device.type == "cpu" and not self.pinned:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            self.pinned = True

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.cuda.synchronize(self.device)


def serve(channel: Channel, device: str, scratch: Path) -> None:
    """Answer the judge until it hangs up. A candidate's exception is an answer; its crash is a closed channel."""
    runner = Runner(device, scratch)
    torch.set_grad_enabled(False)
    gc.collect()
    gc.freeze()
    gc.disable()  # no collection falls into a timed call; a runner does not live long enough to need one
    spin_s = 0.0
    while True:
        message, fds = channel.receive(spin_s=spin_s)
        spin_s = message.get("spin_s", 0.0)
        handler = getattr(runner, message["op"])
        try:
            answer = {"ok": True, **handler(message, fds)}
        except Refused as refusal:
            answer = {"ok": False, "message": str(refusal), "traceback": ""}
        except Exception as error:  # the boundary: whatever a candidate raises becomes a message
            answer = {"ok": False, "message": describe(error), "traceback": traceback.format_exc()[-TRACEBACK_CHARS:]}
        channel.send(answer)


def described(out: Any) -> dict[str, Any]:
    """What an output is. Raises Refused for what is no plain tensor."""
    if type(out) is not torch.Tensor:
        raise Refused(f"kernel_fn was expected to return a torch.Tensor; it returned {type(out).__name__}")
    return {
        "shape": list(out.shape),
        "stride": list(out.stride()),
        "dtype": str(out.dtype).removeprefix("torch."),
        "device": out.device.type,
    }


def describe(error: BaseException) -> str:
    """One line of an exception: its type and the first line of its text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    return f"{type(error).__name__}: {told}"[:500]
