"""Providers through litellm, against real upstreams: what litellm gets wrong must not reach a caller.

hosted_vllm is read by litellm itself, openai by the openai package below it,
anthropic in Anthropic's own format: three ways through litellm.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2
from chat_grpc.domain import FinishReason
from chat_grpc.errors import ModelBroke, ModelError, ModelTimeout, ModelUnavailable
from chat_grpc.llm import Ending, Prompt, Turn
from chat_grpc.llm.lineup import litellm_providers
from chat_grpc.llm.litellm_provider import LiteLLM, load
from chat_grpc.llm.watchdog import TimeLimits
from chat_grpc.settings import Secret, SettingsError
from chat_grpc.settings import load as load_settings
from chat_grpc.telemetry.context import read_trace, tracing
from tests.support.fixtures import StartService
from tests.support.process import ROOT
from tests.support.service import text_of
from tests.support.upstream import Answer, Exchange, Upstream, saying

pytestmark = [
    # Raised when litellm, or what it imports, is imported and used; none of it is ours to change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LIMITS = TimeLimits(5, 5, 20)
OPENAI_FORMAT = ("hosted_vllm", "openai")


@asynccontextmanager
async def provider(name: str, model: Upstream, limits: TimeLimits = LIMITS) -> AsyncIterator[LiteLLM]:
    made = LiteLLM(
        name,
        # The upstream answers at this path; anthropic is kept from adding its own to it.
        base_url=f"{model.url}/chat/completions" if name == "anthropic" else model.url,
        api_key=Secret("sk-test"),
        default_model="claude-haiku-4-5" if name == "anthropic" else "m",
        models=frozenset(),
        limits=limits,
    )
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(autouse=True)
def _anthropic_at_the_path_of_the_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_ANTHROPIC_DISABLE_URL_SUFFIX", "true")


def asking(made: LiteLLM, **options: Any) -> Prompt:
    turns = (Turn("system", "Be brief."), Turn("user", "How?"))
    return Prompt(turns=turns, question="How?", passages=(), model=made.default_model, **options)


async def whole(made: LiteLLM) -> tuple[str, Ending]:
    *pieces, ending = [piece async for piece in made.stream(asking(made, max_tokens=9))]
    assert isinstance(ending, Ending)
    return "".join(str(piece) for piece in pieces), ending


async def failing(made: LiteLLM) -> tuple[str, ModelError]:
    """Return the text before an error, and the error."""
    stream = made.stream(asking(made, max_tokens=9))
    pieces: list[str | Ending] = []

    async def read() -> None:
        async for piece in stream:
            pieces.append(piece)  # noqa: PERF401 (what came before an error must be kept)

    with pytest.raises(ModelError) as caught:
        await read()
    assert "SECRET" not in str(caught.value)
    assert "sk-test" not in str(caught.value)
    assert all(isinstance(piece, str) for piece in pieces), "an answer that fails has no ending"
    return "".join(map(str, pieces)), caught.value


class Anthropic:
    """Anthropic's way of answering."""

    @staticmethod
    async def event(exchange: Exchange, kind: str, **fields: Any) -> None:
        await exchange.send(f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode())

    @classmethod
    async def start(cls, exchange: Exchange, *pieces: str) -> None:
        await exchange.start()
        usage = {"input_tokens": 7, "output_tokens": 1}
        message = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": usage}
        await cls.event(exchange, "message_start", message={**message, "stop_reason": None})
        await cls.event(exchange, "content_block_start", index=0, content_block={"type": "text", "text": ""})
        for text in pieces:
            await cls.event(exchange, "content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    @classmethod
    async def finish(cls, exchange: Exchange, reason: str = "end_turn") -> None:
        await cls.event(exchange, "content_block_stop", index=0)
        delta = {"stop_reason": reason, "stop_sequence": None}
        await cls.event(exchange, "message_delta", delta=delta, usage={"output_tokens": 3})
        await cls.event(exchange, "message_stop")
        await exchange.end()


async def half(exchange: Exchange) -> None:
    """Begin to answer, whatever the format."""
    if "system" in exchange.body:  # Anthropic's alone
        await Anthropic.start(exchange, "half")
    else:
        await exchange.start()
        await exchange.text("half")


@pytest.mark.parametrize("name", OPENAI_FORMAT)
async def test_text_usage_and_finish_reason_arrive(model: Upstream, name: str) -> None:
    model.answer = saying("They", " are", " kept.", reason="length", usage=(12, 4))
    async with provider(name, model) as made:
        text, ending = await whole(made)
    assert text == "They are kept."
    assert ending.finish_reason is FinishReason.LENGTH
    assert ending.usage is not None
    assert (ending.usage.prompt_tokens, ending.usage.completion_tokens, ending.usage.total_tokens) == (12, 4, 16)
    (exchange,) = model.chats
    assert exchange.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}]
    assert exchange.body["model"] == "m"
    assert exchange.body["max_tokens"] == 9
    assert exchange.headers["authorization"] == "Bearer sk-test"


async def test_anthropic_answers(model: Upstream) -> None:
    async def answer(exchange: Exchange) -> None:
        await Anthropic.start(exchange, "They", " are", " kept.")
        await Anthropic.finish(exchange, "max_tokens")

    model.answer = answer
    async with provider("anthropic", model) as made:
        text, ending = await whole(made)
    assert text == "They are kept."
    assert ending.finish_reason is FinishReason.LENGTH
    assert ending.usage is not None
    assert (ending.usage.prompt_tokens, ending.usage.completion_tokens, ending.usage.total_tokens) == (7, 3, 10)
    assert model.chats[0].headers["x-api-key"] == "sk-test"


@pytest.mark.parametrize("name", OPENAI_FORMAT)
async def test_tokens_that_litellm_counted_itself_are_not_taken_for_the_upstreams(model: Upstream, name: str) -> None:
    model.answer = saying("Hello", usage=None)
    async with provider(name, model) as made:
        assert (await whole(made))[1] == Ending(FinishReason.STOP, None)


@pytest.mark.parametrize("name", OPENAI_FORMAT)
async def test_each_token_leaves_when_it_arrives(model: Upstream, name: str) -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for number in range(5):
            await exchange.text(f"t{number}")
            assert await asyncio.wait_for(seen.get(), 5) == f"t{number}"
        await exchange.finish()

    model.answer = answer
    async with provider(name, model) as made:
        async for piece in made.stream(asking(made)):
            if isinstance(piece, str):
                seen.put_nowait(piece)
    assert model.chats[0].finished


async def closes(exchange: Exchange) -> None:
    await half(exchange)
    exchange.close()


async def resets(exchange: Exchange) -> None:
    await half(exchange)
    await asyncio.sleep(0.05)
    exchange.reset()


async def just_ends(exchange: Exchange) -> None:
    await half(exchange)
    await exchange.end()


async def done_without_finish_reason(exchange: Exchange) -> None:
    await half(exchange)
    await exchange.finish(None)


async def error_object(exchange: Exchange) -> None:
    await half(exchange)
    fault = {"type": "overloaded_error", "message": "SECRET-UPSTREAM-TEXT", "code": 502}
    if "system" in exchange.body:
        await Anthropic.event(exchange, "error", error=fault)
    else:
        await exchange.event({"error": fault})
    await exchange.end()


async def broken_json(exchange: Exchange) -> None:
    await half(exchange)
    await exchange.send(b'data: {"choices": [{"delta": {"con\n\n')
    await exchange.end()


async def error_finish(exchange: Exchange) -> None:
    await half(exchange)
    await exchange.finish("error")


@pytest.mark.parametrize(
    ("name", "answer", "reason"),
    [
        *((name, closes, "MODEL_CUT") for name in (*OPENAI_FORMAT, "anthropic")),
        *((name, resets, "MODEL_CUT") for name in (*OPENAI_FORMAT, "anthropic")),
        *((name, just_ends, "MODEL_CUT") for name in (*OPENAI_FORMAT, "anthropic")),
        *((name, done_without_finish_reason, "MODEL_CUT") for name in OPENAI_FORMAT),
        *((name, error_object, "MODEL_ERROR") for name in (*OPENAI_FORMAT, "anthropic")),
        # litellm's own reader passes over lines that it can't read; then the finish reason is missing.
        ("hosted_vllm", broken_json, "MODEL_CUT"),
        ("openai", broken_json, "MODEL_PROTOCOL"),
        # litellm's own reader takes this for "stop": docs/models.md says so.
        ("openai", error_finish, "MODEL_ERROR"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_answer_that_did_not_end_well_is_none(model: Upstream, name: str, answer: Answer, reason: str) -> None:
    model.answer = answer
    async with provider(name, model) as made:
        text, error = await failing(made)
    assert isinstance(error, ModelBroke)
    assert (text, error.reason) == ("half", reason)
    assert error.metadata == {"provider": name, "stage": "stream"}


@pytest.mark.parametrize("name", OPENAI_FORMAT)
async def test_empty_answer_is_none(model: Upstream, name: str) -> None:
    model.answer = saying()
    async with provider(name, model) as made:
        assert (await failing(made))[1].reason == "MODEL_EMPTY"


@pytest.mark.parametrize("name", [*OPENAI_FORMAT, "anthropic"])
@pytest.mark.parametrize(
    ("status", "reason", "retry_after"),
    [
        (400, "MODEL_REFUSED", 2),
        (401, "MODEL_AUTH", 2),
        (403, "MODEL_AUTH", 2),
        (404, "MODEL_UNKNOWN", 2),
        (429, "MODEL_RATE_LIMITED", 7),
        (500, "MODEL_UNAVAILABLE", 2),
        (503, "MODEL_OVERLOADED", 7),
    ],
)
async def test_refusals_keep_their_reason_and_lose_their_text(
    model: Upstream, name: str, status: int, reason: str, retry_after: float
) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.refuse(status, **({"retry_after": "7"} if status in (429, 503) else {}))

    model.answer = refuse
    async with provider(name, model) as made:
        text, error = await failing(made)
    assert isinstance(error, ModelUnavailable)
    assert (text, error.reason, error.retry_after) == ("", reason, retry_after)
    assert error.metadata == {"provider": name, "stage": "connect"}
    assert len(model.chats) == 1, "litellm must not try again by itself"


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        ("context_length_exceeded", "This model's maximum context length is 10 tokens.", "MODEL_TOO_LONG"),
        (
            "content_policy_violation",
            "The request was rejected as a result of the safety system.",
            "MODEL_CONTENT_POLICY",
        ),
    ],
)
async def test_requests_that_no_try_will_help_have_reasons_of_their_own(
    model: Upstream, code: str, message: str, reason: str
) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.start(400, "application/json")
        await exchange.send(json.dumps({"error": {"message": message, "code": code}}).encode())
        await exchange.end()

    model.answer = refuse
    async with provider("openai", model) as made:
        _, error = await failing(made)
    assert error.reason == reason
    assert message not in error.message


async def test_nobody_there() -> None:
    async with provider("openai", Upstream(1)) as made:
        assert (await failing(made))[1].reason == "MODEL_UNAVAILABLE"


async def silent(exchange: Exchange) -> None:
    await exchange.gone.wait()


async def silent_after_head(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.gone.wait()


async def silent_after_text(exchange: Exchange) -> None:
    await half(exchange)
    await exchange.gone.wait()


async def talks_for_ever(exchange: Exchange) -> None:
    await half(exchange)
    while not exchange.gone.is_set():
        await asyncio.sleep(0.02)
        if "system" in exchange.body:
            await Anthropic.event(exchange, "content_block_delta", index=0, delta={"type": "text_delta", "text": "on"})
        else:
            await exchange.text("on")


@pytest.mark.parametrize("name", [*OPENAI_FORMAT, "anthropic"])
@pytest.mark.parametrize(
    ("answer", "limits", "stage"),
    [
        (silent, TimeLimits(0.5, 5, 5), "first_token"),
        (silent_after_head, TimeLimits(0.5, 5, 5), "first_token"),
        (silent_after_text, TimeLimits(5, 0.3, 5), "idle"),
        (talks_for_ever, TimeLimits(5, 5, 0.8), "total"),
    ],
)
async def test_time_limits_hold_and_end_the_upstream_request(
    model: Upstream, name: str, answer: Answer, limits: TimeLimits, stage: str
) -> None:
    model.answer = answer
    async with provider(name, model, limits) as made:
        await made.open()
        _, error = await failing(made)
        await asyncio.wait_for(model.chats[0].gone.wait(), 5)
    assert isinstance(error, ModelTimeout)
    assert error.metadata == {"provider": name, "stage": stage}


@pytest.mark.parametrize("name", [*OPENAI_FORMAT, "anthropic"])
async def test_leaving_ends_the_upstream_request(model: Upstream, name: str) -> None:
    model.answer = silent_after_text
    async with provider(name, model) as made:
        async with aclosing(made.stream(asking(made, max_tokens=9))) as stream:
            assert await anext(stream) == "half"
            assert not model.chats[0].gone.is_set()
        await asyncio.wait_for(model.chats[0].gone.wait(), 1)


@pytest.mark.parametrize("name", [*OPENAI_FORMAT, "anthropic"])
@pytest.mark.parametrize("answer", [silent, silent_after_head, silent_after_text])
async def test_cancelling_ends_the_upstream_request(model: Upstream, name: str, answer: Answer) -> None:
    model.answer = answer
    async with provider(name, model) as made:
        reading = asyncio.ensure_future(whole(made))
        exchange = await model.next_chat()
        await asyncio.sleep(0.1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(exchange.gone.wait(), 1)


async def test_no_task_is_left(model: Upstream) -> None:
    before = asyncio.all_tasks()
    async with provider("hosted_vllm", model) as made:
        await whole(made)
        model.answer = closes
        await failing(made)
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def test_litellm_logs_nothing(
    model: Upstream, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    model.answer = error_object
    async with provider("hosted_vllm", model) as made:
        await failing(made)
    assert [record for record in caplog.records if record.name.startswith("LiteLLM")] == []
    assert "SECRET" not in caplog.text
    out, err = capfd.readouterr()
    assert out == ""
    assert "SECRET" not in err


TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.mark.parametrize("name", [*OPENAI_FORMAT, "anthropic"])
async def test_the_upstream_is_told_the_trace(model: Upstream, name: str) -> None:
    async def answer(exchange: Exchange) -> None:
        if name == "anthropic":
            await Anthropic.start(exchange, "Hello.")
            await Anthropic.finish(exchange)
        else:
            await saying("Hello.")(exchange)

    model.answer = answer
    other = TRACEPARENT.replace("0af7", "1af7")
    async with provider(name, model) as made:
        for traceparent in (TRACEPARENT, other):  # connections are kept, headers are not
            with tracing(read_trace(traceparent, "vendor=value")):
                await whole(made)
        await whole(made)
    assert [exchange.headers.get("traceparent") for exchange in model.chats] == [TRACEPARENT, other, None]
    assert [exchange.headers.get("tracestate") for exchange in model.chats] == ["vendor=value", "vendor=value", None]
    key = model.chats[0].headers
    assert "sk-test" in (key.get("authorization", "") or key.get("x-api-key", ""))


@pytest.mark.parametrize("name", ["azure_ai", "aiohttp_openai", "bedrock_mantle"])
async def test_no_trace_where_requests_are_signed_or_their_body_would_hold_it(model: Upstream, name: str) -> None:
    async with provider(name, model) as made:
        # litellm asks the second of these at a path where nothing answers; the request is what counts.
        with tracing(read_trace(TRACEPARENT, "")), suppress(ModelError):
            await whole(made)
    (exchange,) = model.exchanges
    assert exchange.messages[-1]["content"] == "How?"
    assert TRACE_ID not in json.dumps([exchange.body, dict(exchange.headers)])


def test_names_of_providers_are_those_of_litellm() -> None:
    names = litellm_providers()
    assert names >= {str(getattr(name, "value", name)) for name in load().provider_list}
    assert {"anthropic", "bedrock", "vertex_ai", "groq"} <= names


def test_litellm_is_imported_only_to_write_an_answer() -> None:
    program = (
        "import sys\n"
        "from chat_grpc import app\n"
        "from chat_grpc.llm.factory import choose\n"
        "from chat_grpc.settings import load\n"
        "models = choose(load({'CHAT_LLM_PROVIDER': 'anthropic', 'CHAT_LLM_MODEL': 'm'}))\n"
        "assert models.full_name('') == 'anthropic/m'\n"
        "print([name for name in sys.modules if name in ('litellm', 'openai', 'httpx', 'aiohttp')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "[]\n"


async def test_through_the_front_door(start: StartService, model: Upstream) -> None:
    settings = {"CHAT_LLM_PROVIDER": "hosted_vllm", "CHAT_LLM_MODEL": "m", "CHAT_LLM_MODELS": "n"}
    async with start(**settings) as service:
        events = await service.ask(user_id="anna", options=chat_pb2.ChatOptions(model="n"))
        assert text_of(events) == "Hello there."
        assert events[-1].completed.model == "hosted_vllm/n"
        request = chat_pb2.ChatRequest(message="And then?", user_id="anna")
        events = [event async for event in service.chat.Chat(request, metadata=(("traceparent", TRACEPARENT),))]
        assert text_of(events) == "Hello there."
        assert model.chats[-1].headers["traceparent"] == TRACEPARENT
        model.answer = done_without_finish_reason
        failure = await service.fail(user_id="anna")
        assert failure.reason == "MODEL_CUT"
        assert text_of(failure.events) == "half"
        latest = (await service.messages(user_id="anna"))[0]
        assert latest.status == history_pb2.Message.STATUS_PARTIAL


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"CHAT_LLM_PROVIDER": "nosuch", "CHAT_LLM_MODEL": "m"}, "nor a provider that litellm knows"),
        ({"CHAT_LLM_PROVIDER": "Not A Name"}, "a provider's name"),
        ({"CHAT_LLM_PROVIDER": "anthropic"}, "needs CHAT_LLM_MODEL"),
        ({"CHAT_LLM_FALLBACKS": "nosuch/m"}, "CHAT_LLM_FALLBACKS: nosuch"),
        ({"CHAT_LLM_FALLBACKS": "gemini/m"}, "CHAT_GEMINI_API_KEY="),
        ({"CHAT_LLM_FALLBACKS": "gemini"}, "pairs of provider/model"),
        ({"CHAT_LLM_PROVIDER": "local"}, "CHAT_LLM_BASE_URL="),
        ({"CHAT_LLM_PROVIDER": "openai"}, "CHAT_OPENAI_API_KEY="),
        (
            {
                "CHAT_LLM_PROVIDER": "groq",
                "CHAT_LLM_MODEL": "m",
                "CHAT_LLM_FALLBACKS": "local/m",
                "CHAT_LLM_BASE_URL": "http://h/v1",
            },
            "CHAT_LLM_BASE_URL is for groq",
        ),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_faulty_settings_are_named_at_the_start(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    assert said in str(caught.value)
