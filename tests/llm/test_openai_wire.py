"""Every way an upstream can answer, seen from a gRPC client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2, types_pb2
from tests.support.fixtures import StartService
from tests.support.service import Service, text_of
from tests.support.upstream import Answer, Exchange, Upstream, saying, sending

Message = history_pb2.Message


async def only_message(service: Service) -> Message:
    messages = await service.messages(user_id="anna")
    assert len(messages) == 1
    return messages[0]


async def test_text_usage_and_finish_reason_arrive(chat_service: Service, model: Upstream) -> None:
    model.answer = saying("They", " are", " kept", ".", reason="length", usage=(12, 4))
    events = await chat_service.ask("Where are messages kept?", user_id="anna")
    assert [event.WhichOneof("event") for event in events[:2]] == ["started", "retrieval"]
    assert text_of(events) == "They are kept."
    completed = events[-1].completed
    assert completed.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert (completed.usage.prompt_tokens, completed.usage.completion_tokens, completed.usage.total_tokens) == (
        12,
        4,
        16,
    )
    assert not completed.usage.estimated
    assert completed.model == "local/test-model"
    assert list(completed.degraded) == []
    kept = await only_message(chat_service)
    assert kept.status == Message.STATUS_COMPLETED
    assert kept.answer == "They are kept."
    assert kept.usage == completed.usage
    assert kept.completed_at.ToDatetime() >= kept.created_at.ToDatetime()


async def test_missing_usage_is_estimated(chat_service: Service, model: Upstream) -> None:
    model.answer = saying("four", "teen", usage=None)
    usage = (await chat_service.ask())[-1].completed.usage
    assert usage.estimated
    assert usage.completion_tokens == 2
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.cost_usd == 0  # a local model is free


async def test_request_on_the_wire(chat_service: Service, model: Upstream) -> None:
    options = chat_pb2.ChatOptions(max_tokens=99, temperature=0.5)
    await chat_service.ask("Where are messages kept?", options=options)
    body = model.chats[0].body
    assert body["model"] == "test-model"
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_tokens"] == 99
    assert body["temperature"] == 0.5
    assert body["messages"][-1] == {"role": "user", "content": "Where are messages kept?"}
    assert "authorization" not in model.chats[0].headers


async def test_key_is_sent_as_bearer_token(start: StartService, model: Upstream) -> None:
    async with start(CHAT_LLM_API_KEY="sk-test") as service:
        await service.ask()
    assert model.chats[0].headers["authorization"] == "Bearer sk-test"


async def test_connection_is_used_again(chat_service: Service, model: Upstream) -> None:
    ports = set()

    async def answer(exchange: Exchange) -> None:
        ports.add(exchange._writer.get_extra_info("peername")[1])
        await saying("ok")(exchange)

    model.answer = answer
    for _ in range(5):
        await chat_service.ask()
    assert len(ports) == 1


def chunks_of(size: int) -> Iterator[bytes]:
    text = ["žluťoučký", "🐎", ""]
    stream = "".join(
        f"data: {json.dumps({'choices': [{'delta': {'content': piece}}]}, ensure_ascii=False)}\r\n\r\n"
        for piece in text
    )
    stream += 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    raw = stream.encode()
    for at in range(0, len(raw), size):
        yield raw[at : at + size]


@pytest.mark.parametrize("size", [1, 3, 17])
async def test_stream_split_anywhere(chat_service: Service, model: Upstream, size: int) -> None:
    model.answer = sending(chunks_of(size))
    assert text_of(await chat_service.ask()) == "žluťoučký🐎"


async def test_each_token_leaves_when_it_arrives(chat_service: Service, model: Upstream) -> None:
    """The upstream sends the next token only once the client holds the one before."""
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for number in range(5):
            await exchange.text(f"t{number} ")
            assert await asyncio.wait_for(seen.get(), 5) == f"t{number} "
        await exchange.finish()

    model.answer = answer
    async for event in chat_service.chat.Chat(chat_pb2.ChatRequest(message="Slowly")):
        if event.HasField("delta"):
            seen.put_nowait(event.delta.text)
    assert model.chats[0].finished


async def half(exchange: Exchange) -> None:
    """Send a part of an answer in several pieces, each by itself: from the third on they are given where they arrive."""
    for piece in ("half", " an", " a", "ns"):
        await exchange.text(piece)
        await asyncio.sleep(0.01)


async def cut(exchange: Exchange) -> None:
    await exchange.start()
    await half(exchange)
    exchange.close()


async def reset(exchange: Exchange) -> None:
    await exchange.start()
    await half(exchange)
    await asyncio.sleep(0.05)
    exchange.reset()


async def no_finish_reason(exchange: Exchange) -> None:
    await exchange.start()
    await half(exchange)
    await exchange.finish(None)


async def broken_json(exchange: Exchange) -> None:
    await exchange.start()
    await half(exchange)
    await exchange.send(b'data: {"choices": [{"delta": {"con\n\n')


async def error_object(exchange: Exchange) -> None:
    await exchange.start()
    await half(exchange)
    await exchange.event({"error": {"message": "SECRET-UPSTREAM-TEXT", "code": 502}})


async def error_finish(exchange: Exchange) -> None:
    await exchange.start()
    await half(exchange)
    await exchange.finish("error")


async def endless_line(exchange: Exchange) -> None:
    await exchange.start()
    await half(exchange)
    for _ in range(40):
        await exchange.send(b"x" * 65536)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (cut, "MODEL_CUT"),
        (reset, "MODEL_CUT"),
        (no_finish_reason, "MODEL_CUT"),
        (broken_json, "MODEL_PROTOCOL"),
        (endless_line, "MODEL_PROTOCOL"),
        (error_object, "MODEL_ERROR"),
        (error_finish, "MODEL_ERROR"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_failure_after_text_is_an_error_and_the_text_is_kept_as_partial(
    chat_service: Service, model: Upstream, answer: Answer, reason: str
) -> None:
    model.answer = answer
    failure = await chat_service.fail(user_id="anna")
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert failure.reason == reason
    assert failure.details["ErrorInfo"].metadata == {"provider": "local", "stage": "stream"}
    assert failure.details["RetryInfo"].retry_delay.ToSeconds() == 2
    assert "SECRET" not in failure.message
    assert text_of(failure.events) == "half an ans"
    kept = await only_message(chat_service)
    assert kept.status == Message.STATUS_PARTIAL
    assert kept.answer == "half an ans"
    assert kept.error_reason == reason
    assert kept.usage.estimated


async def empty(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.finish("stop")


async def not_a_stream(exchange: Exchange) -> None:
    await exchange.start(content_type="application/json")
    await exchange.send(b'{"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}')
    await exchange.end()


def refusing(status: int, **headers: str) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.refuse(status, **headers)

    return answer


@pytest.mark.parametrize(
    ("answer", "reason", "retry"),
    [
        (empty, "MODEL_EMPTY", 2),
        (not_a_stream, "MODEL_CUT", 2),
        (refusing(401), "MODEL_AUTH", 2),
        (refusing(404), "MODEL_UNKNOWN", 2),
        (refusing(429, retry_after="7"), "MODEL_RATE_LIMITED", 7),
        (refusing(500), "MODEL_UNAVAILABLE", 2),
        (refusing(302, location="http://127.0.0.1:1/"), "MODEL_UNAVAILABLE", 2),
    ],
)
async def test_failure_before_text_is_an_error_and_the_question_is_kept_as_failed(
    chat_service: Service, model: Upstream, answer: Answer, reason: str, retry: int
) -> None:
    model.answer = answer
    failure = await chat_service.fail("What now?", user_id="anna")
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert failure.reason == reason
    assert failure.details["RetryInfo"].retry_delay.ToSeconds() == retry
    assert failure.trailers["retry-after"] == str(retry)
    assert "SECRET" not in str(failure)
    kept = await only_message(chat_service)
    assert (kept.status, kept.message, kept.answer) == (Message.STATUS_FAILED, "What now?", "")
    assert kept.error_reason == reason


async def test_model_down(start: StartService) -> None:
    async with start(CHAT_LLM_BASE_URL="http://127.0.0.1:1/v1") as service:
        failure = await service.fail(user_id="anna")
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "MODEL_UNAVAILABLE"
        assert failure.details["ErrorInfo"].metadata == {
            "provider": "local",
            "stage": "connect",
            "tried": "local/test-model",
        }
        assert failure.details["RetryInfo"].retry_delay.ToSeconds() > 0
        assert (await only_message(service)).status == Message.STATUS_FAILED


async def stall_at_once(exchange: Exchange) -> None:
    await exchange.gone.wait()


async def stall_after_head(exchange: Exchange) -> None:
    await exchange.start()
    while not exchange.gone.is_set():
        await exchange.send(b": keep-alive\n\n")  # alive, and still no text
        await asyncio.sleep(0.05)


async def stall_after_text(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half an ans")
    await exchange.gone.wait()


async def comment_after_text(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half an ans")
    while not exchange.gone.is_set():
        await exchange.send(b": keep-alive\n\n")  # whoever passes it on is alive, and the model has stopped talking
        await asyncio.sleep(0.05)


async def talk_for_ever(exchange: Exchange) -> None:
    await exchange.start()
    while not exchange.gone.is_set():
        await exchange.text("on ")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("answer", "limit", "status"),
    [
        (stall_at_once, "first_token", Message.STATUS_FAILED),
        (stall_after_head, "first_token", Message.STATUS_FAILED),
        (stall_after_text, "idle", Message.STATUS_PARTIAL),
        (comment_after_text, "idle", Message.STATUS_PARTIAL),
        (talk_for_ever, "total", Message.STATUS_PARTIAL),
    ],
    ids=["at-once", "after-head", "after-text", "comments-after-text", "for-ever"],
)
async def test_time_limits(
    start: StartService, model: Upstream, answer: Answer, limit: str, status: Message.Status.ValueType
) -> None:
    model.answer = answer
    settings = {
        "CHAT_LLM_FIRST_TOKEN_TIMEOUT": "0.3",
        "CHAT_LLM_IDLE_TIMEOUT": "0.4",
        "CHAT_LLM_TIMEOUT": "0.8",
    }
    async with start(**settings) as service:
        failure = await service.fail(user_id="anna")
        assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert failure.reason == "MODEL_TIMEOUT"
        assert failure.details["ErrorInfo"].metadata["stage"] == limit
        assert (await only_message(service)).status == status
        await asyncio.wait_for(model.chats[0].gone.wait(), 5)


async def test_slow_reader_is_not_taken_for_a_silent_model(start: StartService, model: Upstream) -> None:
    model.answer = saying("first", " second", " third")
    async with start(CHAT_LLM_IDLE_TIMEOUT="0.2") as service:
        events = []
        async for event in service.chat.Chat(chat_pb2.ChatRequest(message="Slowly")):
            events.append(event)
            await asyncio.sleep(0.15)
        assert text_of(events) == "first second third"


@pytest.mark.parametrize("answer", [stall_at_once, stall_after_head, stall_after_text])
async def test_leaving_client_ends_the_upstream_request(chat_service: Service, model: Upstream, answer: Answer) -> None:
    model.answer = answer
    call = chat_service.chat.Chat(chat_pb2.ChatRequest(message="Never mind", user_id="anna"))
    await call.read()
    exchange = await model.next_chat()
    if answer is stall_after_text:
        while not (await call.read()).HasField("delta"):
            pass
    call.cancel()
    await asyncio.wait_for(exchange.gone.wait(), 5)
    async with asyncio.timeout(5):
        while (kept := await only_message(chat_service)).status == Message.STATUS_PENDING:
            await asyncio.sleep(0.01)
    assert kept.status == Message.STATUS_CANCELLED
    assert kept.answer == ("half an ans" if answer is stall_after_text else "")
