"""Three servers, DynamoDB and Redis behind Envoy: one service, also when one of the servers dies."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc, history_pb2, history_pb2_grpc
from chat_grpc.client import ChatClient, ChatError, Completed
from tests.support.memvid import Memvid
from tests.support.servers import Several, several_servers
from tests.support.upstream import Exchange, Upstream, saying

pytestmark = pytest.mark.e2e

Status = history_pb2.Message.Status
WHOLE = "half whole"


async def history(channel: grpc.aio.Channel, session: str) -> list[history_pb2.Message]:
    """Return the messages of a session, newest first."""
    request = history_pb2.ListMessagesRequest(session_id=session, page_size=100)
    return list((await history_pb2_grpc.HistoryServiceStub(channel).ListMessages(request)).messages)


async def test_a_session_goes_on_at_any_server(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    questions = 30
    async with several_servers(tmp_path, model, memory) as several:
        session = ""
        for number in range(questions):
            model.answer = saying(f"answer {number}")
            body = {"message": f"question {number}?", "stream": False} | ({"session_id": session} if session else {})
            async with several.http.post("/api/v1/chat", json=body) as answer:
                answered = await answer.json()
                assert (answer.status, answered["message"]) == (200, f"answer {number}")
                session = answered["session_id"]
        async with asyncio.timeout(30):
            while sum(len(server.calls("Chat")) for server in several.servers) < questions:
                await asyncio.sleep(0.02)
        assert all(server.calls("Chat") for server in several.servers)
    assert len(model.chats) == questions
    for number, chat in enumerate(model.chats):
        said = [turn["content"] for turn in chat.messages if turn["role"] != "system"]
        # The last ten exchanges are remembered, CHAT_SESSION_TURNS.
        earlier = [text for n in range(max(0, number - 10), number) for text in (f"question {n}?", f"answer {n}")]
        assert said == [*earlier, f"question {number}?"]


async def test_a_limit_holds_over_all_servers(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    limit = 200
    # In a day: nothing of it comes back within the test.
    async with several_servers(tmp_path, model, memory, CHAT_REST_RATE_LIMIT=f"{limit}/day") as several:

        async def ask(number: int) -> int:
            body = {"message": f"Number {number}?", "stream": False}
            async with several.http.post("/api/v1/chat", json=body) as answer:
                await answer.read()
                return answer.status

        statuses: list[int] = []
        for start in range(0, 400, 40):
            statuses += await asyncio.gather(*(ask(number) for number in range(start, start + 40)))
        allowed = statuses.count(200)
        assert set(statuses) == {200, 429}
        assert abs(allowed - limit) <= limit / 100, allowed
        assert len(model.chats) == allowed
        async with asyncio.timeout(30):
            while sum(len(server.calls("Chat")) for server in several.servers) < len(statuses):
                await asyncio.sleep(0.02)
        for server in several.servers:  # each let some in, and refused some
            assert {call["code"] for call in server.calls("Chat")} == {"OK", "RESOURCE_EXHAUSTED"}


class Client(Protocol):
    """Somebody in a conversation of its own. What happens to it when its server dies is for its kind to say."""

    session: str

    async def ask(self, message: str) -> str:
        """Send a message; return the answer. Raises Lost, and is what it says when the answer is lost."""


class Lost(Exception):
    """The answer was lost, and the client was told so."""


class Direct:
    """A gRPC client that reaches a server without Envoy."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.session = ""
        self._stub: Any = chat_pb2_grpc.ChatServiceStub(channel)

    async def ask(self, message: str) -> str:
        text, completed = "", False
        try:
            async for event in self._stub.Chat(chat_pb2.ChatRequest(message=message, session_id=self.session)):
                text += event.delta.text
                self.session = event.started.session_id or self.session
                completed = event.HasField("completed")
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            raise Lost from None
        assert completed
        return text


class Library:
    """The Python client, through Envoy."""

    def __init__(self, client: ChatClient) -> None:
        self.session = ""
        self._client = client

    async def ask(self, message: str) -> str:
        text = ""
        try:
            async for event in self._client.chat(message, session_id=self.session):
                text += getattr(event, "text", "")
                if isinstance(event, Completed):
                    self.session = event.session_id
        except ChatError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            raise Lost from None
        return text


class Json:
    """A REST client that wants one JSON object."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.session = ""
        self._http = http

    async def ask(self, message: str) -> str:
        body = {"message": message, "stream": False} | ({"session_id": self.session} if self.session else {})
        async with self._http.post("/api/v1/chat", json=body) as answer:
            if answer.status == 503:
                assert answer.headers["retry-after"]
                raise Lost
            assert answer.status == 200
            told = await answer.json()
            self.session = told["session_id"]
            return str(told["message"])


class Events:
    """A REST client that reads server-sent events."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.session = ""
        self._http = http

    async def ask(self, message: str) -> str:
        body = {"message": message} | ({"session_id": self.session} if self.session else {})
        text, kinds = "", []
        try:
            async with self._http.post("/api/v1/chat", json=body) as answer:
                assert answer.status == 200
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        kinds.append(event["type"])
                        text += event.get("content", "")
                        self.session = event.get("session_id", self.session)
        except aiohttp.ClientPayloadError:  # the body breaks off: no HTTP client takes that for an end
            assert "done" not in kinds
            raise Lost from None
        assert kinds[-1] == "done"
        return text


@pytest.fixture
async def several(tmp_path: Path, model: Upstream, memory: Memvid) -> AsyncIterator[Several]:
    async with several_servers(tmp_path, model, memory) as running:
        yield running


async def test_a_server_that_is_killed_takes_nothing_with_it_that_was_completed(
    several: Several, model: Upstream
) -> None:
    go_on = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half ")
        await go_on.wait()
        await exchange.text("whole")
        await exchange.finish()

    killed = several.servers[0]
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(grpc.aio.insecure_channel(several.edge))
        clients: list[Client] = []
        for _ in range(8):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(killed.address))
            library = await stack.enter_async_context(ChatClient(several.edge))
            clients += [Direct(channel), Library(library), Json(several.http), Events(several.http)]

        model.answer = saying("first")
        firsts = await asyncio.gather(*(client.ask(f"First {n}?") for n, client in enumerate(clients)))
        assert set(firsts) == {"first"}
        model.answer = held
        asked = len(model.chats)
        seconds = [asyncio.ensure_future(client.ask(f"Second {n}?")) for n, client in enumerate(clients)]
        async with asyncio.timeout(30):
            while len(model.chats) < asked + len(clients):
                await asyncio.sleep(0.02)
        killed.process.send(signal.SIGKILL)
        await killed.process.wait()

        # The others answer at once, while Envoy has yet to find out.
        model.answer = saying("third")
        others = [Library(await stack.enter_async_context(ChatClient(several.edge))) for _ in range(12)]
        others += [Json(several.http) for _ in range(12)]  # type: ignore[misc]  # both are clients
        assert {await client.ask(f"Other {n}?") for n, client in enumerate(others)} == {"third"}

        go_on.set()
        outcomes = await asyncio.gather(*seconds, return_exceptions=True)
        lost = [client for client, outcome in zip(clients, outcomes, strict=True) if isinstance(outcome, Lost)]
        assert {outcome for outcome in outcomes if not isinstance(outcome, Lost)} == {WHOLE}
        assert {client for client in clients if isinstance(client, Direct)} < set(lost)
        assert len(model.chats) == asked + len(clients) + len(others)  # what was lost was not asked for again

        for client, outcome in zip(clients, outcomes, strict=True):
            second, first = await history(edge, client.session)
            assert (first.status, first.answer) == (Status.STATUS_COMPLETED, "first")
            if not isinstance(outcome, Lost):
                assert (second.status, second.answer) == (Status.STATUS_COMPLETED, WHOLE)
                continue
            async with asyncio.timeout(60):  # other servers take it for alive a little longer
                while second.status == Status.STATUS_PENDING:
                    await asyncio.sleep(0.2)
                    second, _ = await history(edge, client.session)
            assert (second.status, second.error_reason) == (Status.STATUS_INTERRUPTED, "SERVER_DIED")

        # And every conversation goes on, of those who lost an answer too.
        through_envoy = [client for client in clients if not isinstance(client, Direct)]
        assert {await client.ask(f"Third {n}?") for n, client in enumerate(through_envoy)} == {"third"}
