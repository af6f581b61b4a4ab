"""What a call says of who makes it, beside the request."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from chat_grpc.rpc.interceptor import Context
from chat_grpc.rpc.peer import client_address
from chat_grpc.settings import Networks


class Caller(Struct, frozen=True):
    """Where a call comes from, and how long its caller waits.

    Attributes:
        address: the client's network address, without port.
        deadline: the end of the caller's patience in loop time; None is endless.
    """

    address: str
    deadline: float | None


def caller_of(context: Context, trusted: Networks) -> Caller:
    """Read it from a call; ``trusted`` are the proxies that are believed."""
    remaining: float | None = context.time_remaining()  # type: ignore[assignment,unused-ignore]  # None without deadline
    deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
    return Caller(client_address(context, trusted), deadline)
