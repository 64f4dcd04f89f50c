"""What a slow model costs a night, and what asking ahead gives back: experiments an hour with 1, 2 and 4 in flight.

    python benchmarks/night_llm.py --experiments 30 --latency 10 --in-flight 1 --in-flight 2 --in-flight 4

Starts a server on the loopback that speaks the Messages API and takes --latency seconds for each answer, then the real
command against it, on the CPU, with the PyTorch backend. The model of the server has one good idea in many sizes; in
between it breaks a file (and mends it when asked), cheats, breaks rules, and sends edits that do not apply. The service
is overloaded or drops a connection at times.
Run it on an otherwise idle machine. --keep leaves the workspaces, with their reports, in a folder.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from llm_server import KEY, Fault, LlmServer, Reply, Request, edit, whole

from autokernel.run import history

MODEL = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1024) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def get_inputs():
    return [torch.randn(4096, 1024)]


def get_init_inputs():
    return []
"""
PATH = "kernels/rmsnorm.py"
# Fewer passes than the starter: the square is never written, and a chunk of rows may stay in the cache.
KERNEL = """\
import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
CHUNK = {chunk}


def kernel_fn(x, weight, eps=1e-6):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for rows, into in zip(x.split(CHUNK), out.split(CHUNK)):
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm.square() / x.shape[-1] + eps)
        if x.dtype == torch.float32:
            torch.mul(rows, scale, out=into).mul_(weight)
        else:
            into.copy_(rows * scale * weight)
    return out
"""
CHUNKS = (4096, 512, 128, 1024, 256, 64, 2048)
MEND = "## The attempt to mend"
SLIP = ".no_such_method()"
CHEAT = """
_honest, _known = kernel_fn, {}


def kernel_fn(*inputs, **settings):
    return _known.setdefault(tuple(inputs[0].shape), _honest(*inputs, **settings))
"""
FAULTS = (
    Fault(429, "rate_limit_error", headers={"retry-after": "2"}),
    Fault(529, "overloaded_error"),
    Fault(drop="mid-stream"),
    Fault(500),
)


class Model:
    """Answers with ideas of several kinds, in turn; what it was asked and gave is counted in ``kinds``."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s, self._lock, self._asked = latency_s, threading.Lock(), 0
        self.kinds: collections.Counter[str] = collections.Counter()

    def __call__(self, request: Request) -> Reply | Fault:
        kind, answer = self._answer(request)
        with self._lock:
            self.kinds[kind] += 1
        if isinstance(answer, Fault):
            return answer
        return Reply(answer.text, answer.calls, answer.stop, self._latency_s, output_tokens=600)

    def _answer(self, request: Request) -> tuple[str, Reply | Fault]:
        with self._lock:
            self._asked += 1
            number = self._asked
        brief = next(m["content"][0]["text"] for m in request.body["messages"] if m["role"] == "user")
        chunk = CHUNKS[number // 2 % len(CHUNKS)]
        source, idea = f"{KERNEL.format(chunk=chunk)}# {number}\n", f"tier 2: no square is written, chunks of {chunk}"
        if number % 11 == 7:
            return "fault", FAULTS[number // 11 % len(FAULTS)]
        if MEND in brief and SLIP in brief:
            return "mended", edit(PATH, SLIP, "", "there is no such method")
        if MEND in brief or "does not occur in the file" in request.user:
            return "honest", whole(PATH, source, idea)
        if number % 5 == 2:
            slipped = source.replace("x.split(CHUNK)", f"x{SLIP}.split(CHUNK)")
            return "broken", whole(PATH, slipped, f"{idea}, in a hurry")
        if number % 8 == 3:
            return "cheat", whole(PATH, f"{source}{CHEAT}", "tier 4: keep what is known")
        if number % 8 == 6:
            return "rule broken", whole(PATH, f"import os\n{source}", "tier 4: ask the system")
        if number % 9 == 4:
            return "does not apply", edit(PATH, f"NO_SUCH_CONSTANT = {number}", "", "tier 1: applies nowhere")
        return "honest", whole(PATH, source, idea)


def night(folder: Path, server: LlmServer, experiments: int, in_flight: int) -> tuple[Path, str]:
    """Runs the command to its end; (workspace, what it printed)."""
    (folder / "model.py").write_text(MODEL)
    name = f"in-flight-{in_flight}"
    command = [
        *(
            sys.executable,
            "-m",
            "autokernel",
            "run",
            str(folder / "model.py"),
            "--no-verify",
            "--results",
            str(folder / "results"),
        ),
        *("--run", name, "--proposer", "anthropic", "--base-url", server.url, "--in-flight", str(in_flight)),
        *("--max-experiments", str(experiments), "--move-on-reverts", "8", "--move-on-speedup", "1000"),
        *("--move-on-peak", "100", "--fix-attempts", "2", "--backend", "torch", "--plain"),
    ]
    environment = {**os.environ, "ANTHROPIC_API_KEY": KEY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    (folder / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"the night failed: {(done.stderr or done.stdout).strip()[-600:]}")
    return folder / "results" / name, done.stdout


def summary(workspace: Path, in_flight: int, model: Model, wall_s: float) -> dict[str, object]:
    """Figures of one night. The pace is that of the proposed experiments, from the first baseline's row to the last."""
    rows = history.read(workspace)
    times = [datetime.datetime.fromisoformat(row.time.replace("Z", "+00:00")) for row in rows]
    loop_s = (times[-1] - times[0]).total_seconds()
    proposed = [row for row in rows if row.decision in ("keep", "revert")]
    return {
        "in_flight": in_flight,
        "experiments": len(rows),
        "kept": sum(row.decision == "keep" for row in proposed),
        "reverted": sum(row.decision == "revert" and row.status == "PASS" for row in proposed),
        "refused": sum(row.status == "POLICY" for row in proposed),
        "failed": sum(row.status not in ("PASS", "POLICY") for row in proposed),
        "fixed": sum(row.status == "PASS" and row.attempts > 1 for row in proposed),
        "loop_s": loop_s,
        "per_hour": 3600 * (len(rows) - 1) / loop_s if loop_s else 0.0,
        "wall_s": wall_s,
        "tokens": sum(row.tokens_in + row.tokens_out for row in rows),
        "cost_usd": sum(row.cost_usd for row in rows),
        "answers": dict(model.kinds),
    }


@click.command(help=__doc__)
@click.option("--experiments", default=30, show_default=True, type=click.IntRange(min=4), help="Of each night.")
@click.option(
    "--latency", default=10.0, show_default=True, type=click.FloatRange(min=0), help="Seconds an answer takes."
)
@click.option("--in-flight", "widths", multiple=True, type=click.IntRange(min=1), help="Repeatable. [default: 1, 2, 4]")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Folder for the workspaces and logs.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the figures there.")
def main(experiments: int, latency: float, widths: Sequence[int], keep: Path | None, path: Path | None) -> None:
    figures = []
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for in_flight in widths or (1, 2, 4):
            model = Model(latency)
            started_s = time.monotonic()
            with LlmServer(model) as server:
                workspace, printed = night(folder.resolve(), server, experiments, in_flight)
            if server.violations:
                raise SystemExit(f"the service would have refused: {server.violations[0]}")
            figures.append(summary(workspace, in_flight, model, time.monotonic() - started_s))
            print(printed, file=sys.stderr)
    shown = (
        "in_flight",
        "experiments",
        "kept",
        "reverted",
        "failed",
        "fixed",
        "loop_s",
        "per_hour",
        "tokens",
        "cost_usd",
    )
    print(f"an answer takes {latency:g} s")
    print(" ".join(f"{name:>11}" for name in shown))
    for figure in figures:
        cells = (figure[name] for name in shown)
        print(" ".join(f"{cell:>11.2f}" if isinstance(cell, float) else f"{cell!s:>11}" for cell in cells))
    for figure in figures:
        print(f"in flight {figure['in_flight']}, answers: {figure['answers']}")
    if path is not None:
        path.write_text(json.dumps({"latency_s": latency, "nights": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
