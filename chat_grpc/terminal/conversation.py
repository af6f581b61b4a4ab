"""``chat-grpc chat``: a conversation on a terminal."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from chat_grpc.client import ChatClient, ChatError, Completed, Delta, Retrieval, Started
from chat_grpc.client.errors import UNREACHABLE
from chat_grpc.terminal import describe
from chat_grpc.terminal.connecting import Connection
from chat_grpc.terminal.history import outline
from chat_grpc.terminal.rendering import MarkdownStream

if TYPE_CHECKING:
    from collections.abc import Coroutine

HELP = """\
/history  what was said in this conversation
/new      begin a new conversation
/help     this list
/quit     leave (also Ctrl-D)
Ctrl-C ends an answer that is being written."""
SHOWN_QUESTIONS = 3
SHOWN_MESSAGES = 10


def run(connection: Connection, *, user: str, session: str, show_passages: bool) -> int:
    """Hold a conversation until the user leaves; return the exit code."""
    try:
        # Editing and recall of lines; the module works by being imported. Not every Python has it.
        import readline  # noqa: F401 (never called by name)
    except ImportError:
        print("line editing is not available: this Python was built without readline", file=sys.stderr)
    # The runner keeps one event loop, and with it one channel, across questions;
    # its Ctrl-C cancels what it is running and nothing else.
    with asyncio.Runner() as runner:
        client = runner.run(connection.client().__aenter__())
        try:
            return _Conversation(runner, client, user, session, show_passages=show_passages).hold()
        finally:
            runner.run(client.__aexit__(None, None, None))


class _Conversation:
    """The state of a conversation: which session it is, and where it is shown."""

    def __init__(
        self, runner: asyncio.Runner, client: ChatClient, user: str, session: str, *, show_passages: bool
    ) -> None:
        self._runner = runner
        self._client = client
        self._user = user
        self._session = session
        self._show_passages = show_passages
        self._console = Console(highlight=False)

    def hold(self) -> int:
        """Read lines and answer them until the input ends; return the exit code."""
        try:
            self._runner.run(self._greet())
        except ChatError as error:
            return describe.report(error)
        while True:
            try:
                line = self._read()
            except EOFError:
                self._console.print()
                return 0
            except KeyboardInterrupt:
                # At the prompt it drops the line, as shells do.
                self._console.print()
                continue
            if line == "/quit":
                return 0
            if line:
                self._run(self._obey(line))

    def _read(self) -> str:
        # Written by input itself, so that readline knows how wide it is.
        return input("> " if self._console.is_terminal else "").strip()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        try:
            self._runner.run(work)
        except ChatError as error:
            self._dim(f"! {describe.failure(error)}")
        except KeyboardInterrupt:
            self._dim("(cancelled)")

    async def _greet(self) -> None:
        self._dim(f"connected to {self._client.address}; /help lists the commands, Ctrl-D leaves")
        try:
            questions = await self._client.suggested_questions()
        except ChatError as error:
            if error.reason == UNREACHABLE:
                raise
            return  # without suggestions a conversation is still a conversation
        for suggestion in questions[:SHOWN_QUESTIONS]:
            self._dim(f"  {suggestion.question}")

    async def _obey(self, line: str) -> None:
        match line:
            case "/help":
                self._dim(HELP)
            case "/new":
                self._session = ""
                self._dim("a new conversation")
            case "/history":
                await self._list()
            case _ if line.startswith("/"):
                self._dim(f"there is no command {line.split(maxsplit=1)[0]}; /help lists the commands")
            case _:
                await self._answer(line)

    async def _list(self) -> None:
        if not self._session:
            self._dim("nothing was said in this conversation yet")
            return
        messages = []
        async with aclosing(self._client.list_messages(session_id=self._session, page_size=SHOWN_MESSAGES)) as listed:
            async for message in listed:
                messages.append(message)
                if len(messages) == SHOWN_MESSAGES:
                    break
        for message in reversed(messages):
            self._console.print(Text(outline(message)))

    async def _answer(self, question: str) -> None:
        notes: list[str] = []
        events = self._client.chat(question, user_id=self._user, session_id=self._session)
        with MarkdownStream(self._console) as markdown:
            async with aclosing(events):
                async for event in events:
                    match event:
                        case Started():
                            self._session = event.session_id
                        case Retrieval() if self._show_passages:
                            for passage in event.passages:
                                self._dim(f"  {describe.passage(passage)}")
                        case Delta():
                            markdown.add(event.text)
                        case Completed():
                            notes = list(describe.notes(event))
                        case Retrieval():
                            pass
        for note in notes:
            self._dim(f"({note})")

    def _dim(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))
