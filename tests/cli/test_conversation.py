"""`chat-grpc chat` on a terminal: a pseudo-terminal that the tests type into."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.cli.conftest import HANG_GUARD, Cli, clean_environment
from tests.support.service import Service
from tests.support.upstream import Exchange, Upstream, saying

# The pseudo-terminal becomes the one that Ctrl-C is typed on; stdin is it already.
ON_ITS_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from chat_grpc.cli import main
sys.exit(main())
"""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """What a person sees and types."""

    def __init__(self, process: asyncio.subprocess.Process, screen: int) -> None:
        self.process = process
        self.raw = ""
        self._screen = screen
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(screen, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._screen, 65536)
        except OSError:  # the process has closed its side
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._screen)
        self.raw += data.decode(errors="replace")
        self._news.set()

    @property
    def text(self) -> str:
        return CONTROL.sub("", self.raw)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    async def shows(self, text: str, *, after: int = 0) -> int:
        """Wait until the text is shown; return the position after it."""
        try:
            async with asyncio.timeout(HANG_GUARD):
                while (at := self.text.find(text, after)) < 0:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in {self.text[after:]!r}") from None
        return at + len(text)

    async def ends(self) -> int:
        async with asyncio.timeout(HANG_GUARD):
            return await self.process.wait()


Open = Callable[..., AbstractAsyncContextManager[Terminal]]


@pytest.fixture
def terminal(chat_service: Service, tmp_path: Path) -> Open:
    @asynccontextmanager
    async def start(*arguments: str) -> AsyncIterator[Terminal]:
        screen, keyboard = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ON_ITS_TERMINAL, "chat", "--address", chat_service.address, *arguments),
            cwd=tmp_path,
            env=clean_environment(TERM="xterm", COLUMNS="100", LINES="30"),
            stdin=keyboard,
            stdout=keyboard,
            stderr=keyboard,
            start_new_session=True,
        )
        os.close(keyboard)
        try:
            yield Terminal(process, screen)
        finally:
            asyncio.get_running_loop().remove_reader(screen)
            if process.returncode is None:
                process.kill()
                await process.wait()
            with suppress(OSError):
                os.close(screen)

    return start


async def test_a_conversation(terminal: Open, model: Upstream) -> None:
    async with terminal("--user", "ada") as screen:
        await screen.shows("What is it?")  # a suggested question
        at = await screen.shows("> ")
        screen.type("My name is Ada.\n")
        at = await screen.shows("0.90  Storage › DynamoDB", after=at)
        at = await screen.shows("Hello there.", after=at)
        at = await screen.shows("> ", after=at)
        screen.type("And now?\n")
        at = await screen.shows("Hello there.", after=at)
        at = await screen.shows("> ", after=at)
        assert any("My name is Ada." in turn["content"] for turn in model.chats[-1].messages)

        screen.type("/history\n")
        at = await screen.shows("> My name is Ada.", after=at)
        at = await screen.shows("> And now?", after=at)
        at = await screen.shows("> ", after=at)
        screen.type("/new\n")
        at = await screen.shows("a new conversation", after=at)
        screen.type("Who am I?\n")
        at = await screen.shows("Hello there.", after=at)
        at = await screen.shows("> ", after=at)
        assert not any("My name is Ada." in turn["content"] for turn in model.chats[-1].messages)

        screen.type("/help\n")
        at = await screen.shows("/quit", after=at)
        screen.type("/dance\n")
        at = await screen.shows("there is no command /dance", after=at)
        await screen.shows("> ", after=at)
        screen.type("\x04")  # Ctrl-D
        assert await screen.ends() == 0


async def test_quit_and_no_passages(terminal: Open) -> None:
    async with terminal("--no-passages") as screen:
        await screen.shows("> ")
        screen.type("/history\n")
        await screen.shows("nothing was said")
        screen.type("How?\n")
        await screen.shows("Hello there.")
        screen.type("/quit\n")
        assert await screen.ends() == 0
        assert "Storage" not in screen.text


async def test_text_is_shown_while_it_is_written(terminal: Open, model: Upstream) -> None:
    go_on = asyncio.Event()

    async def in_two_parts(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("The first part.")
        await go_on.wait()
        await exchange.text("\n\nThe second part.")
        await exchange.finish()

    model.answer = in_two_parts
    async with terminal() as screen:
        at = await screen.shows("> ")
        screen.type("How?\n")
        at = await screen.shows("The first part.", after=at)
        go_on.set()
        await screen.shows("The second part.", after=at)


async def test_markdown_is_rendered_and_markup_is_not(terminal: Open, model: Upstream) -> None:
    model.answer = saying("A **bold** word [red]x[/red].\n\n```python\nprint(1)\n\n", "print(2)\n```\n\nThe end.")
    async with terminal() as screen:
        at = await screen.shows("> ")
        screen.type("How?\n")
        await screen.shows("The end.", after=at)
        shown = screen.text[at:]
        assert "A bold word [red]x[/red]." in shown
        assert "**" not in shown
        assert "```" not in shown
        assert "print(2)" in shown


async def test_ctrl_c_ends_one_answer_only(terminal: Open, model: Upstream) -> None:
    hold = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("one moment")
        await hold.wait()

    model.answer = slow
    async with terminal() as screen:
        at = await screen.shows("> ")
        screen.type("How?\n")
        at = await screen.shows("one moment", after=at)
        screen.type("\x03")  # Ctrl-C
        at = await screen.shows("(cancelled)", after=at)
        async with asyncio.timeout(HANG_GUARD):
            await model.chats[-1].gone.wait()
        at = await screen.shows("> ", after=at)
        screen.type("half a line")
        at = await screen.shows("half a line", after=at)
        screen.type("\x03")  # at the prompt it drops the line
        at = await screen.shows("> ", after=at)
        model.answer = saying("Still here.")
        screen.type("And now?\n")
        await screen.shows("Still here.", after=at)
        assert len(model.chats) == 2


async def test_a_failure_does_not_end_the_conversation(terminal: Open, model: Upstream) -> None:
    model.answer = lambda exchange: exchange.refuse(503)
    async with terminal() as screen:
        at = await screen.shows("> ")
        screen.type("How?\n")
        at = await screen.shows("MODEL_UNAVAILABLE", after=at)
        model.answer = saying("Better now.")
        screen.type("And now?\n")
        await screen.shows("Better now.", after=at)


async def test_lines_from_a_file(cli: Cli, chat_service: Service) -> None:
    done = await cli("chat", "--address", chat_service.address, stdin="How?\n/quit\n")
    assert done.code == 0
    assert "Hello there." in done.stdout
    assert "\x1b" not in done.stdout
