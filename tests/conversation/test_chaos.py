"""Thousands of chats while everything fails at random: each ends in one way, and everybody agrees which.

The seed is fixed, so a failure can be looked at again; CHAOS_CHATS and CHAOS_SEED choose another run.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2
from tests.support.fixtures import StartService
from tests.support.memvid import Memvid
from tests.support.service import Service
from tests.support.upstream import Answer, Exchange, Upstream

Message = history_pb2.Message

CHATS = int(os.environ.get("CHAOS_CHATS", "10000"))
SEED = int(os.environ.get("CHAOS_SEED", "20261122"))
CLIENTS = 50
QUESTIONS = 400
"""Fewer than chats, so that the cache and single flight take part."""

pytestmark = pytest.mark.e2e


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def cut(exchange: Exchange) -> None:
    exchange.close()


async def no_reason(exchange: Exchange) -> None:
    await exchange.finish(None)


async def no_usage(exchange: Exchange) -> None:
    await exchange.finish(usage=None)


async def rubbish(exchange: Exchange) -> None:
    await exchange.send(b"data: {{{\n\n")


async def error_object(exchange: Exchange) -> None:
    await exchange.event({"error": {"message": "no"}})


# By name: how often, whether text comes first, and how it ends.
WAYS: dict[str, tuple[int, bool, Answer]] = {
    "fine": (40, True, Exchange.finish),
    "uncounted": (10, True, no_usage),
    "slow": (15, True, Exchange.finish),
    "refuse": (6, False, Exchange.finish),
    "cut": (5, True, cut),
    "reset": (4, True, reset),
    "no-reason": (4, True, no_reason),
    "empty": (4, False, Exchange.finish),
    "rubbish": (4, True, rubbish),
    "error": (4, True, error_object),
    "at-once": (4, False, reset),
}


class Chaos:
    """An upstream that does something else each time."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 (chance that can be repeated)
        self.ways: Counter[str] = Counter()

    async def __call__(self, exchange: Exchange) -> None:
        way = self._random.choices(tuple(WAYS), [weight for weight, _, _ in WAYS.values()])[0]
        self.ways[way] += 1
        _, pieces, end = WAYS[way]
        if way == "refuse":
            await exchange.refuse(self._random.choice((400, 401, 429, 500, 503)))
            return
        if way != "at-once":
            await exchange.start()
        for number in range(self._random.randint(1, 6) if pieces else 0):
            await exchange.text(f"t{number} ")
            if way == "slow":
                await asyncio.sleep(self._random.random() * 0.02)
        await end(exchange)


class Seen:
    """What one client saw of one chat."""

    def __init__(self) -> None:
        self.message_id = ""
        self.text = ""
        self.end = ""
        self.reason = ""


async def one_chat(service: Service, chance: random.Random, number: int) -> Seen:
    """Ask something; perhaps leave early, perhaps with a deadline."""
    seen = Seen()
    leave_after = chance.choice((None, None, None, 0, 1, 2, 3))
    call = service.chat.Chat(
        chat_pb2.ChatRequest(
            message=f"question {chance.randrange(QUESTIONS)}",
            user_id="chaos",
            request_id=f"r{number}",
            options=chat_pb2.ChatOptions(skip_cache=chance.random() < 0.3),
        ),
        timeout=chance.choice((None, None, 5, 0.01)),
    )
    events = 0
    try:
        async for event in call:
            if event.HasField("started"):
                seen.message_id = event.started.message_id
            seen.text += event.delta.text
            if event.HasField("completed"):
                assert not seen.end, "completed twice"
                seen.end = "completed"
            events += 1
            if leave_after is not None and events > leave_after and not seen.end:
                call.cancel()
                seen.end = "left"
                break
    except asyncio.CancelledError:
        seen.end = "left"
    except grpc.aio.AioRpcError as error:
        assert not seen.end, "failed after it was completed"
        details = dict(error.trailing_metadata() or ())
        if "grpc-status-details-bin" in details:
            seen.end = "failed"
            seen.reason = error.code().name
        else:  # its own deadline passed, before the server's answer came
            seen.end = "left" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else f"unexplained {error.code()}"
    return seen


async def test_every_chat_ends_in_exactly_one_way_and_the_history_agrees(
    start: StartService, model: Upstream, memory: Memvid
) -> None:
    model.answer = chaos = Chaos(SEED)
    settings = {
        "CHAT_LLM_FIRST_TOKEN_TIMEOUT": "2",
        "CHAT_LLM_RETRIES": "0",
        "CHAT_LLM_BREAKER_FAILURES": "1000",
        "CHAT_RATE_LIMIT": "off",
        "CHAT_ADDRESS_RATE_LIMIT": "off",
        "CHAT_MAX_STREAMS_PER_USER": "1000",
    }
    async with start(**settings) as service:
        before = asyncio.all_tasks()
        numbers = iter(range(CHATS))
        chance = random.Random(SEED + 1)  # noqa: S311 (chance that can be repeated)
        seen: list[Seen] = []

        async def client() -> None:
            for number in numbers:
                seen.append(await one_chat(service, chance, number))  # noqa: PERF401 (clients share the numbers)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        async with asyncio.timeout(30):
            while service.parts.conversation.working:
                await asyncio.sleep(0.01)
        kept = {message.id: message async for message in whole_history(service)}

        ends = Counter(each.end for each in seen)
        assert sum(ends.values()) == CHATS
        assert set(ends) == {"completed", "failed", "left"}, ends
        for each in seen:
            message = kept.pop(each.message_id, None)
            if message is None:
                assert each.end != "completed"
                assert not each.text
                continue
            check(each, message)
        # What is left was begun for clients that left before they heard of it.
        assert {message.status for message in kept.values()} <= {
            Message.STATUS_CANCELLED,
            Message.STATUS_COMPLETED,
            Message.STATUS_FAILED,
            Message.STATUS_PARTIAL,
        }
        async with asyncio.timeout(10):
            while not all(exchange.finished or exchange.gone.is_set() for exchange in waiting(model)):
                await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while [task for task in asyncio.all_tasks() - before if not is_idle(task)]:
                await asyncio.sleep(0.05)
        assert min(chaos.ways.values()) > 0
        assert len(service.parts.conversation._flights) == 0


def is_idle(task: asyncio.Task[Any]) -> bool:
    """Tell whether a task only waits for the next request: grpc.aio's, or the upstream's."""
    return any(name in repr(task) for name in ("AioServer._request_", "upstream.py"))


def check(seen: Seen, message: Any) -> None:
    """Hold what the history says against what the client saw."""
    if seen.end == "completed":
        assert message.status == Message.STATUS_COMPLETED, (seen.end, message)
        assert message.answer == seen.text
        assert message.usage.total_tokens > 0
    elif seen.end == "failed":
        assert message.status in (Message.STATUS_FAILED, Message.STATUS_PARTIAL), message
        assert message.error_reason
        assert message.answer == seen.text
    else:
        # Who left may have done so when the answer was done, or had failed, already.
        assert message.status != Message.STATUS_PENDING
        assert message.answer.startswith(seen.text)


def waiting(model: Upstream) -> list[Exchange]:
    """Return the exchanges whose outcome must be known: not those that the upstream itself broke off."""
    return [exchange for exchange in model.chats if not exchange.broken]


async def whole_history(service: Service) -> Any:
    """Yield every message."""
    token = ""
    while True:
        page = await service.history.ListMessages(
            history_pb2.ListMessagesRequest(user_id="chaos", page_size=100, page_token=token)
        )
        for message in page.messages:
            yield message
        token = page.next_page_token
        if not token:
            return
