"""The official Python SDK holds conversations with this service, and raises the exceptions that its users know."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from chat_grpc.conversation.system_prompt import BUILT_IN
from tests.gateway.openai.conftest import Edge, StartEdge
from tests.support.memvid import Memvid
from tests.support.service import Service
from tests.support.upstream import Exchange, Upstream, saying

pytestmark = pytest.mark.e2e

SESSION = "7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10"
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How?"}]


def turns(exchange: Exchange) -> list[tuple[str, str]]:
    """Return what the model was sent after the system prompt."""
    return [(said["role"], said["content"]) for said in exchange.messages[1:]]


def extras(answer: Any) -> dict[str, Any]:
    """Return what this service adds to OpenAI's form."""
    found: dict[str, Any] = answer.chat_grpc
    return found


async def stall(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half")
    await exchange.gone.wait()


async def silent(exchange: Exchange) -> None:
    await exchange.gone.wait()


async def cut(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half")
    await asyncio.sleep(0.05)
    exchange.close()


async def test_a_conversation_of_several_turns(running: Edge, model: Upstream, memory: Memvid) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Answer like a pirate."},
        {"role": "user", "content": "How do I keep messages?"},
    ]

    def converse() -> list[Any]:
        answers = []
        with openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0, timeout=60) as client:
            for text, question in (("Arr, set it.", "And where?"), ("In the hold.", "Why?"), ("Because.", "")):
                model.answer = saying(text[:3], text[3:], usage=(40, 5))
                answer = client.chat.completions.create(model="test-model", messages=messages, temperature=0.5)
                answers.append(answer)
                said = answer.choices[0].message.content
                messages.append({"role": "assistant", "content": said})
                messages.append({"role": "user", "content": question})
        return answers

    first, second, third = await asyncio.to_thread(converse)

    assert [answer.choices[0].message.content for answer in (first, second, third)] == [
        "Arr, set it.",
        "In the hold.",
        "Because.",
    ]
    assert first.object == "chat.completion"
    assert first.id.startswith("chatcmpl-")
    assert first.model == "test-model"
    assert first.choices[0].finish_reason == "stop"
    assert first.choices[0].message.role == "assistant"
    assert (first.usage.prompt_tokens, first.usage.completion_tokens, first.usage.total_tokens) == (40, 5, 45)
    assert extras(first)["model"] == "local/test-model"
    assert extras(first)["degraded"] == []
    assert [passage["title"] for passage in extras(first)["passages"]] == [title for title, _ in memory.passages]
    assert len({first.id, second.id, third.id}) == 3

    # What reached the model: the service's rules, the caller's, the passages; what was said before; the question.
    system = model.chats[0].messages[0]["content"]
    assert system.startswith(BUILT_IN)
    assert BUILT_IN in system.partition("Answer like a pirate.")[0]
    assert "<passages>" in system.partition("Answer like a pirate.")[2]
    assert memory.passages[0][1] in system
    assert turns(model.chats[2]) == [
        ("user", "How do I keep messages?"),
        ("assistant", "Arr, set it."),
        ("user", "And where?"),
        ("assistant", "In the hold."),
        ("user", "Why?"),
    ]
    assert [chat.body["temperature"] for chat in model.chats] == [0.5] * 3
    # And what memvid was asked: the last message alone.
    assert [request.question for request in memory.requests] == ["How do I keep messages?", "And where?", "Why?"]


async def test_a_stream_of_the_synchronous_client(running: Edge) -> None:
    def read() -> list[str]:
        with openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0, timeout=60) as client:
            stream = client.chat.completions.create(model="default", messages=ASKED, stream=True)
            return [chunk.choices[0].delta.content or "" for chunk in stream]

    assert "".join(await asyncio.to_thread(read)) == "Hello there."


async def test_a_stream_of_the_asynchronous_client(running: Edge, model: Upstream, memory: Memvid) -> None:
    async with running.client() as client:
        stream = await client.chat.completions.create(
            model="test-model", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
        assert stream.response.headers["content-type"] == "text/event-stream"
        chunks = [chunk async for chunk in stream]

    assert {(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "test-model", "chat.completion.chunk")
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    *written, counted = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in written) == "Hello there."
    assert [chunk.choices[0].finish_reason for chunk in written] == [None] * (len(written) - 1) + ["stop"]
    assert [chunk.usage for chunk in written] == [None] * len(written)
    assert counted.choices == []
    assert counted.usage is not None
    assert (counted.usage.prompt_tokens, counted.usage.completion_tokens, counted.usage.total_tokens) == (7, 3, 10)
    assert len(extras(chunks[0])["passages"]) == len(memory.passages)
    assert extras(written[-1]) == {"model": "local/test-model", "cached": False, "degraded": []}


async def test_tokens_arrive_one_by_one(running: Edge, model: Upstream) -> None:
    """Each is sent only once the client has the one before."""
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for number in range(6):
            await exchange.text(f"t{number}")
            assert await asyncio.wait_for(seen.get(), 30) == f"t{number}"
        await exchange.finish()

    model.answer = answer
    async with running.client() as client:
        stream = await client.chat.completions.create(model="default", messages=ASKED, stream=True)
        async for chunk in stream:
            if text := chunk.choices[0].delta.content:
                seen.put_nowait(text)
    assert model.chats[0].finished


async def test_the_stream_helper_of_the_sdk(running: Edge) -> None:
    async with running.client() as client, client.chat.completions.stream(model="default", messages=ASKED) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_completion()
    assert "content.delta" in kinds
    assert whole.choices[0].message.content == "Hello there."


@pytest.mark.parametrize("answer", [stall, silent], ids=["mid-stream", "before-text"])
async def test_leaving_a_stream_ends_the_upstream_request(running: Edge, model: Upstream, answer: Any) -> None:
    model.answer = answer
    async with running.client() as client:

        async def read() -> None:
            stream = await client.chat.completions.create(model="default", messages=ASKED, stream=True)
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    await stream.close()
                    return

        reading = asyncio.ensure_future(read())
        exchange = await model.next_chat()
        if answer is silent:
            reading.cancel()
        await asyncio.wait((reading,), timeout=30)
        await asyncio.wait_for(exchange.gone.wait(), 30)
        async with asyncio.timeout(30):
            while running.service.parts.conversation.working:
                await asyncio.sleep(0.01)


async def test_a_session_of_the_service(running: Edge, model: Upstream) -> None:
    async with running.client() as client:
        first = await client.chat.completions.create(model="default", messages=ASKED, user="alice@example.com")
        session = extras(first)["session_id"]
        await client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "And then?"}],
            user="alice@example.com",
            metadata={"session_id": session},
        )
        # A request that brings its own history is taken at its word, and kept in the session all the same.
        third = await client.chat.completions.create(
            model="default",
            messages=[
                {"role": "user", "content": "Else?"},
                {"role": "assistant", "content": "Else."},
                {"role": "user", "content": "Well?"},
            ],
            user="alice@example.com",
            metadata={"session_id": session},
        )
    assert extras(third)["session_id"] == session
    assert turns(model.chats[1]) == [("user", "How?"), ("assistant", "Hello there."), ("user", "And then?")]
    assert turns(model.chats[2]) == [("user", "Else?"), ("assistant", "Else."), ("user", "Well?")]
    kept = await running.service.messages(session_id=session)
    assert [message.message for message in kept] == ["Well?", "And then?", "How?"]
    assert {message.user_id for message in kept} == {"alice@example.com"}
    assert kept[-1].id == extras(first)["message_id"]
    assert first.id == f"chatcmpl-{kept[-1].id.removeprefix('msg_')}"


async def test_a_conversation_need_not_go_by_turns(running: Edge, model: Upstream) -> None:
    async with running.client() as client:
        await client.chat.completions.create(
            model="default",
            messages=[
                {"role": "assistant", "content": "Welcome."},
                {"role": "user", "content": "One"},
                {"role": "user", "content": "two"},
                {"role": "assistant", "content": "So."},
                {"role": "user", "content": "Left open"},
                *ASKED,
            ],
        )
    assert turns(model.chats[0]) == [
        ("assistant", "Welcome."),
        ("user", "One\n\ntwo"),
        ("assistant", "So."),
        ("user", "Left open"),
        ("user", "How?"),
    ]


async def test_what_is_no_user_s_id_names_nobody(running: Edge) -> None:
    async with running.client() as client:
        answer = await client.chat.completions.create(
            model="default", messages=ASKED, user="a", safety_identifier="hashed-user-1"
        )
        anonymous = await client.chat.completions.create(model="default", messages=ASKED, user="two words")
    [named] = await running.service.messages(session_id=extras(answer)["session_id"])
    [unnamed] = await running.service.messages(session_id=extras(anonymous)["session_id"])
    assert (named.user_id, unnamed.user_id) == ("hashed-user-1", "")


async def test_the_cache_knows_histories_and_system_messages_apart(running: Edge, model: Upstream) -> None:
    earlier: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
    ]
    system: list[ChatCompletionMessageParam] = [{"role": "developer", "content": "Be brief."}]
    async with running.client() as client:
        answers = [
            await client.chat.completions.create(model="default", messages=messages)
            for messages in (ASKED, ASKED, earlier + ASKED, system + ASKED, system + earlier + ASKED, system + ASKED)
        ]
    assert [extras(answer)["cached"] for answer in answers] == [False, True, False, False, False, True]
    assert len(model.chats) == 4


async def test_the_services_own_options(running: Edge, model: Upstream, memory: Memvid) -> None:
    async with running.client() as client:
        plain = await client.chat.completions.create(
            model="local/test-model",
            messages=ASKED,
            max_completion_tokens=100_000,
            max_tokens=3,
            extra_body={"chat_grpc": {"retrieval": False, "skip_cache": True}},
        )
        one = await client.chat.completions.create(
            model="default", messages=ASKED, max_tokens=3, extra_body={"chat_grpc": {"top_k": 1}}
        )
    assert extras(plain)["passages"] == []
    assert "<passages>" not in model.chats[0].messages[0]["content"]
    assert plain.model == "local/test-model"
    assert len(extras(one)["passages"]) == 1
    assert [chat.body.get("max_tokens") or chat.body["max_completion_tokens"] for chat in model.chats] == [8192, 3]


async def test_harmless_parameters_are_ignored(running: Edge) -> None:
    async with running.client() as client:
        answer = await client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": [{"type": "text", "text": "How?"}], "name": "bob"}],
            presence_penalty=0,
            frequency_penalty=0.5,
            top_p=0.9,
            n=1,
            seed=7,
            store=False,
            metadata={"purpose": "test"},
            service_tier="auto",
            parallel_tool_calls=True,
            logit_bias={},
            logprobs=False,
            stop=[],
            tools=[],
            tool_choice="auto",
            response_format={"type": "text"},
            modalities=["text"],
            reasoning_effort="low",
        )
    assert answer.choices[0].message.content == "Hello there."


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"modalities": ["text", "audio"]}, "modalities[1]"),
    ({"audio": {"voice": "alloy", "format": "mp3"}}, "audio"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"stop": ["\n"]}, "stop"),
    ({"stop": "END"}, "stop"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"web_search_options": {}}, "web_search_options"),
]


async def test_what_would_change_the_answer_is_refused(running: Edge, model: Upstream) -> None:
    async with running.client() as client:
        for parameters, param in REFUSED:
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError) as caught:
                    await client.chat.completions.create(
                        model="default", messages=ASKED, stream=stream, extra_body=parameters
                    )
                assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter"), parameters
                assert caught.value.type == "invalid_request_error"
                assert param in str(caught.value)
                assert "leave it out" in str(caught.value)
    assert model.chats == []


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "How?"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 10_001}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 100_001}, *ASKED]}, "messages"),
    ({"messages": [{"role": "system", "content": "x" * 100_001}, *ASKED]}, "messages"),
    ({"messages": [*ASKED, {"role": "assistant", "content": "So."}]}, "messages[1].role"),
    ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "c"}, *ASKED]}, "messages[0].role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        "messages[0].content[0].type",
    ),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": "many"}, "max_completion_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"metadata": {"session_id": "mine"}}, "metadata.session_id"),
    ({"chat_grpc": {"top_k": 21}}, "chat_grpc.top_k"),
]


async def test_what_breaks_a_rule_is_refused_by_name(running: Edge, model: Upstream) -> None:
    async with running.client() as client:
        for parameters, param in INVALID:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(model="default", messages=ASKED, extra_body=parameters)
            assert (caught.value.param, caught.value.code) == (param, "invalid_value"), parameters
            assert caught.value.body is not None
    assert model.chats == []


async def test_a_model_that_is_not_offered(running: Edge) -> None:
    async with running.client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt-4o-mini", messages=ASKED)
        assert (caught.value.code, caught.value.param, caught.value.type) == (
            "model_not_found",
            "model",
            "invalid_request_error",
        )
        assert "'gpt-4o-mini' is not offered here" in str(caught.value)
        assert caught.value.request_id
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4o-mini")


async def test_models(start_edge: StartEdge) -> None:
    settings = {
        "CHAT_LLM_MODEL": "nvidia/small:free",
        "CHAT_LLM_MODELS": "another",
        "CHAT_LLM_FALLBACK_EXTRACTIVE": "true",
    }
    async with start_edge(**settings) as edge, edge.client() as client:
        listed = await client.models.list()
        assert [(item.id, item.object, item.owned_by) for item in listed.data] == [
            ("nvidia/small:free", "model", "local"),
            ("another", "model", "local"),
            ("extractive/quotes", "model", "extractive"),
        ]
        assert listed.object == "list"
        assert listed.data[0].created > 1_700_000_000
        for item in listed.data:
            assert await client.models.retrieve(item.id) == item
        assert (await client.models.retrieve("default")).id == "nvidia/small:free"
        answer = await client.chat.completions.create(model="extractive/quotes", messages=ASKED)
        assert extras(answer)["model"] == "extractive/quotes"


async def test_another_user_s_session(running: Edge) -> None:
    async with running.client() as client:
        mine = await client.chat.completions.create(model="default", messages=ASKED, user="alice")
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.chat.completions.create(
                model="default",
                messages=ASKED,
                user="mallory",
                metadata={"session_id": extras(mine)["session_id"]},
            )
        assert caught.value.param == "metadata.session_id"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="default", messages=ASKED, metadata={"session_id": SESSION})
        assert (missing.value.code, missing.value.param) == ("session_not_found", "metadata.session_id")


async def test_too_many_requests(start_edge: StartEdge) -> None:
    async with start_edge(CHAT_ADDRESS_RATE_LIMIT="1/minute") as edge, edge.client() as client:
        await client.chat.completions.create(model="default", messages=ASKED)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="default", messages=ASKED, stream=stream)
            assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_fails_before_the_text(start_edge: StartEdge, model: Upstream, *, stream: bool) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.refuse(503)

    model.answer = refuse
    async with start_edge(CHAT_LLM_RETRIES="0") as edge, edge.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="default", messages=ASKED, stream=stream)
    assert caught.value.status_code == 503
    assert (caught.value.type, caught.value.code) == ("server_error", "model_unavailable")
    assert "SECRET" not in caught.value.response.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "order-67"}], ids=["unnamed", "named"])
async def test_the_sdk_tries_again_by_itself(
    start_edge: StartEdge, model: Upstream, headers: dict[str, str], *, stream: bool
) -> None:
    async def refuse_once(exchange: Exchange) -> None:
        if len(model.chats) == 1:
            await exchange.refuse(503)
        else:
            await saying("Well", ".")(exchange)

    model.answer = refuse_once
    async with start_edge(CHAT_LLM_RETRIES="0") as edge, edge.client(retries=2) as client:
        # The SDK's overloads tell the two apart by a literal, which partial hides.
        create: Any = partial(
            client.chat.completions.create, model="default", messages=ASKED, user="alice", extra_headers=headers
        )
        if stream:
            chunks = await create(stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
        else:
            answer = await create()
            text = answer.choices[0].message.content or ""
        assert text == "Well."
        assert len(model.chats) == 2
        # A name stands for an answer, and so not for the attempt that failed.
        assert await _statuses(edge.service, "alice") == ["COMPLETED", "FAILED"]


async def test_a_named_request_is_answered_once(running: Edge, model: Upstream) -> None:
    """So that whoever tries again, after a connection that broke, say, pays once."""
    named = {"Idempotency-Key": "order-66"}
    async with running.client() as client:
        one = await client.chat.completions.create(model="default", messages=ASKED, extra_headers=named)
        again = await client.chat.completions.create(model="default", messages=ASKED, extra_headers=named)
        assert (again.id, again.choices[0].message.content) == (one.id, "Hello there.")
        for different in (
            {"messages": [{"role": "user", "content": "Who?"}]},
            {"messages": [{"role": "system", "content": "Be brief."}, *ASKED]},
            {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}, *ASKED]},
        ):
            with pytest.raises(openai.ConflictError) as caught:
                await client.chat.completions.create(
                    model="default", messages=ASKED, extra_headers=named, extra_body=different
                )
            assert (caught.value.code, caught.value.param) == ("request_id_reused", "Idempotency-Key")
    assert len(model.chats) == 1


async def test_a_failure_in_the_stream_is_raised(running: Edge, model: Upstream) -> None:
    model.answer = cut
    text = ""
    async with running.client(retries=2) as client:
        stream = await client.chat.completions.create(model="default", messages=ASKED, stream=True, user="alice")
        with pytest.raises(openai.APIError) as caught:  # noqa: PT012 (it is raised in the midst of the loop)
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
    assert text == "half"
    assert (caught.value.type, caught.value.code) == ("server_error", "model_cut")
    assert caught.value.message
    assert len(model.chats) == 1
    assert await _statuses(running.service, "alice") == ["PARTIAL"]


async def test_a_model_that_is_silent_for_too_long(start_edge: StartEdge, model: Upstream) -> None:
    model.answer = silent
    settings = {"CHAT_LLM_FIRST_TOKEN_TIMEOUT": "0.3", "CHAT_LLM_RETRIES": "0"}
    async with start_edge(**settings) as edge, edge.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="default", messages=ASKED, stream=True)
    assert (caught.value.status_code, caught.value.code) == (504, "model_timeout")


async def test_memory_that_is_missing_is_told(start_edge: StartEdge, memory: Memvid) -> None:
    async with start_edge(CHAT_MEMVID_GRPC_URL="127.0.0.1:1") as edge, edge.client() as client:
        answer = await client.chat.completions.create(model="default", messages=ASKED)
    assert extras(answer)["degraded"] == ["retrieval"]
    assert extras(answer)["passages"] == []


async def test_a_long_conversation_is_sent_as_far_as_the_model_reads(start_edge: StartEdge, model: Upstream) -> None:
    """Nearly as much as a body may hold reaches the server; the latest exchanges reach the model."""
    said = "lorem ipsum " * 800
    history = [{"role": role, "content": f"{number} {said}"} for number in range(50) for role in ("user", "assistant")]
    body = {"messages": [*history, *ASKED]}
    assert 900_000 < len(json.dumps(body)) < 1_048_576
    async with start_edge(CHAT_LLM_CONTEXT="32768") as edge, edge.client() as client:
        await client.chat.completions.create(model="default", messages=ASKED, extra_body=body)
    sent = turns(model.chats[0])
    assert 3 <= len(sent) < 101
    assert sent[-1] == ("user", "How?")
    assert sent[-2] == ("assistant", f"49 {said}")
    assert sent[0][0] == "user"


async def _statuses(service: Service, user: str) -> list[str]:
    from chat_grpc._gen.chat.v1 import history_pb2

    kept = await service.messages(user_id=user)
    return [history_pb2.Message.Status.Name(message.status).removeprefix("STATUS_") for message in kept]
