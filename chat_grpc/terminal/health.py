"""``chat-grpc health``: the state of the service, in words and as an exit code."""

from __future__ import annotations

import asyncio

import betterproto2

from chat_grpc.client import ChatError, Component, GetHealthResponse, GetHealthResponseStatus
from chat_grpc.terminal import describe
from chat_grpc.terminal.connecting import Connection

ANSWERING = (GetHealthResponseStatus.HEALTHY, GetHealthResponseStatus.DEGRADED)


def run(connection: Connection, *, as_json: bool) -> int:
    """Print the state; return 0 if messages are being answered, else 1."""
    try:
        health = asyncio.run(_ask(connection))
    except ChatError as error:
        return describe.report(error)
    if as_json:
        print(health.to_json(casing=betterproto2.Casing.SNAKE, include_default_values=True))
    else:
        print(_outline(health))
    return 0 if health.status in ANSWERING else 1


async def _ask(connection: Connection) -> GetHealthResponse:
    async with connection.client() as client:
        return await client.health()


def _outline(health: GetHealthResponse) -> str:
    lines = [f"{_word(health.status)}  (chat-grpc {health.version}, {health.model})"]
    for part in health.components:
        name = (Component(part.component).name or "unknown").lower()
        lines.append(f"  {name:<10} {_word(part.status):<10} {part.detail}".rstrip())
    lines.append(f"  {health.memvid_frame_count} passages, {health.active_sessions} conversations")
    return "\n".join(lines)


def _word(status: GetHealthResponseStatus) -> str:
    return (GetHealthResponseStatus(status).name or "unknown").lower()
