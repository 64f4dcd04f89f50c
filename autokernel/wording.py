"""Figures and rows as a person reads them, wherever they are shown: spans, ratios, an experiment in a line."""

from __future__ import annotations

from autokernel.run.history import Row


def clock(seconds: float) -> str:
    """A span as a person reads it: 42s, 4m10s, 1h05m."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def span(time_us: float) -> str:
    """A kernel's time in the unit that a person reads at a glance."""
    if time_us >= 1e6:
        return f"{time_us / 1e6:.2f} s"
    return f"{time_us / 1e3:.2f} ms" if time_us >= 1e3 else f"{time_us:.1f} us"


def times(ratio: float | None) -> str:
    """A ratio as a speedup, or a dash."""
    return "–" if ratio is None else f"{ratio:.2f}×"


def verdict_line(row: Row, reason: str = "") -> str:
    """One experiment in one line of plain text."""
    head = f"#{row.experiment:<3} {row.target:<16} {outcome(row):<9}"
    tries = f", attempt {row.attempts}" if row.attempts > 1 else ""
    if row.status != "PASS":
        return f"{head} {row.status} at {row.stage}{tries}: {' '.join(reason.split())[:90]} | {row.idea}"
    measured = f"{span(row.latency_us):>9}" if row.latency_us is not None else ""
    against = f"{times(row.speedup_vs_best)} vs best"
    paired = ""
    if row.speedup is not None and row.ci_low is not None and row.ci_high is not None:
        paired = f"{(row.speedup - 1) * 100:+.1f} % [{(row.ci_low - 1) * 100:+.1f}, {(row.ci_high - 1) * 100:+.1f}]"
    fixed = f"| fixed{tries}" if tries else ""
    return " ".join(part for part in (head, measured, against, paired, fixed, f"| {row.idea}") if part)


def outcome(row: Row) -> str:
    """The decision in a word: starter, kept, reverted, failed, or A/A."""
    if row.decision == "revert" and row.status != "PASS":
        return "failed"
    return {"baseline": "starter", "keep": "kept", "revert": "reverted", "aa": "A/A"}[row.decision]
