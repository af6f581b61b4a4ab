"""Spans: what took how long within a trace, as far as somebody collects them.

Without a collector the caller's trace is passed on and nothing else happens:
OpenTelemetry is not even imported. With one, otlp.py makes the spans.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol, TypeAlias

from chat_grpc.errors import ChatError
from chat_grpc.settings import Settings

Kind: TypeAlias = Literal["server", "client", "internal"]
Value: TypeAlias = str | int | float | bool


class Span(Protocol):
    """A piece of work that is under way."""

    def set(self, name: str, value: Value | tuple[str, ...], /) -> None:
        """Say something of it, by a name of OpenTelemetry's semantic conventions where there is one."""

    def fail(self, reason: str, /) -> None:
        """Note that it failed: ``reason`` is an UPPER_SNAKE_CASE word, never an exception's text."""

    def end(self) -> None:
        """End it, if it has not ended."""


class Tracer(Protocol):
    """What makes spans."""

    active: bool
    """Whether anybody collects them."""

    def span(self, name: str, kind: Kind, /) -> AbstractContextManager[Span]:
        """Do the work of the block in a span; what is begun within is part of it."""

    def begin(self, name: str, kind: Kind, /) -> Span:
        """Begin a span that ends when it is told to, and holds nothing else."""

    def enter(self, span: Span, /) -> AbstractContextManager[None]:
        """Be within a span that was begun, until the end of the block."""

    async def close(self) -> None:
        """Send what was not sent yet; wait a few seconds for it at most."""


class _NoSpan:
    def set(self, _name: str, _value: Value | tuple[str, ...], /) -> None:
        """Do nothing."""

    def fail(self, _reason: str, /) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


_NOTHING = nullcontext(_NoSpan())
_NO_BLOCK = nullcontext()


class NoTracer:
    """Makes none: nobody collects them."""

    active = False

    def span(self, _name: str, _kind: Kind, /) -> AbstractContextManager[Span]:
        """Return a block that does nothing."""
        return _NOTHING

    def begin(self, _name: str, _kind: Kind, /) -> Span:
        """Return a span that does nothing."""
        return _NOTHING.enter_result

    def enter(self, _span: Span, /) -> AbstractContextManager[None]:
        """Return a block that does nothing."""
        return _NO_BLOCK

    async def close(self) -> None:
        """Do nothing."""


def open_tracer(settings: Settings) -> Tracer:
    """Return what makes the spans that the settings ask for."""
    if not settings.otlp_endpoint:
        return NoTracer()
    from chat_grpc.telemetry.otlp import OTLPTracer

    return OTLPTracer(settings.otlp_endpoint)


def reason_of(error: BaseException) -> str:
    """Return the word that tells of an error in a span; its text may quote what is nobody's business."""
    if isinstance(error, ChatError):
        return error.reason
    return "CANCELLED" if isinstance(error, asyncio.CancelledError | GeneratorExit) else "INTERNAL"
