"""A small night in a folder that init made, its ideas those of a program: kept, mended, and unusable ones."""

from __future__ import annotations

import json
import sys

from autokernel.run import history

AGENT = """
import sys
from pathlib import Path

kernel, brief = Path("kernel.c"), sys.stdin.read()
assert "metric: NUMBER" in brief and "try smaller blocks" in brief
text = kernel.read_text()
if Path("FAILED.md").exists():
    assert "wrong by 3" in Path("FAILED.md").read_text()
    kernel.write_text(text.replace("broken\\n", ""))
    print("IDEA: the same without the mistake")
elif "cost: 4" in text:
    if "did not edit kernel.c" not in brief:  # the note on the answer before
        sys.exit("I only looked")
    kernel.write_text("// cost: 3\\nbroken\\n")
    print("IDEA: tier 1: a smaller block")
else:
    kernel.write_text("// cost: 5\\n")
    print("tier 2: a slower one")
"""


def test_a_program_proposes_in_a_folder_that_init_made(project, autokernel):
    name = "agent"
    made = autokernel("init", name, "--kernel", "fast.c", "--bench", "sh bench.sh", cwd=project)
    assert made.returncode == 0, made.stderr
    place = project / name
    assert autokernel("hint", "try smaller blocks", "--run", name, cwd=project).returncode == 0
    (project / "my_agent.py").write_text(AGENT)
    night = ("--proposer", "command", "--command", f"{sys.executable} my_agent.py", "--max-experiments", "3")
    done = autokernel("run", name, *night, "--aa-rate", "0", "--plain", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = history.read(place)
    found = [(row.decision, row.idea, row.attempts) for row in rows[1:]]
    assert found == [
        ("keep", "tier 1: a smaller block; mended: the same without the mistake", 2),
        ("revert", "tier 2: a slower one", 1),
    ]
    assert (place / "kernels" / "fast.c").read_text() == "// cost: 3\n"
    kept = place / "experiments" / "2"
    assert (kept / "attempt-1.py").read_text() == "// cost: 3\nbroken\n"
    exchanges = [json.loads(line) for line in (kept / "exchange.jsonl").read_text().splitlines()]
    assert [e["exit_status"] for e in exchanges] == [1, 0, 0]
    assert "I only looked" in exchanges[0]["stderr_tail"]
    assert json.loads((place / "headline.json").read_text())["targets"]["fast"]["latency_us"] == 3000.0
    # And by hand, in the same folder: one run, one history.
    (place / "kernels" / "fast.c").write_text("// cost: 2\n")
    assert autokernel("try", "-m", "by hand", cwd=place).returncode == 0
    assert [row.proposer for row in history.read(place)] == ["starter", "command", "command", "agent"]
    assert (place / "ITERATIONS.md").read_text().count("## Iteration ") == 3


def test_a_command_that_does_not_exist_is_one_line_and_no_experiment(project, autokernel):
    done = autokernel("run", "m.py", "--proposer", "command", "--command", "no-such-agent", cwd=project)
    assert done.returncode == 2 and "no file m.py" in done.stderr
    (project / "m.py").write_text("")
    done = autokernel("run", "m.py", "--proposer", "command", "--command", "no-such-agent", cwd=project)
    assert done.returncode == 2
    assert "'no-such-agent', which is no program here" in done.stderr.splitlines()[-1]
    assert not (project / "results").exists()
