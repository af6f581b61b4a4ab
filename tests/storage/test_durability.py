"""What a client saw as completed is in the history, once, however often the server is killed.

Two servers, each on a database file of its own, are killed (SIGKILL) again and
again at moments that a seed chooses, most of them under load, some while they
start. Each restart is asked, over gRPC, for what was said before.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc, history_pb2, history_pb2_grpc
from tests.support.process import ROOT, free_port, serving
from tests.support.upstream import Exchange, upstream

ROUNDS = 200
LANES = 2
"""Servers at a time: what one waits for its start, another uses."""
CLIENTS = 8
SEED = 20_261_122
LONGEST_LOAD = 0.3
LONGEST_START = 0.6
"""Seconds after which the latest kill comes: under load, and while it starts (it takes about half a second)."""
HANG_GUARD = 900

Status = history_pb2.Message.Status


@dataclass
class Asked:
    """A request, and what its client saw: the answer's text, and the message's id once it was completed."""

    request_id: str
    text: str = ""
    message_id: str = ""


@dataclass
class Lane:
    """One database, the server on it, and what its clients saw, by user; each round has a user of its own."""

    folder: Path
    upstream: str
    chance: random.Random
    port: int = field(default_factory=free_port)
    seen: dict[str, list[Asked]] = field(default_factory=dict)
    kills_while_starting: int = 0

    @property
    def address(self) -> str:
        """Where the server listens."""
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def server(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start the server; leave it killed."""
        # Not measured for coverage: a process that is killed reports nothing, and would start at half the speed.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CHAT_", "COV"))}
        settings = {
            "CHAT_GRPC_PORT": str(self.port),
            "CHAT_DATABASE_URL": f"sqlite+aiosqlite:///{self.folder}/chat.db",
            "CHAT_LLM_PROVIDER": "local",
            "CHAT_LLM_BASE_URL": self.upstream,
            "CHAT_LLM_MODEL": "test-model",
            "CHAT_MEMVID_GRPC_URL": "127.0.0.1:9",
            "CHAT_RATE_LIMIT": "off",
            "CHAT_ADDRESS_RATE_LIMIT": "off",
            "CHAT_MAX_STREAMS_PER_USER": "100",
        }
        with (self.folder / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "chat_grpc", "serve"),
                cwd=self.folder,
                env=clean | {"PYTHONPATH": str(ROOT)} | settings,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            assert await process.wait() == -signal.SIGKILL, (self.folder / "log").read_text(encoding="utf-8")

    async def kill_under_load(self, number: int) -> None:
        """Ask with all clients until the server dies."""
        user = f"round-{number}"
        asked: list[Asked] = []
        async with grpc.aio.insecure_channel(self.address) as channel:
            async with self.server():
                await serving(self.address)
                await self.check_latest(channel)
                self.seen[user] = asked
                clients = [asyncio.ensure_future(ask_on(channel, user, client, asked)) for client in range(CLIENTS)]
                await asyncio.sleep(self.chance.uniform(0, LONGEST_LOAD))
            outcomes = await asyncio.gather(*clients, return_exceptions=True)
        codes = {error.code() if isinstance(error, grpc.aio.AioRpcError) else error for error in outcomes}
        assert codes == {grpc.StatusCode.UNAVAILABLE}

    async def kill_while_starting(self) -> None:
        """Start the server and kill it before, or soon after, it serves."""
        async with self.server():
            await asyncio.sleep(self.chance.uniform(0, LONGEST_START))
        self.kills_while_starting += 1

    async def check_latest(self, channel: grpc.aio.Channel) -> None:
        """Check what the last round's clients saw, and ask again for what they did not see the end of."""
        if not self.seen:
            return
        user, asked = list(self.seen.items())[-1]
        await check(channel, user, asked)
        unfinished = [one for one in asked if not one.message_id]
        for one in unfinished:
            one.text = ""
        await asyncio.gather(*(ask(channel, user, one) for one in unfinished))
        assert [one for one in asked if not one.message_id] == []
        await check(channel, user, asked)

    async def check_all(self) -> None:
        """Check what was seen in all rounds."""
        async with self.server(), grpc.aio.insecure_channel(self.address) as channel:
            await serving(self.address)
            await self.check_latest(channel)
            for user, asked in self.seen.items():
                await check(channel, user, asked)
        with sqlite3.connect(self.folder / "chat.db") as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def ask_on(channel: grpc.aio.Channel, user: str, client: int, asked: list[Asked]) -> None:
    """Ask one question after another, until the server is gone."""
    for number in itertools.count():
        one = Asked(f"{user}-{client}-{number}")
        asked.append(one)
        await ask(channel, user, one)


async def ask(channel: grpc.aio.Channel, user: str, one: Asked) -> None:
    """Send a request, and note what comes."""
    call = chat_pb2_grpc.ChatServiceStub(channel).Chat(
        chat_pb2.ChatRequest(
            message=f"What is {one.request_id}?",
            user_id=user,
            request_id=one.request_id,
            options=chat_pb2.ChatOptions(retrieval=False),
        )
    )
    async for event in call:
        if event.HasField("delta"):
            one.text += event.delta.text
        elif event.HasField("completed"):
            one.message_id = event.completed.message_id


async def history(channel: grpc.aio.Channel, user: str) -> list[history_pb2.Message]:
    """Return all messages of a user."""
    messages: list[history_pb2.Message] = []
    token = ""
    while True:
        page = await history_pb2_grpc.HistoryServiceStub(channel).ListMessages(
            history_pb2.ListMessagesRequest(user_id=user, page_size=100, page_token=token)
        )
        messages += page.messages
        token = page.next_page_token
        if not token:
            return messages


async def check(channel: grpc.aio.Channel, user: str, asked: list[Asked]) -> None:
    """Check that all that was seen as completed is in the history, and nothing twice."""
    messages = await history(channel, user)
    by_id = {message.id: message for message in messages}
    assert len(by_id) == len(messages)
    for one in asked:
        if one.message_id:
            kept = by_id[one.message_id]
            assert (kept.status, kept.answer, kept.request_id) == (Status.STATUS_COMPLETED, one.text, one.request_id)
    completed = Counter(message.request_id for message in messages if message.status == Status.STATUS_COMPLETED)
    assert [request_id for request_id, count in completed.items() if count > 1] == []
    assert completed.keys() <= {one.request_id for one in asked}
    assert {message.status for message in messages} <= {Status.STATUS_COMPLETED, Status.STATUS_INTERRUPTED}


async def answer(exchange: Exchange) -> None:
    """Answer each question in words of its own."""
    await exchange.start()
    await exchange.text("You ask: ", exchange.messages[-1]["content"], " I answer.")
    await exchange.finish()


async def run(lane: Lane, rounds: range) -> None:
    """Kill a server in each of the rounds, and look at all of it in the end."""
    for number in rounds:
        if number % 10 == 9:
            await lane.kill_while_starting()
        else:
            await lane.kill_under_load(number)
    await lane.check_all()


@pytest.mark.e2e
async def test_nothing_that_was_completed_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    async with upstream() as model:
        model.answer = answer
        lanes = []
        for number in range(LANES):
            folder = tmp_path / str(number)
            folder.mkdir()
            lanes.append(Lane(folder, model.url, random.Random(SEED + number)))  # noqa: S311 (no secret)
        share = ROUNDS // LANES
        async with asyncio.timeout(HANG_GUARD):
            await asyncio.gather(
                *(run(lane, range(number * share, (number + 1) * share)) for number, lane in enumerate(lanes))
            )
    completed = sum(len(asked) for lane in lanes for asked in lane.seen.values())
    print(f"{ROUNDS} kills, seed {SEED}: {completed} messages completed, none lost, none twice")  # noqa: T201 (pytest -s shows it)
    assert sum(lane.kills_while_starting for lane in lanes) == ROUNDS // 10
    assert completed >= CLIENTS * (ROUNDS - ROUNDS // 10)
