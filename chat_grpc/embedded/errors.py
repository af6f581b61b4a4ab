"""What stops a command of this folder, in words for the person at the terminal."""

from __future__ import annotations

import sys


class CommandError(Exception):
    """One sentence: what went wrong, where, and what to do about it."""


def report(command: str, error: CommandError) -> int:
    """Say on stderr what stopped a command; return its exit code."""
    print(f"chat-grpc {command}: {error}", file=sys.stderr)  # noqa: T201 (a command's own voice)
    return 1
