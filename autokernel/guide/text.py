"""The text of a brief: all that a proposer is told about one target, in Markdown. The same brief gives the same bytes.

``prefix`` holds what stays for a target over a whole run, so that a provider can cache it: the rules, the tiers that
matter here, what the backend and the problem say of themselves, the oracle, the workloads, the device. ``body`` holds
what changes with each experiment: position, experiments, the tier that is due, the source, hints, and what is asked.

Budget: ``tokens`` by ``quoting.tokens_of``, an estimate. The prefix may take ``PREFIX_SHARE`` of it and leaves out, in
this order, the sections of ``PREFIX_DROPS`` until it fits; this depends on nothing that changes. The body gets the rest
and leaves out, in this order: the text of a due tier that the prefix had no room for; experiments older than the last
KEPT_ROWS; the head of the failed attempt's log; what compiler and profiler reported; all but the newest notes; the
other experiments. Never left out: oracle, signature, workloads, incumbent, a failed attempt's source, hints, the ask. A
brief may exceed its budget by these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from autokernel import assets
from autokernel.extension import Brief
from autokernel.guide import body as parts
from autokernel.guide import program
from autokernel.guide.figures import bound, calls, ceilings
from autokernel.guide.prefix import assignment, device_text, oracle_text, workloads_text
from autokernel.guide.problem import describe, guide_of
from autokernel.guide.progress import due
from autokernel.guide.quoting import tokens_of

PREFIX_SHARE = 0.6
KEPT_ROWS = 12
LOG_CHARS = (4000, 1500, 500)  # of a failed attempt's log: at best, and as the budget shrinks

# Names of the prefix's parts that may go, the least useful first; "tier-5" stands for every section of that tier.
PREFIX_DROPS = (
    "hints", "cheating", "figures", "tier-6", "stuck", "tier-5", "tier-4", "problem-guide", "backend-guide", "tier-3",
    "roofline", "tier-2", "tier-1", "verdict", "cases",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BriefText:
    """``prefix`` is byte-identical over a target's run; ``body`` changes with each experiment."""

    prefix: str
    body: str

    @property
    def text(self) -> str:
        return f"{self.prefix}\n{self.body}"


def render(brief: Brief, tokens: int = 24_000) -> BriefText:
    """The brief as text, about ``tokens`` long at the most. Imports no torch and runs no candidate.

    Raises AutokernelError where program.md has a section marker that does not read.
    """
    problem = describe(brief.target.problem)
    where = program.place(brief.target.problem, brief.target.backend, brief.hardware)
    device = ceilings(brief.hardware)
    costs = calls(brief.target.workloads, problem, device)
    chosen = program.relevant(program.sections(assets.program()), where)

    named: list[tuple[str, str]] = [("assignment", assignment(brief, problem, where))]
    named += [(s.name if s.tier is None else f"tier-{s.tier}", s.text) for s in chosen]
    named += [("backend-guide", _titled(f"The {brief.target.backend} backend", brief.target.backend, "backends"))]
    named += [("problem-guide", _titled(f"The problem {brief.target.kernel_type}", brief.target.problem, "problems"))]
    named += list(oracle_text(brief, problem))
    named += [("workloads", workloads_text(brief, problem, costs)), ("device", device_text(brief, device))]
    named = [(name, text) for name, text in named if text]
    dropped = _fit_prefix(named, round(tokens * PREFIX_SHARE))
    prefix = _joined(text for name, text in named if name not in dropped)

    what = bound(costs, where["devices"])
    tier = due(brief.history, what, {s.tier for s in chosen if s.tier} | {6})
    missing = f"tier-{tier.tier}" if tier.tier else "stuck"
    spare = "\n\n".join(text for name, text in named if name == missing and name in dropped)
    body = _fit_body(brief, parts.Context(costs, what, tier, where["devices"]), spare, tokens - tokens_of(prefix))
    return BriefText(prefix, body)


def _titled(title: str, name: str, kind: str) -> str:
    text = guide_of(kind, name)
    return f"## {title}\n\n{text}\n" if text else ""


def _joined(texts: Iterable[str]) -> str:
    return "\n".join(text.rstrip() + "\n" for text in texts if text)


def _fit_prefix(named: list[tuple[str, str]], budget: int) -> set[str]:
    """Names of the parts to leave out, so that the rest fits if leaving out can make it fit."""
    dropped: set[str] = set()
    for name in PREFIX_DROPS:
        if tokens_of(_joined(text for part, text in named if part not in dropped)) <= budget:
            break
        dropped.add(name)
    return dropped


def _fit_body(brief: Brief, context: parts.Context, spare: str, budget: int) -> str:
    """The body with as much as fits: each step gives up a little more, in the order that the module's head states."""
    full = parts.Room(spare=spare, rows=None, log_chars=LOG_CHARS[0], evidence=True, notes=None)
    steps: list[Callable[[parts.Room], parts.Room]] = [_with(spare="")]
    count = len(parts.shown(brief.history))
    steps += [_with(rows=rows) for rows in range(count - 1, KEPT_ROWS - 1, -1)]
    steps += [_with(log_chars=chars) for chars in LOG_CHARS[1:]]
    steps += [_with(evidence=False), _with(notes=1)]
    steps += [_with(rows=rows) for rows in range(min(count, KEPT_ROWS) - 1, -1, -1)]
    room = full
    body = parts.compose(brief, context, room)
    for step in steps:
        if tokens_of(body) <= budget:
            break
        room = step(room)
        body = parts.compose(brief, context, room)
    return body


def _with(**changes: object) -> Callable[[parts.Room], parts.Room]:
    def apply(room: parts.Room) -> parts.Room:
        return dataclasses.replace(room, **changes)  # type: ignore[arg-type]

    return apply
