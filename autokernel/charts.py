"""progress.png: every experiment of a run as a point, every target's champion as a line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PALETTE = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#b91c1c", "#475569")
INK, FAINT, PAPER = "#1f2937", "#d1d5db", "#ffffff"
TITLE_CHARS = 105  # of a line


def running_best(points: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The frame (experiment, target, decision, speedup) with a column ``champion``: the speedup of the version that
    the target's branch holds after this experiment. A failed experiment has no speedup.
    """
    import pandas as pd

    frame = pd.DataFrame(list(points), columns=["experiment", "target", "decision", "speedup"])
    frame["speedup"] = pd.to_numeric(frame["speedup"])
    frame = frame.sort_values("experiment")
    held = frame["speedup"].where(frame["decision"].isin(["baseline", "keep"]))
    frame["champion"] = held.groupby(frame["target"]).ffill()
    return frame


def progress(points: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws the experiments: ``points`` are mappings with experiment, target, decision and speedup over the best
    baseline of the same session (None when the candidate did not pass).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    frame = running_best(points)
    figure, axes = plt.subplots(figsize=(11, 6), dpi=130, facecolor=PAPER)
    axes.set_yscale("log", base=2)
    last = int(frame["experiment"].max()) if len(frame) else 1
    shown = frame["speedup"].dropna()
    low = min(0.8, shown.min() * 0.85) if len(shown) else 0.5
    high = max(1.6, shown.max() * 1.25) if len(shown) else 2.0

    labels = []
    for colour, (target, rows) in zip(_colours(), frame.groupby("target", sort=False), strict=False):
        line = rows.dropna(subset=["champion"])
        if len(line):
            x = [*line["experiment"], last + 0.5]
            y = [*line["champion"], line["champion"].iloc[-1]]
            axes.step(x, y, where="post", color=colour, linewidth=2.2, alpha=0.9, zorder=3)
            labels.append((float(line["champion"].iloc[-1]), f"{target}  {line['champion'].iloc[-1]:.2f}×", colour))
        tried = rows[(rows["decision"] == "revert") & rows["speedup"].notna()]
        kept = rows[(rows["decision"] == "keep") & rows["speedup"].notna()]
        start = rows[(rows["decision"] == "baseline") & rows["speedup"].notna()]
        axes.scatter(tried["experiment"], tried["speedup"], s=22, facecolors="none", edgecolors=colour, alpha=0.45,
                     linewidths=1.1, zorder=2)  # fmt: skip
        axes.scatter(start["experiment"], start["speedup"], s=46, marker="s", color=colour, edgecolors=PAPER, zorder=4)
        axes.scatter(
            kept["experiment"], kept["speedup"], s=62, color=colour, edgecolors=PAPER, linewidths=1.2, zorder=5
        )
        failed = rows[rows["speedup"].isna()]
        axes.scatter(failed["experiment"], [low * 1.05] * len(failed), s=26, marker="x", color=colour, alpha=0.6,
                     linewidths=1.2, zorder=2)  # fmt: skip

    axes.axhline(1.0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.text(
        last + 0.4, 0.985, "best of eager, torch.compile and the library", fontsize=8.5, color=INK, va="top", ha="right"
    )
    axes.set_xlim(0, last + 0.5)
    axes.set_ylim(low, high)
    ticks = [t for t in (0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64) if low <= t <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=0.7, alpha=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.set_xlabel("experiment", color=INK)
    axes.set_ylabel("speedup over the best baseline", color=INK)
    axes.set_title(textwrap.fill(title, TITLE_CHARS), loc="left", fontsize=13, color=INK, pad=26)
    _label_ends(axes, labels, low, high)
    _legend(axes)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def _colours() -> Sequence[str]:
    return PALETTE * 20  # more targets than colours: they come round again, the label tells them apart


def _label_ends(axes: Any, labels: Sequence[tuple[float, str, str]], low: float, high: float) -> None:
    """The name of each line at its right end, pushed apart where they would overlap."""
    import math

    span = math.log(high / low)
    at = -math.inf
    for value, text, colour in sorted(labels):
        at = max(math.log(value / low) / span, at + 0.045)
        axes.annotate(text, xy=(1.0, at), xycoords="axes fraction", xytext=(8, 0), textcoords="offset points",
                      color=colour, fontsize=9.5, fontweight="bold", va="center")  # fmt: skip


def _legend(axes: Any) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, label: str, **style: Any) -> Any:
        return Line2D([], [], linestyle="none", marker=marker, color=INK, label=label, **style)

    handles = [
        mark("s", "starter", markersize=6),
        mark("o", "kept", markersize=7),
        mark("o", "reverted", markersize=5, markerfacecolor="none", alpha=0.6),
        mark("x", "did not pass", markersize=5, alpha=0.7),
    ]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8.5,
                labelcolor=INK, borderaxespad=0.2, handletextpad=0.3, columnspacing=1.4)  # fmt: skip
