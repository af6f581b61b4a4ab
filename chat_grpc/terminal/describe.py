"""Words for what the service answers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chat_grpc.client import Component, FinishReason
from chat_grpc.client.errors import UNREACHABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chat_grpc.client import ChatError, Completed, Passage


def failure(error: ChatError) -> str:
    """Return one sentence: what went wrong, its reason, and what helps."""
    if error.reason == UNREACHABLE:
        return f"{error.message}; start one with `make run`"
    text = "; ".join(f"{fault.field}: {fault.description}" for fault in error.violations) or error.message
    text = f"{text} ({error.reason or error.code.name})"
    if error.retry_after is not None:
        text += f"; try again in {error.retry_after:g} s"
    return text


def report(error: ChatError) -> int:
    """Say on stderr what went wrong; return the exit code."""
    print(f"chat-grpc: {failure(error)}", file=sys.stderr)
    return 1


def passage(found: Passage) -> str:
    """Return a passage as one line: its score and title."""
    return f"{found.score:.2f}  {found.title}"


def notes(completed: Completed) -> Iterator[str]:
    """Yield what is worth knowing about how an answer ended; nothing when it simply ended."""
    if completed.degraded:
        missing = ", ".join((Component(part).name or "a part").lower() for part in completed.degraded)
        yield f"answered without: {missing}"
    if completed.finish_reason == FinishReason.LENGTH:
        yield "the answer was cut at its greatest length"
    if completed.finish_reason == FinishReason.CONTENT_FILTER:
        yield "some text was withheld by a content filter"
