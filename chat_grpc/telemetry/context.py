"""The names of the call that is being answered, for every line logged meanwhile."""

from __future__ import annotations

from contextvars import ContextVar

_request_id: ContextVar[str] = ContextVar("request_id", default="")
_named: ContextVar[bool] = ContextVar("request_id_named", default=False)


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
