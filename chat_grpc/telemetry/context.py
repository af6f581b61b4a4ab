"""What is known of the call that is being answered, wherever the program works for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from chat_grpc.domain import Message
from chat_grpc.errors import ChatError

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MAX_TRACEPARENT = 256
_MAX_TRACESTATE = 512
"""Characters; W3C asks for at least so many to be passed on."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A place in a distributed trace, as W3C Trace Context names it.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits; where nothing is exported, the caller's.
        flags: two hexadecimal digits; the last bit says that the trace is sampled.
        state: what tracing systems add, passed on as it came.
        remote: whether another process began the span.
    """

    trace_id: str
    span_id: str
    flags: str
    state: str = ""
    remote: bool = True

    def headers(self) -> dict[str, str]:
        """Return the headers that pass it on."""
        headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.flags}"}
        if self.state:
            headers["tracestate"] = self.state
        return headers


class Call:
    """What a call turned out to be about; told by whoever finds out, read at its end.

    Attributes:
        user_id: who asked, "" if unnamed.
        session_id: the conversation that was asked for.
        message: the message as the history holds it, once there is one.
        error: what the client was told in place of an answer.
    """

    __slots__ = ("error", "message", "session_id", "user_id")

    def __init__(self) -> None:
        self.user_id = ""
        self.session_id = ""
        self.message: Message | None = None
        self.error: ChatError | None = None


_request_id: ContextVar[str] = ContextVar("request_id", default="")
_named: ContextVar[bool] = ContextVar("request_id_named", default=False)
_call: ContextVar[Call | None] = ContextVar("call", default=None)
_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)


def request_id() -> str:
    """Return the id of the request being answered, or "" outside of one."""
    return _request_id.get()


def named_by_caller() -> bool:
    """Tell whether the caller chose the request's id."""
    return _named.get()


def set_request_id(value: str, *, by_caller: bool) -> None:
    """Name the request that this task answers."""
    _request_id.set(value)
    _named.set(by_caller)


def call() -> Call:
    """Return what is known of the call being answered; outside of one, what nobody will read."""
    return _call.get() or Call()


def begin_call() -> Call:
    """Begin to take notes for the call that this task answers."""
    begun = Call()
    _call.set(begun)
    return begun


def trace() -> Trace | None:
    """Return the place in a trace that the program is at; None if there is no trace."""
    return _trace.get()


def set_trace(place: Trace | None) -> None:
    """Be at a place of a trace from now on, in this task."""
    _trace.set(place)


@contextmanager
def tracing(place: Trace | None) -> Iterator[None]:
    """Be at a place of a trace until the end of the block."""
    token = _trace.set(place)
    try:
        yield
    finally:
        _trace.reset(token)


def trace_headers() -> dict[str, str]:
    """Return the headers that let another service go on with the trace; none if there is no trace."""
    place = _trace.get()
    return place.headers() if place is not None else {}


def read_trace(traceparent: str, tracestate: str) -> Trace | None:
    """Read a caller's headers; None if they name no trace. What is malformed counts as absent, as W3C wants it."""
    match = _TRACEPARENT.fullmatch(traceparent) if len(traceparent) <= _MAX_TRACEPARENT else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    fit = len(tracestate) <= _MAX_TRACESTATE and tracestate.isascii() and tracestate.isprintable()
    return Trace(trace_id, span_id, flags, tracestate if fit else "")
