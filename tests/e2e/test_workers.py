"""`chat-grpc serve --workers N`: real processes on one port, what becomes of their clients, and how they end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc, history_pb2, history_pb2_grpc
from tests.support.memvid import Memvid
from tests.support.metrics import Scrape, scrape
from tests.support.process import Process, chat_grpc, free_port
from tests.support.service import text_of
from tests.support.upstream import Exchange, Upstream, saying

pytestmark = pytest.mark.e2e

Status = history_pb2.Message.Status
CONNECTIONS = 24
"""As many connections reach each of two or three workers, but for one time in ten thousand or less."""


@dataclass
class Running:
    """A running `chat-grpc serve --workers N`."""

    process: Process
    address: str

    def workers(self) -> list[psutil.Process]:
        """Return its workers, by their numbers."""
        children = psutil.Process(self.process.inner.pid).children()
        return sorted(children, key=lambda child: child.cmdline()[-3])

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return what was logged of an event."""
        logged = [json.loads(line) for line in self.process.output.splitlines() if line.startswith("{")]
        return [line for line in logged if line["event"] == event]


@dataclass
class Client:
    """A client with a connection of its own, in the middle of an answer."""

    channel: grpc.aio.Channel
    user: str
    events: list[chat_pb2.ChatResponse] = field(default_factory=list)
    call: Any = None

    async def begin(self, message: str = "How?", **fields: Any) -> None:
        """Ask, and read up to the first text."""
        self.events = []
        request = chat_pb2.ChatRequest(message=message, user_id=self.user, **fields)
        self.call = chat_pb2_grpc.ChatServiceStub(self.channel).Chat(request)
        async with asyncio.timeout(30):
            while not text_of(self.events):
                self.events.append(await self.call.read())

    async def end(self) -> grpc.StatusCode:
        """Read to the end, and return how it was."""
        async with asyncio.timeout(60):
            try:
                while (event := await self.call.read()) is not grpc.aio.EOF:
                    self.events.append(event)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    async def ask(self, message: str = "How?", **fields: Any) -> chat_pb2.Completed:
        """Ask, and return how the answer ended."""
        await self.begin(message, **fields)
        assert await self.end() is grpc.StatusCode.OK
        return self.events[-1].completed

    async def history(self) -> list[history_pb2.Message]:
        """Return the user's messages, newest first."""
        stub = history_pb2_grpc.HistoryServiceStub(self.channel)
        page = await stub.ListMessages(history_pb2.ListMessagesRequest(user_id=self.user, page_size=100))
        return list(page.messages)


@asynccontextmanager
async def serving(count: int, folder: Path, model: Upstream, memory: Memvid, **environ: str) -> AsyncIterator[Running]:
    port = free_port()
    settings = {
        "CHAT_GRPC_PORT": str(port),
        "CHAT_LLM_PROVIDER": "local",
        "CHAT_LLM_BASE_URL": model.url,
        "CHAT_MEMVID_GRPC_URL": memory.address,
        "CHAT_RATE_LIMIT": "off",
        "CHAT_ADDRESS_RATE_LIMIT": "off",
        "CHAT_CACHE_SECONDS": "0",
        "CHAT_LOG_FORMAT": "json",
        **environ,
    }
    async with chat_grpc("serve", "--workers", str(count), folder=folder, **settings) as process:
        await process.printed("workers serving")
        yield Running(process, f"127.0.0.1:{port}")


@asynccontextmanager
async def clients(running: Running, count: int = CONNECTIONS) -> AsyncIterator[list[Client]]:
    """Connect so often, each time anew."""
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        yield [
            Client(
                await stack.enter_async_context(grpc.aio.insecure_channel(running.address, options)), f"user-{number}"
            )
            for number in range(count)
        ]


class Held:
    """An answer that says "half", and the rest once it is let go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half ")
        await self.go_on.wait()
        await exchange.text("whole")
        await exchange.finish()


async def test_workers_share_the_port_and_all_answer(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with serving(3, tmp_path, model, memory) as running, clients(running) as all_of_them:
        assert len(running.workers()) == 3
        asked = await asyncio.gather(*(client.ask() for client in all_of_them))
        assert len({completed.message_id for completed in asked}) == CONNECTIONS
        assert [
            line["workers"]
            for line in running.lines("limits are counted by each worker for itself; set CHAT_REDIS_URL to share them")
        ] == [3]
        running.process.send(signal.SIGTERM)
        assert await running.process.wait() == 0
        chats = [line for line in running.lines("call") if line["method"] == "chat.v1.ChatService/Chat"]
        assert len(chats) == CONNECTIONS
        assert {line["worker"] for line in chats} == {1, 2, 3}


async def test_any_worker_tells_the_metrics_of_all(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with serving(3, tmp_path, model, memory) as running, clients(running) as all_of_them:
        await asyncio.gather(*(client.ask() for client in all_of_them))
        for client in all_of_them:
            told = await scrape(client.channel)
            assert told("chat_grpc_messages_total", status="completed") == CONNECTIONS
            for number in "123":
                assert told("chat_grpc_messages_total", status="completed", worker=number) > 0
                assert told("chat_grpc_build_info", worker=number) == 1
                assert told("process_resident_memory_bytes", worker=number) > 0
        # One that hears nothing is left out, and holds nobody up for long.
        silent = running.workers()[1]
        silent.suspend()
        told = await scrape_of_the_living(running)
        assert [number for number in "123" if told.has("chat_grpc_build_info", worker=number)] == ["1", "3"]
        silent.resume()


async def scrape_of_the_living(running: Running) -> Scrape:
    """Read the metrics over a connection that has reached a worker that answers."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with asyncio.timeout(120):
        while True:
            async with grpc.aio.insecure_channel(running.address, options) as channel:
                with suppress(TimeoutError):
                    return await asyncio.wait_for(scrape(channel), 10)


async def test_a_session_goes_on_at_any_worker(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with serving(2, tmp_path, model, memory) as running, clients(running) as all_of_them:
        session = ""
        for number, client in enumerate(all_of_them):
            client.user = "anna"
            model.answer = saying(f"answer {number}")
            session = (await client.ask(f"question {number}?", session_id=session)).session_id
        running.process.send(signal.SIGTERM)
        await running.process.wait()
        assert {line["worker"] for line in running.lines("call")} == {1, 2}
    for number, chat in enumerate(model.chats):
        said = [turn["content"] for turn in chat.messages if turn["role"] != "system"]
        earlier = [text for n in range(max(0, number - 10), number) for text in (f"question {n}?", f"answer {n}")]
        assert said == [*earlier, f"question {number}?"]


async def test_a_killed_worker_comes_back_and_the_others_notice_nothing(
    tmp_path: Path, model: Upstream, memory: Memvid
) -> None:
    async with serving(2, tmp_path, model, memory) as running, clients(running) as all_of_them:
        finished = await asyncio.gather(*(client.ask("First?") for client in all_of_them))
        model.answer = held = Held()
        await asyncio.gather(*(client.begin("Second?") for client in all_of_them))
        killed, living = running.workers()
        killed.kill()
        await running.process.printed("a worker serves again")

        # Those of the living worker are pending; those of the dead one are not waited for any more.
        statuses = {client.user: (await client.history())[0].status for client in all_of_them}
        assert set(statuses.values()) == {Status.STATUS_PENDING, Status.STATUS_INTERRUPTED}
        held.go_on.set()
        for client in all_of_them:
            code = await client.end()
            lost = statuses[client.user] == Status.STATUS_INTERRUPTED
            assert code is (grpc.StatusCode.UNAVAILABLE if lost else grpc.StatusCode.OK)
        model.answer = saying("third")
        await asyncio.gather(*(client.ask("Third?") for client in all_of_them))
        for client, first in zip(all_of_them, finished, strict=True):
            third, second, oldest = await client.history()
            assert (oldest.id, oldest.status) == (first.message_id, Status.STATUS_COMPLETED)
            interrupted = statuses[client.user] == Status.STATUS_INTERRUPTED
            assert second.status == (Status.STATUS_INTERRUPTED if interrupted else Status.STATUS_COMPLETED)
            assert second.error_reason == ("SERVER_DIED" if interrupted else "")
            assert third.status == Status.STATUS_COMPLETED

        [ended] = running.lines("a worker ended")
        assert (ended["pid"], ended["fate"]) == (killed.pid, "ended by SIGKILL")
        [again] = running.lines("a worker serves again")
        assert again["number"] == ended["number"] == 1
        assert [worker.pid for worker in running.workers()] == [again["pid"], living.pid]


async def test_a_worker_that_is_told_to_stop_drains_and_comes_back(
    tmp_path: Path, model: Upstream, memory: Memvid
) -> None:
    async with serving(2, tmp_path, model, memory) as running, clients(running) as all_of_them:
        model.answer = held = Held()
        await asyncio.gather(*(client.begin() for client in all_of_them))
        running.workers()[0].terminate()
        await running.process.printed('"draining"')
        held.go_on.set()
        assert [await client.end() for client in all_of_them] == [grpc.StatusCode.OK] * CONNECTIONS
        await running.process.printed("a worker serves again")
        assert running.lines("a worker ended")[0]["fate"] == "exit code 0"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_all(number: signal.Signals, tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with serving(2, tmp_path, model, memory) as running, clients(running) as all_of_them:
        model.answer = held = Held()
        await asyncio.gather(*(client.begin() for client in all_of_them))
        workers = running.workers()
        running.process.send(number)
        async with asyncio.timeout(30):
            while len(running.lines("draining")) < len(workers):
                await asyncio.sleep(0.02)
        held.go_on.set()
        assert [await client.end() for client in all_of_them] == [grpc.StatusCode.OK] * CONNECTIONS
        assert await running.process.wait() == 0
        assert [worker for worker in workers if worker.is_running()] == []


async def test_a_second_signal_ends_all_at_once(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with serving(2, tmp_path, model, memory) as running, clients(running) as all_of_them:
        model.answer = Held()
        await asyncio.gather(*(client.begin() for client in all_of_them))
        workers = running.workers()
        running.process.send(signal.SIGTERM)
        await running.process.printed('"draining"')
        running.process.send(signal.SIGTERM)
        assert await running.process.wait() == 128 + signal.SIGTERM
        assert [worker for worker in workers if worker.is_running()] == []


async def test_a_worker_that_does_not_drain_in_time_is_said_to_have_failed(
    tmp_path: Path, model: Upstream, memory: Memvid
) -> None:
    async with serving(2, tmp_path, model, memory, CHAT_DRAIN_SECONDS="0.5") as running:
        first = running.workers()[0]
        first.suspend()  # it hears no signal but one
        running.process.send(signal.SIGTERM)
        assert await running.process.wait() == 1
        assert [line["pid"] for line in running.lines("killing a worker that has not ended")] == [first.pid]


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells a process of its parent's death on Linux only")
async def test_workers_end_when_their_parent_is_killed(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with serving(2, tmp_path, model, memory) as running:
        workers = running.workers()
        running.process.send(signal.SIGKILL)
        async with asyncio.timeout(30):
            while any(worker.is_running() for worker in workers):
                await asyncio.sleep(0.02)


async def test_a_port_of_somebody_elses_is_not_shared(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # whoever asks could join
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        settings = {"CHAT_GRPC_PORT": str(port), "CHAT_WORKERS": "2"}
        async with chat_grpc("serve", folder=tmp_path, **settings) as process:
            assert await process.wait() == 1
    assert process.output == (
        f"chat-grpc: can't listen on 127.0.0.1:{port}: another process holds the port, or the address is not of this "
        "machine; set CHAT_GRPC_PORT or CHAT_GRPC_HOST\n"
    )


@pytest.mark.parametrize("arguments", [("serve",), ("serve", "--workers", "2")])
async def test_nobody_else_gets_the_port_even_while_no_worker_lives(
    arguments: tuple[str, ...], tmp_path: Path, model: Upstream, memory: Memvid
) -> None:
    async with serving(2, tmp_path, model, memory) as running:
        for worker in running.workers():
            worker.kill()
        port = running.address.rpartition(":")[2]
        async with chat_grpc(*arguments, folder=tmp_path, CHAT_GRPC_PORT=port) as process:
            assert await process.wait() == 1
        assert "can't listen" in process.output
        assert running.process.inner.returncode is None


async def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    settings = {"CHAT_GRPC_PORT": str(free_port()), "CHAT_DATABASE_URL": "sqlite+aiosqlite:///folder.db"}
    async with chat_grpc("serve", "--workers", "3", folder=tmp_path, **settings) as process:
        assert await process.wait() == 1
    assert process.output.count("check CHAT_DATABASE_URL") == 1


async def test_one_worker_has_no_parent(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    settings = {"CHAT_GRPC_PORT": str(free_port()), "CHAT_MEMVID_GRPC_URL": memory.address, "CHAT_WORKERS": "3"}
    async with chat_grpc("serve", "--workers", "1", folder=tmp_path, **settings) as process:
        await process.printed("serving")
        assert psutil.Process(process.inner.pid).children() == []
