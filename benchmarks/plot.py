"""Draw bars of CPU per token from JSON on stdin, on a logarithmic scale: the contestants are far apart.

python benchmarks/plot.py FILE.svg
"""

from __future__ import annotations

import json
import sys

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "chat-grpc"  # the same figures give the same file

import matplotlib.pyplot as plt  # noqa: E402 (after the choice of how to draw)

OWN, OTHER = "#2563eb", "#9ca3af"


def main(path: str) -> None:
    """Draw one panel per row."""
    rows = json.load(sys.stdin)
    figure, panels = plt.subplots(len(rows), 1, figsize=(8, 2.1 * len(rows)), sharex=True, squeeze=False)
    for row, (axes,) in zip(rows, panels, strict=True):
        names = [name for name in row["bars"] if name != "upstream directly"][::-1]
        values = [row["bars"][name] for name in names]
        bars = axes.barh(names, values, color=[OWN if name.startswith("chat-grpc") else OTHER for name in names])
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axes.set_title(row["title"], loc="left", fontsize=9)
        axes.set_xscale("log")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1][0].set_xlabel("microseconds of CPU per token (logarithmic; less is better)", fontsize=8)
    panels[-1][0].set_xlim(1, 2000)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])
