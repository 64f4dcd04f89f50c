"""Does the judge wear out? Many mixed candidates in a row, good, wrong, crashing, hanging, greedy, through one judge.

    python benchmarks/endurance.py [--count 500] [--every 100] [--json FILE]

Prints a table: resident memory and open descriptors of the judge, of its nursery (two processes) and of this one,
which stands for the daemon; how many processes live below it; bytes and entries in its scratch folder. Exits 1 when a
verdict was not the expected one, when the judge had to be replaced, or when anything grew beyond what is printed as
the allowance. Candidates are of the torch backend on a tiny problem, without baselines: 500 take minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.isolation import MIB, Limits
from autokernel.types import Status, Target, Workload

LIMITS = Limits(
    memory_bytes=3 << 29,
    disk_bytes=64 * MIB,
    file_bytes=32 * MIB,
    files=2000,
    log_bytes=4 * MIB,
    processes=300,
    build_s=4.0,
)
WORK = Workload({"R": 8, "C": 64}, "fp32", scalars={"eps": 1e-6})
TARGET = Target("rmsnorm", "rmsnorm", "torch", (WORK,), share=1.0, eager_us=0.0, floor_us=0.0)
ALLOWED_RSS_BYTES, ALLOWED_FDS = 48 * MIB, 2  # growth from the first row to the last, of each process

RIGHT = (
    "wide = x.float()\n    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)"
)
KINDS: Mapping[str, tuple[str, str, Status, int]] = {  # at import, in the call, expected, how many of 100
    "right": ("", RIGHT, Status.PASS, 14),
    "wrong": ("", "return x", Status.SMOKE, 16),
    "wrong late": ("", RIGHT.replace("+ eps", "+ (eps if x.numel() < 3000 else 1.0)"), Status.SHAPES, 10),
    "raises": ("", "raise ValueError('no')", Status.SMOKE, 12),
    "no tensor": ("", "return [x]", Status.SMOKE, 6),
    "does not load": ("import nothing_like_this", RIGHT, Status.BUILD, 8),
    "crashes": ("", "import os\n    os.abort()", Status.CRASH, 10),
    "exits": ("import os\nos._exit(0)", RIGHT, Status.CRASH, 8),
    "hangs": ("while True:\n    pass", RIGHT, Status.TIMEOUT, 2),
    "leaves daemons": (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(10**6)",
        RIGHT.replace("wide =", "raise ValueError\n    wide =", 1),
        Status.SMOKE,
        4,
    ),
    "prints": (
        "import os, time\nfor _ in range(100):\n    os.write(1, bytes(1 << 20))\n    time.sleep(0.01)",
        RIGHT,
        Status.CRASH,
        2,
    ),
    "fills folders": (
        "import os\nfor n in range(150):\n    os.makedirs(f'd{n}/d')\n"
        "    open(f'd{n}/f', 'w').write('x' * 9999)\nos._exit(1)",
        RIGHT,
        Status.CRASH,
        4,
    ),
    "forges": ("import os\nos.write(3, b'[' * 99)", RIGHT, Status.CRASH, 4),
}  # fmt: skip


def source(kind: str, salt: int) -> str:
    """A file of this kind; the salt makes every one a source of its own."""
    before, body, _, _ = KINDS[kind]
    return (
        f'"""Candidate {salt}."""\n\nimport torch\n\nKERNEL_TYPE = "rmsnorm"\nBACKEND = "torch"\n{before}\n\n\n'
        f"def kernel_fn(x, weight, eps=1e-6):\n    {body}\n"
    )


def draw(count: int, seed: int) -> list[str]:
    """Kinds in random order, in the proportions of the table, each at least once where the count allows."""
    rng = random.Random(seed)
    weights = [share for *_, share in KINDS.values()]
    kinds = list(KINDS) + rng.choices(list(KINDS), weights, k=max(0, count - len(KINDS)))
    rng.shuffle(kinds)
    return kinds[:count]


def weigh(judge: JudgeClient, scratch: Path) -> dict[str, int]:
    """One row: MiB, descriptors, processes, bytes and entries."""
    process = psutil.Process(judge.pid)
    nursery = process.children(recursive=True)
    row = {"daemon MiB": _mib(psutil.Process()), "daemon fds": _fds(psutil.Process())}
    row |= {"judge MiB": _mib(process), "judge fds": _fds(process)}
    row |= {"nursery MiB": sum(map(_mib, nursery[:2])), "nursery fds": sum(map(_fds, nursery[:2]))}
    files = [path for path in scratch.rglob("*") if not path.is_dir()]
    row["processes"] = len(nursery)
    row["entries"] = len(list(scratch.rglob("*")))
    row["KiB"] = sum(path.stat(follow_symlinks=False).st_blocks for path in files) // 2
    row["shm"] = len(os.listdir("/dev/shm"))
    return row


def _mib(process: psutil.Process) -> int:
    return int(process.memory_info().rss) // MIB


def _fds(process: psutil.Process) -> int:
    """0 where the kernel does not let us count: the judge is closed to its own user unless that is root."""
    try:
        return int(process.num_fds())
    except psutil.AccessDenied:
        return 0


def endure(
    count: int, every: int, seed: int = 1, warm_up: int = 13, on_row: Callable[[dict[str, int]], None] = lambda _: None
) -> tuple[list[dict[str, int]], list[str]]:
    """Rows (the first after ``warm_up`` candidates, one of each kind), each told as it comes, and what was not as
    expected.
    """
    wrong: list[str] = []
    rows: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory(prefix="autokernel-endurance-") as folder:
        scratch = Path(folder, "scratch")
        with JudgeClient(scratch, JudgeOptions(policy=False, limits=LIMITS)) as judge:
            first = judge.pid
            kinds = list(KINDS)[:warm_up] + draw(count, seed)
            started = time.monotonic()
            for number, kind in enumerate(kinds):
                verdict = judge.evaluate(Assignment(TARGET, source(kind, number), baselines=False)).verdict
                if verdict.status is not KINDS[kind][2]:
                    wrong.append(f"{number} {kind}: {verdict.status.value} at {verdict.stage}: {verdict.reason}")
                done = number + 1 - warm_up
                if done >= 0 and (done % every == 0 or done == count):
                    seconds = round(time.monotonic() - started)
                    rows.append({"candidates": done, "seconds": seconds, **weigh(judge, scratch)})
                    on_row(rows[-1])
            if judge.pid != first:
                wrong.append("the judge had to be replaced")
    return rows, wrong


def growth(rows: Sequence[Mapping[str, int]]) -> list[str]:
    """What grew more than allowed between the first row and the last."""
    allowed = {"MiB": ALLOWED_RSS_BYTES // MIB, "fds": ALLOWED_FDS}
    grown = []
    for name in rows[0]:
        more = rows[-1][name] - rows[0][name]
        most = allowed.get(name.split()[-1], 0 if name in ("processes", "entries", "shm") else None)
        if most is not None and more > most:
            grown.append(f"{name}: {rows[0][name]} -> {rows[-1][name]}, allowed +{most}")
    return grown


def tell(row: Mapping[str, int]) -> None:
    """One line of a markdown table; the first brings its head."""
    if row["candidates"] == 0:
        print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
    print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, wrong = endure(options.count, options.every, on_row=tell)
    grown = growth(rows)
    for line in (*wrong, *grown):
        print(line)
    print("failed" if wrong or grown else "nothing grew, and every verdict was the expected one")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "wrong": wrong, "grown": grown}, indent=1))
    return 1 if wrong or grown else 0


if __name__ == "__main__":
    sys.exit(main())
