"""The whole server behind the real Envoy: how each failure of a part looks to REST clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest

from chat_grpc._gen.chat.v1 import history_pb2
from tests.gateway.edges import running_edge
from tests.support.fixtures import StartService
from tests.support.memvid import Memvid
from tests.support.service import Service
from tests.support.upstream import Answer, Exchange, Upstream, saying

pytestmark = pytest.mark.e2e

CHAT = "/api/v1/chat"
Message = history_pb2.Message


@asynccontextmanager
async def behind_envoy(service: Service) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client of an Envoy in front of a server."""
    port = int(service.address.rpartition(":")[2])
    with TemporaryDirectory() as folder:
        async with (
            running_edge(port, Path(folder)) as edge,
            aiohttp.ClientSession(edge.url, timeout=aiohttp.ClientTimeout(20)) as session,
        ):
            yield session


async def events_of(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    """Read a stream of events to its end."""
    body = (await response.read()).decode()
    return [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line.startswith("data: ")]


async def cut(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half")
    await asyncio.sleep(0.05)
    exchange.close()


async def rubbish(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half")
    await exchange.send(b"data: {{{\n\n")


async def error_object(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half")
    await exchange.event({"error": {"message": "SECRET-UPSTREAM-TEXT"}})


async def stall(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half")
    await exchange.gone.wait()


async def empty(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.finish()


async def refuse(exchange: Exchange) -> None:
    await exchange.refuse(503)


async def silent(exchange: Exchange) -> None:
    await exchange.gone.wait()


CASES = [
    (cut, "half", "MODEL_CUT", 502, Message.STATUS_PARTIAL),
    (saying("half", reason=None), "half", "MODEL_CUT", 502, Message.STATUS_PARTIAL),
    (rubbish, "half", "MODEL_PROTOCOL", 502, Message.STATUS_PARTIAL),
    (error_object, "half", "MODEL_ERROR", 502, Message.STATUS_PARTIAL),
    (stall, "half", "MODEL_TIMEOUT", 504, Message.STATUS_PARTIAL),
    (empty, "", "MODEL_EMPTY", 502, Message.STATUS_FAILED),
    (refuse, "", "MODEL_UNAVAILABLE", 503, Message.STATUS_FAILED),
    (silent, "", "MODEL_TIMEOUT", 504, Message.STATUS_FAILED),
]
SETTINGS = {"CHAT_LLM_FIRST_TOKEN_TIMEOUT": "0.5", "CHAT_LLM_IDLE_TIMEOUT": "0.5", "CHAT_LLM_RETRIES": "0"}


@pytest.mark.parametrize(
    ("answer", "text", "reason", "status", "kept"), CASES, ids=[f"{case[2]}-{case[1] or 'before'}" for case in CASES]
)
async def test_failures_of_the_model(
    start: StartService, model: Upstream, answer: Answer, text: str, reason: str, status: int, kept: int
) -> None:
    model.answer = answer
    async with start(**SETTINGS) as service, behind_envoy(service) as http:
        async with http.post(CHAT, json={"message": "How?"}) as response:
            assert response.status == 200
            first, *middle, last = await events_of(response)
        assert first["type"] == "retrieval"
        assert "".join(event["content"] for event in middle) == text
        assert (last["type"], last["reason"]) == ("error", reason)
        assert last["error"]
        assert "SECRET" not in str(last)
        [message] = await service.messages(session_id=first["session_id"])
        assert (message.status, message.answer, message.error_reason) == (kept, text, reason)

        async with http.post(CHAT, json={"message": "How?", "stream": False}) as response:
            body = await response.json()
            assert response.status == status
            assert "SECRET" not in str(body)
            assert body["message"]
            assert any(detail.get("reason") == reason for detail in body["details"])
            assert response.headers["retry-after"] == "2"


async def test_fallback_before_the_first_text(start: StartService, model: Upstream) -> None:
    model.answer = refuse
    async with (
        start(CHAT_LLM_RETRIES="0", CHAT_LLM_FALLBACK_EXTRACTIVE="true") as service,
        behind_envoy(service) as http,
        http.post(CHAT, json={"message": "How do I keep messages in DynamoDB?", "stream": False}) as response,
    ):
        body = await response.json()
        assert response.status == 200
        assert body["model"].startswith("extractive/")
        assert body["degraded"] == ["llm"]
        assert "CHAT_DATABASE_URL" in body["content"]


Leave = Callable[[aiohttp.ClientSession], Awaitable[None]]


async def close_in_the_stream(http: aiohttp.ClientSession) -> None:
    response = await http.post(CHAT, json={"message": "Never mind"})
    async for line in response.content:
        if b"retrieval" in line:
            break
    await asyncio.sleep(0.1)
    response.close()


async def close_a_json_request(http: aiohttp.ClientSession) -> None:
    with pytest.raises(TimeoutError):
        await http.post(CHAT, json={"message": "Never mind", "stream": False}, timeout=aiohttp.ClientTimeout(0.5))


@pytest.mark.parametrize("leave", [close_in_the_stream, close_a_json_request])
@pytest.mark.parametrize("answer", [silent, stall], ids=["before-text", "mid-stream"])
async def test_a_client_that_leaves_ends_the_upstream_request(
    start: StartService, model: Upstream, leave: Leave, answer: Answer
) -> None:
    model.answer = answer
    async with start() as service, behind_envoy(service) as http:
        await leave(http)
        exchange = await model.next_chat()
        await asyncio.wait_for(exchange.gone.wait(), 5)
        async with asyncio.timeout(5):
            while service.parts.conversation.working:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("leave", [close_a_json_request])
async def test_a_client_that_leaves_while_memvid_is_asked(
    start: StartService, model: Upstream, memory: Memvid, leave: Leave
) -> None:
    memory.hold = asyncio.Event()
    async with start() as service, behind_envoy(service) as http:
        await leave(http)
        await asyncio.wait_for(memory.left.wait(), 5)
    assert model.chats == []


async def test_tokens_arrive_one_by_one_as_a_slow_upstream_sends_them(start: StartService, model: Upstream) -> None:
    """Each token is sent only once the client has the one before, and some time after it."""
    seen: asyncio.Queue[str] = asyncio.Queue()
    sent: list[float] = []
    arrived: list[float] = []
    clock = asyncio.get_running_loop().time

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for number in range(6):
            sent.append(clock())
            await exchange.text(f"t{number}")
            assert await asyncio.wait_for(seen.get(), 10) == f"t{number}"
            await asyncio.sleep(0.05)
        await exchange.finish()

    model.answer = answer
    async with (
        start() as service,
        behind_envoy(service) as http,
        http.post(CHAT, json={"message": "Slowly"}) as response,
    ):
        async for line in response.content:
            if line.startswith(b"data: ") and b'"token"' in line:
                arrived.append(clock())
                seen.put_nowait(json.loads(line[6:])["content"])
    assert len(arrived) == len(sent) == 6
    # Every token was there before the next one had been sent, so nothing was held back.
    assert all(here < later for here, later in zip(arrived, sent[1:], strict=False))


async def test_cache_and_names_over_rest(start: StartService, model: Upstream) -> None:
    async with start() as service, behind_envoy(service) as http:

        async def ask(message: str, **headers: str) -> tuple[int, dict[str, Any]]:
            body = {"message": message, "stream": False}
            async with http.post(CHAT, json=body, headers=headers) as response:
                assert "x-request-id" in response.headers
                return response.status, await response.json()

        _, first = await ask("How?")
        _, second = await ask("How?")
        assert (first["cached"], second["cached"]) == (False, True)
        assert first["id"] != second["id"]
        named = {"x-request-id": "mine-1"}
        _, one = await ask("Where?", **named)
        _, again = await ask("Where?", **named)
        assert again["id"] == one["id"]
        status, refused = await ask("Who?", **named)
        assert status == 409
        assert any(detail.get("reason") == "REQUEST_ID_REUSED" for detail in refused["details"])
    assert len(model.chats) == 2
