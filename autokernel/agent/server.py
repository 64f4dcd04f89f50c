"""``autokernel mcp``: a run's folder as tools of the Model Context Protocol, over standard input and output.

The tools are those of the command line (bench, try, history, brief); the judge stays warm between calls. Calls run one
after another, in a thread of their own, which also is the one that starts the judge: a judge ends with the thread that
started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from autokernel.agent import look, tryout
from autokernel.agent import place as places
from autokernel.agent.place import Place
from autokernel.evaluate.bench_command import BenchJudge, open_judge
from autokernel.evaluate.client import Assignment, Judge, JudgeClient
from autokernel.guide.text import render
from autokernel.run.desk import standing
from autokernel.run.events import Silent
from autokernel.run.gitstore import told, write_file
from autokernel.types import AutokernelError, Target

Answer = TypeVar("Answer")
Outcome = Callable[[tryout.Tried], dict[str, Any]]

INSTRUCTIONS = """One kernel of this folder is to be made faster. Call brief first: it says what must be computed, how
it is judged, where it stands and what to try. Then, for one idea at a time, give the whole new file to try, with the
idea: it is kept if it is correct and faster beyond doubt, and put back otherwise. bench judges a file and keeps
nothing. history lists what was tried."""


class Tools:
    """The four tools over one folder. Each returns JSON or Markdown text; AutokernelError is a tool's error."""

    def __init__(self, folder: Path, outcome: Outcome) -> None:
        self._folder, self._outcome = folder, outcome
        self._judge: JudgeClient | BenchJudge | None = None
        self._problem = ""

    def close(self) -> None:
        if self._judge is not None:
            self._judge.close()
            self._judge = None

    def bench(self, target: str | None, source: str | None) -> str:
        """One JSON object: the verdict on a file and, where it passes, how it compares with the version that stands."""
        place, chosen = self._place(target)
        if source is None:
            with told(place.folder):
                source = (place.folder / chosen.file).read_text(encoding="utf-8", errors="replace")
        stands = standing(look.experiments(place, chosen.name))
        with self._warm(place, chosen) as judge:
            incumbent = stands.candidate.source if stands else None
            found = judge.evaluate(Assignment(chosen, source, incumbent, baselines=False))
        verdict, measured, comparison = found.verdict, found.verdict.measurements, found.comparison
        answer = {
            "status": verdict.status.value,
            "stage": verdict.stage,
            "reason": comparison.reason if comparison else verdict.reason,
            "faster": bool(comparison and comparison.keep),
            "speedup": math.exp(comparison.log_ratio) if comparison else None,
            "latency_us": measured.latency_us if measured else None,
            "pct_peak": measured.pct_peak if measured else None,
            "errors": dict(verdict.errors),
            "log_tail": verdict.log_tail,
        }
        return json.dumps(answer)

    def try_(self, hypothesis: str, target: str | None, source: str | None) -> str:
        """One JSON object, as ``autokernel try --json`` prints it."""
        place, chosen = self._place(target)
        if source is not None:
            with told(place.folder):
                write_file(place.folder / chosen.file, source.encode("utf-8", "replace"))
        tried = tryout.once(self._folder, hypothesis, Silent(), self._warm)
        return json.dumps(self._outcome(tried))

    def history(self, last: int) -> str:
        """One line of JSON an experiment, newest last."""
        place = places.read(self._folder)
        return "\n".join(json.dumps(row.to_json()) for row in place.rows()[-max(1, last) :]) or "no experiment yet"

    def brief(self, target: str | None) -> str:
        """All that is known of the kernel, in Markdown."""
        place, chosen = self._place(target)
        return render(look.brief(place, chosen.name)).text

    def _place(self, name: str | None) -> tuple[Place, Target]:
        place = places.read(self._folder)
        names = [target.name for target in place.targets]
        if name is not None and name not in names:
            raise AutokernelError(f"a target was expected ({', '.join(names)}); got '{name}'")
        if name is None and len(names) > 1:
            raise AutokernelError(f"this run has several targets: name one of {', '.join(names)}")
        return place, place.target(name or names[0])

    def _warm(self, place: Place, target: Target) -> AbstractContextManager[Judge]:
        """The judge of the call before, where it is one of the same kind."""
        kind = "command" if target.problem.endswith(".json") else "problem"
        if self._judge is None or self._problem != kind:
            self.close()
            scratch = place.folder / "scratch" / f"judge-mcp-{os.getpid()}"
            self._judge, self._problem = open_judge(target, scratch, place.judge_options), kind
        return contextlib.nullcontext(self._judge)


def serve(folder: Path, outcome: Outcome) -> None:
    """Answers until standard input ends. Raises AutokernelError where the SDK is not installed or this is no run."""
    places.read(folder)
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise AutokernelError(
            f"the package mcp >= 2 was expected and cannot be imported ({error}): pip install 'autokernel[mcp]'"
        ) from error
    server = MCPServer("autokernel", instructions=INSTRUCTIONS, log_level="WARNING")
    tools = Tools(folder, outcome)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tools")

    async def answer(work: Callable[[], Answer]) -> Answer:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        except AutokernelError as error:
            raise ToolError(str(error)) from error

    @server.tool(name="bench", structured_output=False)
    async def bench(source: str | None = None, target: str | None = None) -> str:
        """Judge the kernel: correctness, then its time against the version that stands. Nothing is kept or put back.

        source: the whole file to judge; without it, the kernel file as it lies in the folder.
        """
        return await answer(lambda: tools.bench(target, source))

    @server.tool(name="try", structured_output=False)
    async def try_(hypothesis: str, source: str | None = None, target: str | None = None) -> str:
        """Judge the edit as one experiment: commit it if it is correct and faster beyond doubt, else put the file back.

        hypothesis: what was changed and why it should help. source: the whole new file; without it, the kernel file as
        it lies in the folder.
        """
        return await answer(lambda: tools.try_(hypothesis, target, source))

    @server.tool(name="history", structured_output=False)
    async def history(last: int = 20) -> str:
        """The last experiments, one line of JSON each: idea, verdict, decision, speedup, time."""
        return await answer(lambda: tools.history(last))

    @server.tool(name="brief", structured_output=False)
    async def brief(target: str | None = None) -> str:
        """All that is known of the kernel: task, reference, workloads, source, position, experiments, what is due."""
        return await answer(lambda: tools.brief(target))

    try:
        server.run("stdio")
    finally:
        thread.submit(tools.close).result()
        thread.shutdown()
