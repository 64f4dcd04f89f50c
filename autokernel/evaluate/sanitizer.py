"""compute-sanitizer's memcheck, racecheck and initcheck over small calls of a kernel that passed the judge. No torch.

PyTorch's caching allocator is off meanwhile: in its large blocks, what is out of bounds of a tensor is mostly in bounds
of memory. A report names the kernel that it is about. memcheck's all count: also a kernel of a library faults for the
pointers that it was given. Of the two others, those about kernels of a library are told and do not count: no argument
makes such a kernel race within itself, and it may well read what it then throws away. They are not left out of the
tool's sight instead (--kernel-name), because initcheck would take for uninitialised all that they wrote.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from autokernel.evaluate import toolrun
from autokernel.evaluate.client import Assignment, Evaluation, Judge, OnEvent
from autokernel.types import AutokernelError, Status, Target, Verdict

Tool = Literal["memcheck", "racecheck", "initcheck"]
# What an error of a tool means for whoever runs the kernel: it may crash, or give another result another time.
TOOLS: Mapping[Tool, Status] = {
    "memcheck": Status.CRASH, "racecheck": Status.DETERMINISM, "initcheck": Status.DETERMINISM,
}  # fmt: skip
OPTIONS: Mapping[Tool, Sequence[str]] = {
    # An API call that fails and is handled is no error of a kernel. Padding keeps the end of one block from being the
    # beginning of another.
    "memcheck": ("--report-api-errors", "no", "--padding", "4096"),
    "racecheck": (),
    "initcheck": (),
}
BUILD_S, LIMIT_S = 300.0, 600.0
FOUND = 86  # exit status when the calls went well and the tool found errors
PRINTED = 1000  # reports; more are counted and not named
LIBRARIES = re.compile(r"(?:at::|c10::|cub::|thrust::|cublas|cudnn|cutlass|nvjet|ampere_|sm\d+_xmma)")
HEAD = re.compile(r"^========= (?P<what>(?:Invalid|Uninitialized|Misaligned|Illegal|Error: Race|Warning: Race) .*)$")
SUMMARY = re.compile(r"^========= (?:ERROR|RACECHECK|INITCHECK) SUMMARY: (\d+) (?:errors?|hazards? displayed.*)$", re.M)
KERNEL = re.compile(r"\bat (?:0x[0-9a-f]+ in )?(?P<name>[^+\n]+?)(?:\+0x[0-9a-f]+|\s+in\s|\s*$)")
REPORT_LINES = 6


@dataclasses.dataclass(frozen=True)
class Report:
    """One error or warning: its first line, the kernel that it is about ("" unknown), and its first few lines."""

    what: str
    kernel: str
    text: str

    @property
    def warning(self) -> bool:
        return self.what.startswith("Warning:")

    @property
    def of_library(self) -> bool:
        return LIBRARIES.match(self.kernel) is not None


@dataclasses.dataclass(frozen=True)
class Result:
    """What one tool found. ``errors`` is None where it could not watch, and ``told`` says why; else ``told`` is one
    line, such as "3 errors, first: ...", and ``text`` the first report in full.
    """

    tool: Tool
    errors: int | None
    told: str
    text: str = ""


def required(device: str) -> str:
    """The path of compute-sanitizer. AutokernelError where there is none, or no GPU to watch."""
    return toolrun.needed("compute-sanitizer", "--sanitize", device)


def check(
    exercise: toolrun.Exercise,
    tools: Sequence[Tool] = tuple(TOOLS),
    on_tool: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """The calls under each tool, in order. ``on_tool`` is told how many are done. AutokernelError where there is no
    compute-sanitizer, or the calls fail even without it.
    """
    command = required(exercise.device)
    results: list[Result] = []
    with toolrun.folder(exercise) as folder:
        on_tool(0)
        plain = folder.run([], BUILD_S)  # also builds: what compilers do is not to be watched
        if not plain.calls:
            raise AutokernelError(f"the kernel passed the judge, and fails on its own: {plain.last_line[:300]}")
        for tool in tools:
            on_tool(len(results))
            ended = folder.run(words(command, tool, str(folder.log)), LIMIT_S, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
            results.append(read(tool, ended))
    return results


def words(command: str, tool: Tool, log: str) -> list[str]:
    """The command line, up to the program."""
    common = ["--tool", tool, "--log-file", log, "--error-exitcode", str(FOUND), "--print-limit", str(PRINTED)]
    common += ["--target-processes", "application-only", "--launch-timeout", "120", "--show-backtrace", "no"]
    return [command, *common, *OPTIONS[tool]]


def read(tool: Tool, ended: toolrun.Ended) -> Result:
    """What a tool found, from what it wrote and how the calls ended. Silence is no proof: without the tool's own
    summary, or where the calls did not come to their end, it watched nothing.
    """
    found = reports(ended.log)
    errors = [each for each in found if not each.warning]
    own = [each for each in errors if tool == "memcheck" or not each.of_library]
    summary = SUMMARY.search(ended.log)
    aside = _aside(found, len(errors) - len(own))
    if own:
        counted = max(len(own), int(summary[1])) if summary and len(own) == len(found) else len(own)
        where = f" in {own[0].kernel}" if own[0].kernel else ""
        first = own[0].what.removeprefix("Error: ")
        told = f"{counted} error{'s' * (counted > 1)}, first: {first}{where}{aside}"
        return Result(tool, counted, told, own[0].text)
    if ended.status is None:
        return Result(tool, None, f"it had not ended after {LIMIT_S:.0f} s")
    if not ended.calls or ended.status not in (0, FOUND):
        return Result(tool, None, f"the calls did not end well under it: {_failure(ended)}")
    if summary is None:
        return Result(tool, None, f"it gave no summary: {_failure(ended)}")
    if int(summary[1]) > len(found):
        return Result(tool, None, f"it counted {summary[1]} errors, of which {len(found)} could be read")
    return Result(tool, 0, f"0 errors in {ended.calls} calls{aside}")


def reports(text: str) -> list[Report]:
    """The errors and warnings that a tool wrote: each a line beginning with =========, and the indented ones below."""
    found: list[Report] = []
    lines = text.splitlines()
    for at, line in enumerate(lines):
        head = HEAD.match(line)
        if head is None:
            continue
        block = [line]
        for following in lines[at + 1 : at + REPORT_LINES]:
            if not following.startswith("=========     "):
                break
            block.append(following)
        stripped = [each.removeprefix("=========").strip() for each in block]
        named = next((match for each in stripped if (match := KERNEL.search(each))), None)
        kernel = named["name"] if named else ""
        what = re.split(r"\s+at\s+", head["what"], maxsplit=1)[0]
        found.append(Report(what, toolrun.bare(kernel), "\n".join(stripped)))
    return found


def judged(verdict: Verdict, results: Sequence[Result]) -> Verdict:
    """The verdict with what the tools found in its environment; a failure where one found an error. AutokernelError
    where one could not watch: what was asked for was not checked.
    """
    environment = {**verdict.environment, "sanitizer": {each.tool: each.told for each in results}}
    for each in results:
        if each.errors:
            reason = f"{each.tool}: {each.told}"
            return dataclasses.replace(
                verdict, status=TOOLS[each.tool], stage="sanitize", reason=reason, measurements=None,
                log_tail=each.text, environment=environment,
            )  # fmt: skip
    for each in results:
        if each.errors is None:
            raise AutokernelError(f"compute-sanitizer's {each.tool} could not watch the kernel: {each.told}")
    return dataclasses.replace(verdict, environment=environment)


def sanitized(evaluation: Evaluation, assignment: Assignment, device: str, on_event: OnEvent) -> Evaluation:
    """A passing evaluation of the assignment after the tools had their say; "sanitize" is the stage of its events."""
    started = time.perf_counter()
    target = assignment.target
    exercise = toolrun.Exercise(assignment.source, target.problem, target.backend, device)

    def on_tool(done: int) -> None:
        on_event({"event": "stage", "stage": "sanitize", "done": done, "of": len(TOOLS)})

    verdict = judged(evaluation.verdict, check(exercise, on_tool=on_tool))
    took = time.perf_counter() - started
    verdict = dataclasses.replace(verdict, seconds={**verdict.seconds, "sanitize": round(took, 4)})
    comparison = evaluation.comparison if verdict.status is Status.PASS else None
    return Evaluation(verdict, comparison, evaluation.seconds + took)


class Sanitizing:
    """A judge that also asks compute-sanitizer before a candidate is kept. AutokernelError where it cannot be asked."""

    def __init__(self, judge: Judge, targets: Sequence[Target], device: str) -> None:
        required(device)
        for target in targets:
            toolrun.suits(target.problem)
        self._judge = judge
        self._device = device

    def evaluate(self, assignment: Assignment, on_event: OnEvent = lambda _: None) -> Evaluation:
        """As the judge's, and where that would keep the candidate, after the tools had their say."""
        evaluation = self._judge.evaluate(assignment, on_event)
        if evaluation.comparison is None or not evaluation.comparison.keep:
            return evaluation
        return sanitized(evaluation, assignment, self._device, on_event)


def _aside(found: Sequence[Report], of_libraries: int) -> str:
    warnings = sum(each.warning for each in found)
    told: list[str] = []
    if warnings:
        told.append(f"{warnings} warning{'s' * (warnings > 1)}")
    if of_libraries:
        told.append(f"{of_libraries} in kernels of libraries, which do not count")
    return f" ({', '.join(told)})" if told else ""


def _failure(ended: toolrun.Ended) -> str:
    """The tool's own word, else the process's last."""
    said: list[Any] = re.findall(r"^========= (?:Error|Internal Sanitizer Error|Fatal)[: ]+(.*)$", ended.log, re.M)
    return str(said[0] if said else ended.last_line)[:300]
