"""``chat-grpc chat QUESTION``: the answer's text on stdout as it is written, everything else on stderr."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

from chat_grpc.client import ChatError, Completed, Delta, Retrieval, Started
from chat_grpc.terminal import describe
from chat_grpc.terminal.connecting import Connection


def run(connection: Connection, question: str, *, user: str, session: str, show_passages: bool) -> int:
    """Ask one question and return the exit code."""
    try:
        asyncio.run(_ask(connection, question, user, session, show_passages=show_passages))
    except ChatError as error:
        return describe.report(error)
    return 0


async def _ask(connection: Connection, question: str, user: str, session: str, *, show_passages: bool) -> None:
    last = "\n"
    async with (
        connection.client() as client,
        aclosing(client.chat(question, user_id=user, session_id=session)) as events,
    ):
        try:
            async for event in events:
                match event:
                    case Retrieval() if show_passages:
                        for passage in event.passages:
                            print(f"  {describe.passage(passage)}", file=sys.stderr)
                    case Delta():
                        print(event.text, end="", flush=True)
                        last = event.text
                    case Completed():
                        _say_how_it_ended(event, last)
                        last = "\n"
                    case Started() | Retrieval():
                        pass
        finally:
            # An answer that was cut must not run into what the shell prints next.
            if not last.endswith("\n"):
                print(flush=True)


def _say_how_it_ended(completed: Completed, last: str) -> None:
    if not last.endswith("\n"):
        print(flush=True)
    for note in describe.notes(completed):
        print(f"note: {note}", file=sys.stderr)
    print(f"session: {completed.session_id} (continue with --session)", file=sys.stderr)
