"""An owner's kernel whose time is a number in its text, the script that reads it, and what a mistake looks like."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

KERNEL = "// cost: 4\n"
BENCH = """# A kernel is correct unless it says that it is broken; it takes what it says.
grep -q hang "$KERNEL" && sleep 60
grep -q crash "$KERNEL" && kill -SEGV $$
grep -q broken "$KERNEL" && { echo "wrong by 3" >&2; exit 1; }
echo "metric: $(sed -n 's/^.. cost: //p' "$KERNEL") ms"
"""


def one_line(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    """A mistake, told in one line (what was being done may stand before it)."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and errors[0] == done.stderr.splitlines()[-1], done.stderr
    for text in expected:
        assert text in errors[0], errors[0]
