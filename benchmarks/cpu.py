"""How much of the processors a process has used, and what else was running meanwhile."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable

import psutil


def seconds(pids: Iterable[int]) -> float:
    """Return the CPU time, user and system, that processes and their children have used so far."""
    return sum(_one(pid) for pid in with_children(pids))


def with_children(pids: Iterable[int]) -> set[int]:
    """Return the processes named and all that they have started."""
    return {
        found for pid in pids for found in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
    }


def _one(pid: int) -> float:
    if platform.system() == "Linux":
        # The process's own CPU clock (clock_getcpuclockid), to the nanosecond;
        # /proc and psutil count in hundredths of a second.
        return time.clock_gettime((~pid << 3) | 2)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def machine() -> float:
    """Return the CPU time that this machine has used so far, whoever used it."""
    times = psutil.cpu_times()
    return times.user + times.system + times.nice + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
