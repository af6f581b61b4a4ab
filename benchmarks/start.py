"""How long `chat-grpc serve` takes until it is SERVING, and how much memory it holds then.

Starts the real process ROUNDS times for each kind of provider, asks
grpc.health.v1 until it says SERVING, and reads the resident memory. Prints one
table and exits with 1 if a median is over its limit.

    python benchmarks/start.py
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time

import processes
import psutil

ROUNDS = 7
LIMIT_SECONDS = 1.0
LIMIT_MEGABYTES = 120
SETTLE_SECONDS = 1.5
"""Modules that the token path needs are imported once the server serves; memory is read after that."""

PROVIDERS = {
    "extractive": {"CHAT_LLM_PROVIDER": "extractive"},
    "OpenAI wire": {"CHAT_LLM_PROVIDER": "local", "CHAT_LLM_BASE_URL": "http://127.0.0.1:9/v1"},
}


def main() -> int:
    """Measure, print, and return the exit code."""
    print(f"{'provider':<12} {'to SERVING, s':>22} {'resident, MB':>13}")
    within = True
    for name, settings in PROVIDERS.items():
        measure(settings)  # fills the file cache and writes the byte code
        times, sizes = zip(*(measure(settings) for _ in range(ROUNDS)), strict=True)
        seconds, megabytes = statistics.median(times), statistics.median(sizes)
        holds = seconds < LIMIT_SECONDS and megabytes < LIMIT_MEGABYTES
        within = within and holds
        spread = f"{seconds:.2f} ({min(times):.2f}-{max(times):.2f})"
        print(f"{name:<12} {spread:>22} {megabytes:>13.0f}  {'holds' if holds else 'OVER THE LIMIT'}")
    print(f"limits: {LIMIT_SECONDS} s, {LIMIT_MEGABYTES} MB; medians of {ROUNDS} starts, with the range")
    return 0 if within else 1


def measure(settings: dict[str, str]) -> tuple[float, float]:
    """Start a server once; return the seconds to SERVING and the megabytes it holds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with processes.server(folder, **settings) as (process, address):
            processes.wait_until_serving(address)
            seconds = time.perf_counter() - started
            time.sleep(SETTLE_SECONDS)
            return seconds, psutil.Process(process.pid).memory_info().rss / 1e6


if __name__ == "__main__":
    sys.exit(main())
