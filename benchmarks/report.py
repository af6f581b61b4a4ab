"""The table, for people on stdout and for docs/performance.md, and its plot."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from rows import Row

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PAGE = DOCS / "performance.md"
PLOT = DOCS / "performance.svg"
BEGIN, END = "<!-- figures: begin (written by benchmarks/run.py) -->", "<!-- figures: end -->"
COMMAND = "make bench"

COLUMNS = {
    "grpc": "chat-grpc, gRPC",
    "sse": "chat-grpc, SSE through Envoy",
    "bare": "bare grpc.aio relay",
    "fastapi": "FastAPI + httpx relay",
    "litellm": "LiteLLM proxy",
    "direct": "upstream directly",
}
OURS = ("grpcio", "httptools", "aiohttp", "uvloop", "msgspec")
THEIRS = ("litellm", "fastapi", "starlette", "httpx", "uvicorn")


def table(found: Sequence[Row], *, markdown: bool) -> str:
    """Return the rows as a table."""
    columns = [name for name in COLUMNS if any(name in row.cells for row in found)]
    lines = [["figure", *(COLUMNS[name] for name in columns), "measured (limit)", ""]]
    for row in found:
        limits = "; ".join(limit.text for limit in row.limits)
        lines.append([row.figure, *(row.cells.get(name, "") for name in columns), limits, row.verdict()])
    if markdown:
        rule = ["---", *("---:" for _ in columns), "---", "---"]
        return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write(found: Sequence[Row], note: str, *, python: str) -> None:
    """Put the table and the plot into docs/."""
    when = f"Measured on {datetime.now(UTC):%Y-%m-%d} with `{COMMAND}`, on {_machine(python)}. {note}"
    text = f"{when}\n\n{table(found, markdown=True)}"
    page = PAGE.read_text(encoding="utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    PAGE.write_text(between.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page), encoding="utf-8")
    _plot(found, python)


def _plot(found: Iterable[Row], python: str) -> None:
    """Draw the rows of CPU per token; matplotlib is not part of this environment, but of the contestants'."""
    rows = [
        {"title": row.figure, "bars": {COLUMNS[name]: row.numbers[name] for name in COLUMNS if name in row.numbers}}
        for row in found
        if "litellm" in row.numbers and "CPU" in row.figure
    ]
    # The command is an interpreter that this project set up, with a script of its own.
    subprocess.run(  # noqa: S603
        [python, str(HERE / "plot.py"), str(PLOT)], input=json.dumps(rows), text=True, check=True
    )


def _machine(python: str) -> str:
    """Say what was measured on, without naming it."""
    code = f"import importlib.metadata as m; print(', '.join(f'{{n}} {{m.version(n)}}' for n in {THEIRS!r}))"
    # The same interpreter, asked for the versions of what it runs.
    theirs = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    ours = ", ".join(f"{name} {version(name)}" for name in OURS)
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GB, "
        f"{platform.system()}, Python {platform.python_version()}; {ours}; {theirs}"
    )
