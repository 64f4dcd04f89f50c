"""What an owner's bench command says: the JSON file that names it, and the ``metric:`` line that it prints."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autokernel.types import AutokernelError, Status

METRIC = re.compile(r"^metric:[ \t]*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)[ \t]*(\S*)[ \t]*\r?$", re.MULTILINE)
IN_US = {"": 1.0, "ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6}
SPEC: Mapping[str, Any] = {"command": str, "higher_is_better": bool, "time_limit_s": (int, float)}


@dataclasses.dataclass(frozen=True)
class BenchCommand:
    """What the JSON file says. ``time_limit_s`` is that of one run."""

    command: str
    higher_is_better: bool = False
    time_limit_s: float = 120.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read(path: Path) -> BenchCommand:
    """Raises AutokernelError where the file is no bench command."""
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or any(not isinstance(data[n], SPEC[n]) for n in data) or "command" not in data:
            raise ValueError("not these fields")
    except (OSError, ValueError, KeyError) as error:
        raise AutokernelError(
            f'{path} was expected to be a bench command like {{"command": "python context/bench.py"}}: {error}'
        ) from error
    return BenchCommand(**data)


class RunFailed(Exception):
    """A run that gave no metric: the status and the reason of a verdict."""

    def __init__(self, status: Status, reason: str, log_tail: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.log_tail = status, reason, log_tail


def metric_us(text: str, bench: BenchCommand, log_tail: str) -> float:
    """The one metric of a run's output, in microseconds (or, of a rate, as 10⁶ over the number). Raises RunFailed."""
    found = METRIC.findall(text)
    if len(found) != 1:
        what = f"{len(found)} such lines" if found else "none"
        line = "metric: NUMBER [ns, us, ms or s]" if not bench.higher_is_better else "metric: NUMBER [UNIT]"
        reason = f"the bench command was expected to print one line '{line}' on its standard output; it printed {what}"
        raise RunFailed(Status.SMOKE, reason, log_tail)
    number, unit = float(found[0][0]), found[0][1]
    if not (math.isfinite(number) and number > 0):
        raise RunFailed(
            Status.IMPLAUSIBLE, f"a metric above zero was expected; the command printed {number:g}", log_tail
        )
    if bench.higher_is_better:
        return 1e6 / number
    if unit not in IN_US:
        reason = (
            f"the metric was expected to be a time in ns, us, ms or s; its unit is '{unit}': for a rate, where more is "
            "better, take --higher-is-better"
        )
        raise RunFailed(Status.SMOKE, reason, log_tail)
    return number * IN_US[unit]
