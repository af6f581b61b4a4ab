"""A process that `chat-grpc up` started ends when `up` is no more.

`up` stops its processes itself; this is for the case in which it can't, because
it was killed. It is Linux's: elsewhere a killed `up` leaves them running.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

VARIABLE = "UP_PID"
"""Holds the pid of `up` in the environment of its processes. Not named CHAT_...: it is no setting."""

_PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Have this process told to stop (SIGTERM) when the `up` that started it dies."""
    parent = os.environ.pop(VARIABLE, "")
    # A process that somebody else started with our environment follows nobody.
    if sys.platform != "linux" or parent != str(os.getppid()):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent != str(os.getppid()):  # it died just now
        signal.raise_signal(signal.SIGTERM)
