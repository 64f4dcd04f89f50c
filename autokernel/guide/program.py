"""program.md as the prompt builder sees it: sections, each with what it holds for.

A section begins at a line like ``<!-- section: tier-4-split-k tier=4 backends=triton,cuda -->`` and ends before the
next one. What comes before the first is for whoever reads the file, and is in no brief. Attributes name the values
for which a section matters: ``backends``, ``problems``, ``devices`` (cpu, cuda) and ``archs`` (ampere, ada, hopper,
blackwell, cdna); one that is absent sets no condition. The file belongs to the owner: an edit there is the way to
steer every night, as HINTS.md steers one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from autokernel.types import AutokernelError

CONDITIONS = ("backends", "problems", "devices", "archs")
_MARKER = re.compile(r"^<!-- section: (?P<name>[a-z0-9-]+)(?P<rest>[^>]*) -->\s*$")
_ARCHS = (  # a fragment of the device's name, in lower case, and what it tells
    ("h100", "hopper"), ("h200", "hopper"), ("gh200", "hopper"), ("h800", "hopper"), ("h20", "hopper"),
    ("b100", "blackwell"), ("b200", "blackwell"), ("b300", "blackwell"), ("rtx 50", "blackwell"),
    ("a100", "ampere"), ("a10", "ampere"), ("a30", "ampere"), ("a40", "ampere"), ("rtx 30", "ampere"),
    ("a6000", "ampere"), ("l40", "ada"), ("l4", "ada"), ("rtx 40", "ada"), ("instinct", "cdna"), (" mi", "cdna"),
)  # fmt: skip
_COMPUTE_CAPABILITY = {80: "ampere", 86: "ampere", 87: "ampere", 89: "ada", 90: "hopper"}


@dataclasses.dataclass(frozen=True)
class Section:
    """``text`` is the section's Markdown without its marker; ``only`` maps a condition to the values it holds for."""

    name: str
    text: str
    tier: int | None
    only: Mapping[str, frozenset[str]]

    def matters(self, where: Mapping[str, str]) -> bool:
        """Whether every condition of the section holds. ``where`` maps a condition to the value at hand."""
        return all(where.get(condition, "") in values for condition, values in self.only.items())


def sections(text: str, name: str = "program.md") -> tuple[Section, ...]:
    """The sections of a program, in its order. AutokernelError names the line of a marker that does not read."""
    found: list[Section] = []
    head: tuple[str, int | None, Mapping[str, frozenset[str]]] | None = None
    lines: list[str] = []

    def close() -> None:
        if head is not None:
            found.append(Section(head[0], "\n".join(lines).strip() + "\n", head[1], head[2]))

    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("<!-- section:"):
            lines.append(line)
            continue
        close()
        head, lines = _marker(line, f"{name} line {number}"), []
        if any(section.name == head[0] for section in found):
            raise AutokernelError(f"{name} line {number}: a section named '{head[0]}' is there already; choose another")
    close()
    return tuple(found)


def _marker(line: str, where: str) -> tuple[str, int | None, Mapping[str, frozenset[str]]]:
    match = _MARKER.match(line)
    if match is None:
        raise AutokernelError(
            f"{where}: expected '<!-- section: some-name tier=2 backends=triton,cuda -->', got '{line.strip()}'"
        )
    tier, only = None, {}
    for word in match["rest"].split():
        key, _, value = word.partition("=")
        if key == "tier" and value.isdigit():
            tier = int(value)
        elif key in CONDITIONS and value:
            only[key] = frozenset(value.split(","))
        else:
            known = ", ".join(("tier", *CONDITIONS))
            raise AutokernelError(f"{where}: expected attributes like backends=cpp (of: {known}), got '{word}'")
    return match["name"], tier, only


def place(problem: str, backend: str, hardware: Mapping[str, Any]) -> dict[str, str]:
    """The values that conditions are held against: of a target and its device, as ``Brief.hardware`` describes it."""
    device = str(hardware.get("device") or ("cuda" if backend in ("triton", "cuda") else "cpu"))
    kind = "cuda" if device.startswith("cuda") else device.partition(":")[0]
    arch = architecture(str(hardware.get("name", "")), str(hardware.get("arch", ""))) if kind == "cuda" else ""
    return {"problems": problem, "backends": backend, "devices": kind, "archs": arch}


def architecture(name: str, arch: str = "") -> str:
    """The family of a GPU, from its compute capability ("sm90") where known, else from its name; "" for a stranger."""
    digits = re.search(r"\d+", arch)
    if digits:
        capability = int(digits.group())
        return _COMPUTE_CAPABILITY.get(capability, "blackwell" if capability >= 100 else "")
    lowered = name.lower()
    return next((family for fragment, family in _ARCHS if fragment in lowered), "")


def relevant(every: Sequence[Section], where: Mapping[str, str]) -> tuple[Section, ...]:
    """The sections that matter here, in order."""
    return tuple(section for section in every if section.matters(where))
