"""The names of the call that is being answered, for every line logged meanwhile."""

from __future__ import annotations

from contextvars import ContextVar

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def request_id() -> str:
    """Return the id of the request being answered, or "" outside of one."""
    return _request_id.get()


def set_request_id(value: str) -> None:
    """Name the request that this task answers."""
    _request_id.set(value)
