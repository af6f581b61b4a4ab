"""The answer path over llama.cpp: what the scripted upstream shows, shown once more by a model that really writes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2, types_pb2
from tests.gateway.edges import running_edge
from tests.support.fixtures import StartService
from tests.support.process import Process, chat_grpc, free_port
from tests.support.service import Service, failure_of, text_of

pytestmark = pytest.mark.e2e

HANG = 60
STORY = "Tell me a very long story about a lighthouse keeper and the sea."
Message = history_pb2.Message


@dataclass
class Llama:
    """A running llama.cpp server with the packaged model."""

    process: Process
    url: str

    async def works(self) -> bool:
        """Tell whether it writes just now: nothing else makes it use a processor."""
        process = psutil.Process(self.process.inner.pid)
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(0.3)
        return sum(process.cpu_times()[:2]) - before > 0.1

    async def rests(self) -> None:
        """Return once it writes no more."""
        async with asyncio.timeout(HANG):
            while await self.works():
                pass


@asynccontextmanager
async def running_llama(folder: Path) -> AsyncIterator[Llama]:
    port = free_port()
    async with chat_grpc("llama", "--port", str(port), folder=folder) as process:
        await process.printed("serving", seconds=HANG)
        yield Llama(process, f"http://127.0.0.1:{port}/v1")


@pytest.fixture
async def llama(tmp_path: Path) -> AsyncIterator[Llama]:
    async with running_llama(tmp_path) as running:
        yield running


@pytest.fixture
async def service(start: StartService, llama: Llama) -> AsyncIterator[Service]:
    settings = {"CHAT_LLM_BASE_URL": llama.url, "CHAT_LLM_MODEL": "local", "CHAT_LLM_FIRST_TOKEN_TIMEOUT": "60"}
    async with start(**settings) as running:
        yield running


@asynccontextmanager
async def behind_envoy(service: Service, folder: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with (
        running_edge(int(service.address.rpartition(":")[2]), folder) as edge,
        aiohttp.ClientSession(edge.url, timeout=aiohttp.ClientTimeout(HANG)) as session,
    ):
        yield session


async def status_of(service: Service, user_id: str = "anna") -> Any:
    """Return the only message of a user once it has ended."""
    async with asyncio.timeout(HANG):
        while True:
            messages = await service.messages(user_id=user_id)
            if messages and messages[0].status != Message.STATUS_PENDING:
                [message] = messages
                return message
            await asyncio.sleep(0.05)


async def test_a_whole_answer_is_counted_kept_and_cached(service: Service, llama: Llama) -> None:
    options = chat_pb2.ChatOptions(max_tokens=24)
    events = await service.ask("What is the sea?", user_id="anna", options=options)
    done = events[-1].completed
    assert text_of(events)
    assert done.model == "local/local"
    assert done.finish_reason in {types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH}
    assert 0 < done.usage.completion_tokens <= 24
    assert done.usage.prompt_tokens > 0
    assert not done.usage.estimated, "llama.cpp counts by itself"
    assert (await status_of(service)).answer == text_of(events)

    llama.process.send(signal.SIGSTOP)  # from here on it can answer nothing
    try:
        again = await service.ask("What is the sea?", options=options)
    finally:
        llama.process.send(signal.SIGCONT)
    assert again[-1].completed.cached
    assert text_of(again) == text_of(events)


async def test_the_length_that_was_asked_for_is_told_as_the_reason(service: Service) -> None:
    events = await service.ask(STORY, options=chat_pb2.ChatOptions(max_tokens=5))
    assert events[-1].completed.finish_reason == types_pb2.FINISH_REASON_LENGTH


async def test_equal_requests_share_what_it_writes(service: Service) -> None:
    options = chat_pb2.ChatOptions(max_tokens=48)
    first, second = await asyncio.gather(*(service.ask(STORY, options=options) for _ in range(2)))
    assert text_of(first) == text_of(second)
    assert sorted(events[-1].completed.cached for events in (first, second)) == [False, True]


async def leave_grpc_in_the_stream(service: Service, _: Path) -> None:
    call = service.chat.Chat(
        chat_pb2.ChatRequest(message=STORY, user_id="anna", options=chat_pb2.ChatOptions(max_tokens=4000))
    )
    async for event in call:
        if event.HasField("delta"):
            break
    call.cancel()


async def leave_grpc_by_deadline(service: Service, _: Path) -> None:
    request = chat_pb2.ChatRequest(message=STORY, user_id="anna", options=chat_pb2.ChatOptions(max_tokens=4000))
    with pytest.raises(Exception, match="Deadline"):
        async for _event in service.chat.Chat(request, timeout=1.5):
            pass


async def leave_rest_in_the_stream(service: Service, folder: Path) -> None:
    async with behind_envoy(service, folder) as http:
        response = await http.post("/api/v1/chat", json={"message": STORY})
        async for line in response.content:
            if b'"token"' in line:
                break
        response.close()


async def leave_rest_that_waits_for_json(service: Service, folder: Path) -> None:
    async with behind_envoy(service, folder) as http:
        with pytest.raises(TimeoutError):
            await http.post("/chat", json={"content": STORY, "user_id": "anna"}, timeout=aiohttp.ClientTimeout(1.5))


@pytest.mark.parametrize(
    "leave",
    [leave_grpc_in_the_stream, leave_grpc_by_deadline, leave_rest_in_the_stream, leave_rest_that_waits_for_json],
)
async def test_a_client_that_leaves_makes_it_stop(
    start: StartService, llama: Llama, tmp_path: Path, leave: Callable[[Service, Path], Awaitable[None]]
) -> None:
    settings = {"CHAT_LLM_BASE_URL": llama.url, "CHAT_LLM_MODEL": "local", "CHAT_LLM_MAX_TOKENS": "4000"}
    async with start(**settings) as service:
        await leave(service, tmp_path)
        await llama.rests()  # 4,000 tokens would take it half a minute and more
        if leave is not leave_rest_in_the_stream:  # API B names no user
            message = await status_of(service)
            assert message.status == Message.STATUS_CANCELLED
            assert message.usage.estimated
        assert llama.process.inner.returncode is None


async def test_its_death_in_the_middle_is_told_and_the_next_one_answers(
    start: StartService, llama: Llama, tmp_path: Path
) -> None:
    settings = {
        "CHAT_LLM_BASE_URL": llama.url,
        "CHAT_LLM_MODEL": "local",
        "CHAT_LLM_MAX_TOKENS": "4000",
        "CHAT_LLM_RETRIES": "0",
        "CHAT_LLM_FALLBACK_EXTRACTIVE": "true",
    }
    async with start(**settings) as service:
        call = service.chat.Chat(chat_pb2.ChatRequest(message=STORY, user_id="anna"))
        said = ""
        async for event in call:
            said += event.delta.text
            if len(said) > 40:
                break
        llama.process.send(signal.SIGKILL)
        failure = await failure_of(call)
        said += text_of(failure.events)
        assert failure.reason == "MODEL_CUT"
        message = await status_of(service)
        assert message.status == Message.STATUS_PARTIAL
        assert message.error_reason == "MODEL_CUT"
        assert message.answer == said

        # It is not there any more: passages are quoted in its place, and the answer says so.
        events = await service.ask("How?")
        assert events[-1].completed.model.startswith("extractive/")
        assert list(events[-1].completed.degraded) == [types_pb2.COMPONENT_LLM]
