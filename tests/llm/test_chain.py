"""Who answers when somebody fails: real upstreams, each doing as it is told, behind one chain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2
from chat_grpc.errors import ModelBroke, ModelError, ModelTimeout, ModelUnavailable
from chat_grpc.llm import Ending, Opened, Prompt, Provider, Turn
from chat_grpc.llm.chain import Chain, Link
from chat_grpc.llm.openai_wire import OpenAIWire
from chat_grpc.llm.watchdog import TimeLimits
from chat_grpc.settings import Secret
from tests.support.fixtures import StartService
from tests.support.service import text_of
from tests.support.upstream import Answer, Exchange, Upstream, saying, upstream

LIMITS = TimeLimits(5, 5, 20)


def wire(name: str, at: Upstream | str, limits: TimeLimits = LIMITS, *further: str) -> OpenAIWire:
    return OpenAIWire(
        name,
        base_url=at if isinstance(at, str) else at.url,
        api_key=Secret(""),
        key_setting="CHAT_LLM_API_KEY",
        default_model="m",
        models=frozenset(further),
        limits=limits,
    )


@asynccontextmanager
async def chain(*providers: Provider, retries: int = 2, failures: int = 5, rest: float = 15) -> AsyncIterator[Chain]:
    links = [Link(provider, "m") for provider in providers]
    made = Chain(links, retries=retries, breaker_failures=failures, breaker_seconds=rest)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def upstreams() -> AsyncIterator[list[Upstream]]:
    """Three upstreams; the second and third say their number."""
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(upstream()) for _ in range(3)]
        running[1].answer, running[2].answer = saying("two"), saying("three")
        yield running


def asking(model: str = "", within: float | None = None) -> Prompt:
    deadline = None if within is None else asyncio.get_running_loop().time() + within
    return Prompt(
        turns=(Turn("user", "How?"),), question="How?", passages=(), model=model, max_tokens=9, deadline=deadline
    )


async def whole(opened: Opened) -> str:
    """Read an answer to its end as the pipeline does, telling the chain how it ended."""
    pieces = [opened.first]
    try:
        async with aclosing(opened.rest) as rest:
            pieces += [piece async for piece in rest]
    except ModelError as error:
        opened.failed(error)
        raise
    opened.succeeded()
    assert isinstance(pieces.pop(), Ending)
    return "".join(str(piece) for piece in pieces)


def in_turn(*answers: Answer) -> Answer:
    """Answer each request in another way; the last way is for all that follow."""
    left = list(answers)

    async def answer(exchange: Exchange) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(exchange)

    return answer


def refusing(status: int, **headers: str) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.refuse(status, **headers)

    return answer


async def silent(exchange: Exchange) -> None:
    await exchange.gone.wait()


async def cut_at_once(exchange: Exchange) -> None:
    await exchange.start()
    exchange.close()


async def cut_after_text(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half")
    exchange.close()


async def reset_at_once(exchange: Exchange) -> None:
    exchange.reset()


async def test_first_choice_answers(upstreams: list[Upstream]) -> None:
    one, two, _ = upstreams
    async with chain(wire("a", one), wire("b", two)) as models:
        opened = await models.begin(asking())
        assert (opened.model, opened.fallback) == ("a/m", False)
        assert await whole(opened) == "Hello there."
    assert one.chats[0].body["model"] == "m"
    assert not two.chats


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        (refusing(500), 3),
        (refusing(429), 3),
        (reset_at_once, 3),
        (refusing(400), 1),
        (refusing(401), 1),
        (refusing(403), 1),
        (refusing(404), 1),
        (refusing(429, retry_after="6"), 1),
        (refusing(503, retry_after="6"), 1),
        (saying(), 1),
        (cut_at_once, 1),
        (silent, 1),
    ],
    ids=["500", "429", "reset", "400", "401", "403", "404", "429-long", "503-long", "empty", "cut", "silent"],
)
async def test_next_one_answers_when_the_first_fails_before_text(
    upstreams: list[Upstream], answer: Answer, requests: int
) -> None:
    one, two, _ = upstreams
    one.answer = answer
    async with chain(wire("a", one, TimeLimits(0.3, 5, 20)), wire("b", two)) as models:
        opened = await models.begin(asking())
        assert (opened.model, opened.fallback) == ("b/m", True)
        assert await whole(opened) == "two"
    assert len(one.chats) == requests
    assert len(two.chats) == 1


async def test_nobody_takes_over_after_the_first_text(upstreams: list[Upstream]) -> None:
    one, two, _ = upstreams
    one.answer = cut_after_text
    async with chain(wire("a", one), wire("b", two)) as models:
        opened = await models.begin(asking())
        assert (opened.first, opened.fallback) == ("half", False)
        with pytest.raises(ModelBroke) as caught:
            await whole(opened)
    assert caught.value.reason == "MODEL_CUT"
    assert len(one.chats) == 1
    assert not two.chats


async def test_same_one_answers_at_a_second_try(upstreams: list[Upstream]) -> None:
    one, two, _ = upstreams
    one.answer = in_turn(refusing(500), refusing(502), saying("at last"))
    async with chain(wire("a", one), wire("b", two)) as models:
        opened = await models.begin(asking())
        assert (opened.model, opened.fallback) == ("a/m", False)
        assert await whole(opened) == "at last"
    assert not two.chats


async def test_retries_can_be_turned_off(upstreams: list[Upstream]) -> None:
    one, two, _ = upstreams
    one.answer = refusing(500)
    async with chain(wire("a", one), wire("b", two), retries=0) as models:
        assert (await models.begin(asking())).model == "b/m"
    assert len(one.chats) == 1


async def test_retry_waits_as_long_as_it_is_asked_to(upstreams: list[Upstream]) -> None:
    one, _, _ = upstreams
    times: list[float] = []

    def at(answer: Answer) -> Answer:
        async def timed(exchange: Exchange) -> None:
            times.append(asyncio.get_running_loop().time())
            await answer(exchange)

        return timed

    one.answer = in_turn(at(refusing(429, retry_after="1")), at(saying("ok")))
    async with chain(wire("a", one)) as models:
        assert await whole(await models.begin(asking())) == "ok"
    assert times[1] - times[0] >= 1


async def test_all_fail_with_the_error_of_the_first(upstreams: list[Upstream]) -> None:
    one, two, three = upstreams
    one.answer, two.answer, three.answer = refusing(429, retry_after="60"), refusing(401), refusing(503)
    async with chain(wire("a", one), wire("b", two), wire("c", three), retries=0) as models:
        with pytest.raises(ModelUnavailable) as caught:
            await models.begin(asking())
    error = caught.value
    assert error.reason == "MODEL_RATE_LIMITED"
    assert error.metadata == {"provider": "a", "stage": "connect", "tried": "a/m,b/m,c/m"}
    assert error.retry_after == 2, "c, the first that may answer again"


async def test_named_model_starts_at_its_link(upstreams: list[Upstream]) -> None:
    one, two, three = upstreams
    two.answer = refusing(401)
    async with chain(wire("a", one, LIMITS, "other"), wire("b", two), wire("c", three)) as models:
        assert models.models == {"m", "other", "a/m", "a/other", "b/m", "c/m"}
        assert [models.full_name(name) for name in ("", "other", "b/m")] == ["a/m", "a/other", "b/m"]
        opened = await models.begin(asking("b/m"))
        assert (opened.model, opened.fallback) == ("c/m", True)
        assert not one.chats
        opened = await models.begin(asking("c/m"))
        assert (opened.model, opened.fallback) == ("c/m", False)
        one.answer = in_turn(saying("ok"), refusing(404))
        assert (await models.begin(asking("a/other"))).model == "a/other"
        assert (await models.begin(asking("other"))).model == "c/m"
    assert [exchange.body["model"] for exchange in one.chats] == ["other", "other"]
    assert [exchange.body["model"] for exchange in two.chats] == ["m", "m"]


async def ask(models: Chain) -> str:
    """Return the text of an answer, or the reason why there is none."""
    try:
        return await whole(await models.begin(asking()))
    except ModelError as error:
        return error.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refusing(500), "MODEL_UNAVAILABLE"),
        (refusing(429), "MODEL_RATE_LIMITED"),
        (refusing(401), "MODEL_AUTH"),
        (cut_at_once, "MODEL_CUT"),
        (cut_after_text, "MODEL_CUT"),
        (silent, "MODEL_TIMEOUT"),
    ],
    ids=["500", "429", "401", "cut", "cut-after-text", "silent"],
)
async def test_breaker_opens_and_one_probe_closes_it(upstreams: list[Upstream], answer: Answer, reason: str) -> None:
    one, _, _ = upstreams
    one.answer = answer
    async with chain(wire("a", one, TimeLimits(0.5, 0.5, 20)), retries=0, failures=3, rest=0.6) as models:
        assert [await ask(models) for _ in range(3)] == [reason] * 3
        assert models.states() == {"a": "open"}
        with pytest.raises(ModelUnavailable) as caught:
            await models.begin(asking())
        assert caught.value.reason == "MODEL_CIRCUIT_OPEN"
        assert "tried" not in caught.value.metadata
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 0
        with pytest.raises(ModelUnavailable):
            await models.ping()
        assert len(one.chats) == 3

        probed, go_on = asyncio.Event(), asyncio.Event()

        async def probe(exchange: Exchange) -> None:
            probed.set()
            await go_on.wait()
            await saying("well")(exchange)

        one.answer = probe
        while models.states() != {"a": "half_open"}:
            await asyncio.sleep(0.01)
        probing = asyncio.ensure_future(ask(models))
        await asyncio.wait_for(probed.wait(), 5)
        assert [await ask(models) for _ in range(3)] == ["MODEL_CIRCUIT_OPEN"] * 3
        assert len(one.chats) == 4
        go_on.set()
        assert await probing == "well"
        assert models.states() == {"a": "closed"}
        assert await ask(models) == "well"


async def test_probe_that_fails_opens_the_breaker_again(upstreams: list[Upstream]) -> None:
    one, two, _ = upstreams
    one.answer = refusing(500)
    async with chain(wire("a", one), wire("b", two), retries=0, failures=2, rest=0.2) as models:
        assert [await ask(models) for _ in range(4)] == ["two"] * 4
        assert len(one.chats) == 2
        await asyncio.sleep(0.25)
        assert [await ask(models) for _ in range(4)] == ["two"] * 4
        assert len(one.chats) == 3


async def test_probe_that_breaks_after_text_opens_the_breaker_again(upstreams: list[Upstream]) -> None:
    one, _, _ = upstreams
    one.answer = cut_after_text
    async with chain(wire("a", one), retries=0, failures=2, rest=0.2) as models:
        assert [await ask(models) for _ in range(3)] == ["MODEL_CUT", "MODEL_CUT", "MODEL_CIRCUIT_OPEN"]
        await asyncio.sleep(0.25)
        assert [await ask(models) for _ in range(2)] == ["MODEL_CUT", "MODEL_CIRCUIT_OPEN"]


async def test_probe_whose_caller_leaves_makes_room_for_another(upstreams: list[Upstream]) -> None:
    one, _, _ = upstreams
    one.answer = in_turn(refusing(500), silent, saying("well"))
    async with chain(wire("a", one), retries=0, failures=1, rest=0.2) as models:
        assert await ask(models) == "MODEL_UNAVAILABLE"
        await asyncio.sleep(0.25)
        probing = asyncio.ensure_future(models.begin(asking()))
        while len(one.chats) < 2:
            await asyncio.sleep(0.005)
        probing.cancel()
        with suppress(asyncio.CancelledError):
            await probing
        assert models.states() == {"a": "half_open"}
        assert await ask(models) == "well"


async def test_answers_that_end_well_are_not_counted_with_the_failures(upstreams: list[Upstream]) -> None:
    one, _, _ = upstreams
    async with chain(wire("a", one), retries=0, failures=2) as models:
        for _ in range(3):
            one.answer = in_turn(cut_after_text, saying("well"))
            assert [await ask(models), await ask(models)] == ["MODEL_CUT", "well"]
        assert models.states() == {"a": "closed"}


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_faults_of_the_request_are_not_held_against_the_provider(upstreams: list[Upstream], status: int) -> None:
    one, _, _ = upstreams
    one.answer = refusing(status)
    async with chain(wire("a", one), failures=2) as models:
        reasons = [await ask(models) for _ in range(5)]
        assert set(reasons) == {"MODEL_UNKNOWN" if status == 404 else "MODEL_REFUSED"}
        assert models.states() == {"a": "closed"}


async def test_nothing_is_begun_after_the_callers_deadline(upstreams: list[Upstream]) -> None:
    one, two, _ = upstreams

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await exchange.refuse(500)

    one.answer = slow
    async with chain(wire("a", one), wire("b", two)) as models:
        with pytest.raises(ModelUnavailable) as caught:
            await models.begin(asking(within=0.2))
        assert caught.value.metadata["tried"] == "a/m"
        with pytest.raises(ModelTimeout):
            await models.begin(asking(within=0))
    assert len(one.chats) == 1
    assert not two.chats


async def test_no_wait_that_ends_after_the_callers_deadline(upstreams: list[Upstream]) -> None:
    one, two, _ = upstreams
    one.answer = refusing(429, retry_after="3")
    started = asyncio.get_running_loop().time()
    async with chain(wire("a", one), wire("b", two)) as models:
        assert (await models.begin(asking(within=2))).model == "b/m"
        assert asyncio.get_running_loop().time() - started < 2
    assert len(one.chats) == 1


async def while_asking(one: Upstream) -> None:
    while not one.chats:
        await asyncio.sleep(0.005)


async def while_waiting_to_retry(one: Upstream) -> None:
    while not (one.chats and one.chats[0].finished):
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "until"),
    [(silent, while_asking), (refusing(429, retry_after="4"), while_waiting_to_retry)],
    ids=["asking", "waiting-to-retry"],
)
async def test_cancelling_ends_it_at_once(
    upstreams: list[Upstream], answer: Answer, until: Callable[[Upstream], Awaitable[None]]
) -> None:
    one, two, _ = upstreams
    one.answer = answer
    async with chain(wire("a", one), wire("b", two)) as models:
        beginning = asyncio.ensure_future(models.begin(asking()))
        await until(one)
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
        if answer is silent:
            await asyncio.wait_for(one.chats[0].gone.wait(), 1)
        assert models.states()["a"] == "closed"
    assert len(one.chats) == 1
    assert not two.chats


async def test_ping_answers_if_one_link_does(upstreams: list[Upstream]) -> None:
    one, _, _ = upstreams
    async with chain(wire("a", "http://127.0.0.1:1/v1"), wire("b", one)) as models:
        await models.ping()
    async with chain(wire("a", "http://127.0.0.1:1/v1"), wire("b", "http://127.0.0.1:1/v1")) as models:
        with pytest.raises(ModelUnavailable) as caught:
            await models.ping()
        assert caught.value.metadata["provider"] == "a"


async def test_other_one_of_gemini_and_openrouter_takes_over(start: StartService, upstreams: list[Upstream]) -> None:
    gemini, openrouter, _ = upstreams
    gemini.answer = refusing(401)
    settings = {
        "CHAT_LLM_PROVIDER": "",
        "CHAT_LLM_MODEL": "",
        "CHAT_LLM_BASE_URL": "",
        "CHAT_GEMINI_API_KEY": "key-of-gemini",
        "CHAT_GEMINI_BASE_URL": gemini.url,
        "CHAT_OPENROUTER_API_KEY": "key-of-openrouter",
        "CHAT_OPENROUTER_BASE_URL": openrouter.url,
    }
    async with start(**settings) as service:
        events = await service.ask(user_id="anna")
        (kept,) = await service.messages(user_id="anna")
    assert text_of(events) == "two"
    assert events[-1].completed.model == kept.model == "openrouter/nvidia/nemotron-nano-9b-v2:free"
    assert gemini.chats[0].headers["authorization"] == "Bearer key-of-gemini"
    assert openrouter.chats[0].headers["authorization"] == "Bearer key-of-openrouter"
    assert openrouter.chats[0].body["model"] == "nvidia/nemotron-nano-9b-v2:free"


async def test_passages_are_quoted_when_every_model_fails(start: StartService, model: Upstream) -> None:
    model.answer = refusing(401)
    async with start(CHAT_LLM_FALLBACK_EXTRACTIVE="true") as service:
        events = await service.ask("Where does SQLite keep messages?")
    assert events[-1].completed.model == "extractive/quotes"
    assert "No language model can be reached right now" in text_of(events)
    assert "SQLite keeps messages in one file." in text_of(events)


async def test_request_may_name_a_fallbacks_model(
    start: StartService, model: Upstream, upstreams: list[Upstream]
) -> None:
    settings = {
        "CHAT_LLM_FALLBACKS": "openrouter/x/y",
        "CHAT_OPENROUTER_API_KEY": "k",
        "CHAT_OPENROUTER_BASE_URL": upstreams[1].url,
    }
    async with start(**settings) as service:
        events = await service.ask(options=chat_pb2.ChatOptions(model="openrouter/x/y"))
        assert (text_of(events), events[-1].completed.model) == ("two", "openrouter/x/y")
        assert upstreams[1].chats[0].body["model"] == "x/y"
        failure = await service.fail(options=chat_pb2.ChatOptions(model="openrouter/x"))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert not model.chats


async def test_a_client_is_told_who_was_tried(start: StartService, model: Upstream, upstreams: list[Upstream]) -> None:
    model.answer = upstreams[0].answer = refusing(403)
    settings = {
        "CHAT_LLM_FALLBACKS": "openrouter/x/y",
        "CHAT_OPENROUTER_API_KEY": "k",
        "CHAT_OPENROUTER_BASE_URL": upstreams[0].url,
    }
    async with start(**settings) as service:
        failure = await service.fail(user_id="anna")
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "MODEL_AUTH"
        assert failure.details["ErrorInfo"].metadata == {
            "provider": "local",
            "stage": "connect",
            "tried": "local/test-model,openrouter/x/y",
        }
        (kept,) = await service.messages(user_id="anna")
        assert kept.status == history_pb2.Message.STATUS_FAILED


@pytest.mark.parametrize("stage", ["first", "retry"])
async def test_client_that_leaves_while_models_are_asked_ends_it(
    start: StartService, model: Upstream, upstreams: list[Upstream], stage: str
) -> None:
    model.answer = silent if stage == "first" else refusing(401)
    upstreams[0].answer = silent
    settings = {
        "CHAT_LLM_FALLBACKS": "openrouter/x/y",
        "CHAT_OPENROUTER_API_KEY": "k",
        "CHAT_OPENROUTER_BASE_URL": upstreams[0].url,
    }
    async with start(**settings) as service:
        call = service.chat.Chat(chat_pb2.ChatRequest(message="Never mind"))
        await call.read()
        exchange = await (model if stage == "first" else upstreams[0]).next_chat()
        call.cancel()
        await asyncio.wait_for(exchange.gone.wait(), 5)
    assert len(upstreams[0].chats) == (stage == "retry")
