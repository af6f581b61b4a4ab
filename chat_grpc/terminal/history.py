"""``chat-grpc history``: what was said, newest first."""

from __future__ import annotations

import asyncio
import textwrap
from contextlib import aclosing

import betterproto2

from chat_grpc.client import ChatError, Message, MessageStatus
from chat_grpc.terminal import describe
from chat_grpc.terminal.connecting import Connection

LARGEST_PAGE = 100


def run(connection: Connection, *, user: str, session: str, limit: int, as_json: bool) -> int:
    """Print at most ``limit`` messages and return the exit code."""
    try:
        asyncio.run(_print(connection, user, session, limit, as_json=as_json))
    except ChatError as error:
        return describe.report(error)
    return 0


async def _print(connection: Connection, user: str, session: str, limit: int, *, as_json: bool) -> None:
    left = limit
    async with (
        connection.client() as client,
        aclosing(
            client.list_messages(user_id=user, session_id=session, page_size=min(limit, LARGEST_PAGE))
        ) as messages,
    ):
        async for message in messages:
            print(message.to_json(casing=betterproto2.Casing.SNAKE) if as_json else outline(message))
            left -= 1
            if not left:
                break


def outline(message: Message) -> str:
    """Return a message for people: when, how it ended, by which model; the question; the answer."""
    when = message.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if message.created_at else "-"
    status = (MessageStatus(message.status).name or "unknown").lower()
    head = [when, status, *(part for part in (message.error_reason, message.model) if part)]
    lines = ["  ".join(head), textwrap.indent(message.message, "> ")]
    if message.answer:
        lines.append(textwrap.indent(message.answer, "  "))
    return "\n".join(lines) + "\n"
