"""A scripted agent in a folder that init made: five tries, what it is told after each, and every way to go wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import git
import pytest
from owner_folder import KERNEL, one_line

from autokernel.run import history

LIMIT = ("--bench-limit", "3")


@pytest.fixture
def place(project, autokernel):
    made = autokernel("init", "agent", "--kernel", "fast.c", "--bench", "sh bench.sh", *LIMIT, cwd=project)
    assert made.returncode == 0, made.stderr
    assert "kernels/fast.c takes 4,000.00 us" in made.stdout
    return project / "agent"


def tried(autokernel, place: Path, text: str, message: str) -> dict:
    (place / "kernels" / "fast.c").write_text(text)
    done = autokernel("try", "-m", message, "--json", cwd=place)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if answer["status"] == "PASS" else 1)
    return answer


def test_five_tries_of_a_scripted_agent(place, autokernel, quick):
    for name in ("TASK.md", "program.md", "BRIEF.md", "ITERATIONS.md", "HINTS.md", "context/bench.sh"):
        assert (place / name).is_file(), name
    kernel = place / "kernels" / "fast.c"
    assert kernel.read_text() == KERNEL
    assert json.loads((place / "context" / "fast.json").read_text())["command"] == "sh context/bench.sh"

    # 1. A better one is kept; the answer is plain text.
    kernel.write_text("// cost: 3\n")
    done = autokernel("try", "-m", "tier 1: a smaller | block", cwd=place)
    assert done.returncode == 0
    first, *rest = done.stdout.splitlines()
    assert first.startswith("experiment 2: keep: +33.3 % faster")
    assert any(line.startswith("stands: experiment 2, 3,000.00 us") for line in rest)
    assert any(line.startswith("next: tier 1") for line in rest)

    # 2. A wrong one is put back, and its log told. What the agent wrote into ITERATIONS.md stays.
    iterations = place / "ITERATIONS.md"
    iterations.write_text(iterations.read_text().replace("- Analysis: ", "- Analysis: smaller is better"))
    answer = tried(autokernel, place, "// cost: 1\nbroken\n", "tier 2: too clever")
    assert (answer["decision"], answer["status"]) == ("revert", "SMOKE")
    assert "wrong by 3" in answer["log_tail"]
    assert kernel.read_text() == "// cost: 3\n"
    assert (place / "experiments" / "3" / "candidate.py").read_text() == "// cost: 1\nbroken\n"

    # 3. A crash, 4. a slower one: both are put back.
    assert tried(autokernel, place, "// cost: 1\ncrash\n", "tier 2: crash")["status"] == "CRASH"
    slower = tried(autokernel, place, "// cost: 3.3\n", "tier 3: slower")
    assert slower["decision"] == "revert" and slower["champion"]["experiment"] == 2
    assert slower["speedup"] == pytest.approx(3 / 3.3)

    # 5. A better one again.
    best = tried(autokernel, place, "// cost: 2\n", "tier 3: better")
    assert best["decision"] == "keep" and best["champion"]["latency_us"] == 2000.0
    assert kernel.read_text() == "// cost: 2\n"

    rows = history.read(place)
    assert [row.decision for row in rows] == ["baseline", "keep", "revert", "revert", "revert", "keep"]
    assert [row.proposer for row in rows] == ["starter", *["agent"] * 5]
    log = [c.message.splitlines()[0] for c in git.Repo(place).iter_commits("main")]
    assert log == ["[iter 6] fast: tier 3: better", "[iter 2] fast: tier 1: a smaller | block",
                   "[baseline] what the run starts from"]  # fmt: skip
    assert git.Repo(place).git.status("--porcelain") == ""
    text = iterations.read_text()
    assert text.count("## Iteration ") == 5 and text.count("- Analysis: smaller is better\n") == 1
    assert "| 2 | tier 1: a smaller \\| block | +1 −1 lines | +33.3 % faster" in text
    assert "2,000.00 us; since experiment 6; 5 tried, 2 kept." in (place / "TASK.md").read_text()

    look(place, quick)


def look(place: Path, quick) -> None:
    """The commands that only look, from a folder inside of the run."""
    inside = place / "kernels"
    status = json.loads(quick("status", "--json", cwd=inside).stdout)
    assert status["experiments"] == 6 and status["targets"][0]["champion"] == 6
    assert status["targets"][0]["edited"] is False
    (place / "kernels" / "fast.c").write_text("// cost: 1.9\n")
    assert "kernels/fast.c is edited and not judged" in quick("status", cwd=inside).stdout
    listed = quick("history", "--last", "2", cwd=inside).stdout.splitlines()
    assert len(listed) == 3 and "tier 3: better" in listed[-1] and "1.500x" in listed[-1]
    shown = quick("show", "3", cwd=inside).stdout
    assert "revert: SMOKE at smoke" in shown and "| wrong by 3" in shown
    change = quick("diff", "6", cwd=inside).stdout.splitlines()
    assert change[-2:] == ["-// cost: 3", "+// cost: 2"]
    one_line(quick("show", "99", cwd=inside), "1 to 6", "no 99")
    assert quick("hint", "try", "split-K", cwd=inside).returncode == 0
    assert (place / "HINTS.md").read_text() == "- try split-K\n"
    assert "6 experiments, 2 kept" in quick("report", cwd=place).stdout


def test_what_cannot_be_tried_is_one_line_and_costs_no_experiment(place, project, quick):
    kernel = place / "kernels" / "fast.c"
    one_line(quick("try", "-m", "nothing", cwd=place), "an edit of kernels/fast.c was expected", "nothing was")
    kernel.write_text("// cost: 3\n")
    one_line(quick("try", "-m", "  ", cwd=place), "a hypothesis was expected")
    bench = place / "context" / "bench.sh"
    bench.write_text("echo metric: 1\n")
    one_line(quick("try", "-m", "x", cwd=place), "context/bench.sh was, too", "checkout -- context/bench.sh")
    git.Repo(place).git.checkout("--", "context/bench.sh")
    (place / "context" / "sitecustomize.py").write_text("")
    one_line(quick("try", "-m", "x", cwd=place), "context/sitecustomize.py is new there")
    (place / "context" / "sitecustomize.py").unlink()
    kernel.write_bytes(b"\xff")
    one_line(quick("try", "-m", "x", cwd=place), "UTF-8 text was expected")
    kernel.write_text(KERNEL)
    one_line(quick("try", "-m", "as it was", cwd=place), "nothing was edited")
    one_line(quick("try", "-m", "x", cwd=project.parent), "was expected to be the folder of a run")
    one_line(quick("try", "-m", "x", "--run", ".", cwd=project), "the folder of a run was expected")
    one_line(quick("try", cwd=place), "--message")
    assert len(history.read(place)) == 1
    assert tried(quick, place, "// cost: 5\n", "slower")["decision"] == "revert"
    kernel.write_text("// cost: 5\n")
    one_line(quick("try", "-m", "again", cwd=place), "judged before: experiment 2", "put back")
    assert kernel.read_text() == KERNEL and len(history.read(place)) == 2


def test_one_try_at_a_time_and_a_killed_one_is_finished_by_the_next(place, autokernel):
    kernel = place / "kernels" / "fast.c"
    kernel.write_text("// cost: 1\nhang\n")
    first = subprocess.Popen(
        [sys.executable, "-m", "autokernel", "try", "-m", "it hangs"], cwd=place, stderr=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    while "smoke" not in first.stderr.readline():
        assert first.poll() is None
    one_line(autokernel("try", "-m", "meanwhile", cwd=place), f"pid {first.pid}")
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stderr.close()
    kernel.write_text("// cost: 2\n")
    started = time.monotonic()
    done = autokernel("try", "-m", "better", cwd=place)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started >= 3, "the one that hangs is judged first, to its time limit"
    found = [(row.idea, row.status, row.decision) for row in history.read(place)][1:]
    assert found == [("it hangs", "TIMEOUT", "revert"), ("better", "PASS", "keep")]
    assert (place / "ITERATIONS.md").read_text().count("## Iteration ") == 2
