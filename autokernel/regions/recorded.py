"""Files for those who look closer: what the compiler says of a model, and where its GPU memory goes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from autokernel.regions.model import LoadedModel
from autokernel.types import AutokernelError

ARTIFACTS = {"graph_breaks": "graph break", "recompiles": "recompilation"}  # of torch's logging, in a person's words
MOST_EVENTS = 100_000  # allocations that a memory snapshot holds


def compile_log(model: LoadedModel, path: Path) -> None:
    """Writes every graph break and recompilation of torch.compile over all input sets, with reasons and user frames.

    Each set runs twice, as it would in service: what compiles anew in the second round does so each time.
    Raises AutokernelError where the file cannot be written.
    """
    said: list[tuple[str, str]] = []
    torch._dynamo.reset()
    failure = ""
    with _listening(said):
        compiled = torch.compile(model.module, backend="eager")
        try:
            with model.conditions():
                for each in (*model.sets, *model.sets):
                    compiled(*each.inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            failure = f"torch.compile cannot trace this model:\n{error}\n\n"
    torch._dynamo.reset()
    counts = ", ".join(f"{sum(kind == each for each, _ in said)} {name}(s)" for kind, name in ARTIFACTS.items())
    text = f"{model.name} under torch.compile, {len(model.sets)} input set(s), twice each: {counts}\n\n{failure}"
    text += "".join(f"--- {ARTIFACTS[kind]} {i}\n{message}\n\n" for i, (kind, message) in enumerate(said, start=1))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise AutokernelError(f"the compile log was expected to be writable at {path}: {error.strerror}") from error


@contextlib.contextmanager
def _listening(said: list[tuple[str, str]]) -> Iterator[None]:
    """Collects what torch's own loggers for these artifacts say; they do not hand it on to their parents."""

    class Keep(logging.Handler):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def emit(self, record: logging.LogRecord) -> None:
            said.append((self.kind, record.getMessage()))

    torch._logging.set_logs(graph_breaks=True, recompiles=True)  # type: ignore[attr-defined]
    kept = [
        (logging.getLogger(name), Keep(kind))
        for name in list(logging.root.manager.loggerDict)
        for kind in ARTIFACTS
        if name.endswith(f"__{kind}")
    ]
    for logger, handler in kept:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, handler in kept:
            logger.removeHandler(handler)
        torch._logging.set_logs()  # type: ignore[attr-defined]


def check_memory(device: str) -> None:
    """Raises AutokernelError where PyTorch keeps no history of memory."""
    if not device.startswith("cuda"):
        raise AutokernelError(f"--memory was expected with --device cuda: PyTorch keeps no memory history on {device}")


def memory(model: LoadedModel, path: Path) -> None:
    """Writes a snapshot of the CUDA memory of one step, with the stack of each allocation: a file for
    pytorch.org/memory_viz. Raises AutokernelError where it cannot be written.
    """
    torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)
    try:
        model.step()
        torch.cuda.synchronize(model.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise AutokernelError(f"the memory snapshot was expected to be writable at {path}: {error.strerror}") from error
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
