"""Answers that would tell what the service keeps to itself, seen from gRPC clients."""

from __future__ import annotations

import asyncio
import base64
import random
import re

import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2, types_pb2
from chat_grpc.conversation.guardrails import Withheld
from chat_grpc.conversation.guardrails.guard import Guardrails
from chat_grpc.conversation.guardrails.refusal import WITHHELD
from chat_grpc.conversation.guardrails.table import chosen
from chat_grpc.conversation.system_prompt import BUILT_IN
from tests.support.fixtures import StartService
from tests.support.metrics import scrape
from tests.support.service import Service, text_of
from tests.support.upstream import Answer, Exchange, Upstream, saying

Message = history_pb2.Message
REFUSALS = "chat_grpc_guardrail_refusals_total"
# Made up, and put together here, so that no scanner takes them for keys.
OWN_KEY = "sk-or-v1-" + "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
FOREIGN_KEY = "sk-" + "proj-Zk3vQ9xW2mB7tL5nR8cY4dH6"
PRIVATE_KEY = "-----BEGIN PRIVATE" + " KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n"
MODEL_SAYS = "Of course. Here it is: "


def going_on(*pieces: str) -> Answer:
    """Return an answer that says the pieces and then more and more, until its client has left."""

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for piece in pieces:
            await exchange.text(piece)
            await asyncio.sleep(0)
        while True:
            await exchange.text(" more")
            await asyncio.sleep(0.005)

    return answer


def letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def pieces_of(text: str, size: int) -> list[str]:
    return [text[place : place + size] for place in range(0, len(text), size)]


LEAKS = {
    "prompt": (BUILT_IN, "leak.prompt"),
    "prompt_shouted": (BUILT_IN.upper(), "leak.prompt"),
    "prompt_spaced": (" ".join(BUILT_IN), "leak.prompt"),
    "prompt_in_markdown": ("".join(f"**{word}** " for word in BUILT_IN.split()), "leak.prompt"),
    "prompt_from_its_middle": (BUILT_IN[60:], "leak.prompt"),
    "prompt_with_invisible": ("\u200b".join(BUILT_IN), "leak.prompt"),
    "own_key": (OWN_KEY, "leak.own_key"),
    "own_key_shouted": (OWN_KEY.upper(), "leak.own_key"),
    "own_key_spaced": (" ".join(OWN_KEY), "leak.own_key"),
    "own_key_dashed": ("-".join(OWN_KEY), "leak.own_key"),
    "own_key_in_markdown": ("**".join(OWN_KEY), "leak.own_key"),
    "own_key_backwards": (OWN_KEY[::-1], "leak.own_key"),
    "own_key_in_hex": (OWN_KEY.encode().hex(), "leak.own_key"),
    "own_key_in_base64": (base64.b64encode(b"key=" + OWN_KEY.encode()).decode(), "leak.own_key"),
    "foreign_key": (FOREIGN_KEY, "leak.key"),
    "foreign_key_in_code": (f"`{FOREIGN_KEY}`", "leak.key"),
    "private_key": (PRIVATE_KEY, "leak.private_key"),
}


@pytest.fixture
def guarded(start: StartService) -> StartService:
    def begin(**settings: str) -> object:
        return start(CHAT_LLM_API_KEY=OWN_KEY, **settings)

    return begin  # type: ignore[return-value]  # it is called as the fixture is


@pytest.mark.parametrize("size", [1, 4, 1000], ids=["letters", "tokens", "whole"])
@pytest.mark.parametrize(("secret", "rule"), LEAKS.values(), ids=LEAKS)
async def test_a_leak_ends_the_answer(
    guarded: StartService, model: Upstream, secret: str, rule: str, size: int
) -> None:
    model.answer = going_on(MODEL_SAYS, *pieces_of(secret, size))
    async with guarded(CHAT_SYSTEM_PROMPT=BUILT_IN) as service:
        async with asyncio.timeout(20):
            events = await service.ask(user_id="anna")
            await model.chats[0].gone.wait()  # the upstream's client has left
        text = text_of(events)
        completed = events[-1].completed
        assert text.startswith(MODEL_SAYS)
        assert WITHHELD in text
        # That a private key follows is no secret, and pieces may arrive as one.
        told = letters(text.removeprefix(MODEL_SAYS).partition(WITHHELD)[0]).removeprefix("beginprivatekey")
        assert len(told) <= 16, told
        assert completed.finish_reason == types_pb2.FINISH_REASON_CONTENT_FILTER
        assert [item.question for item in completed.suggested_questions] == ["What is it?"]
        assert completed.usage.estimated
        [message] = await service.messages(user_id="anna")
        assert (message.status, message.answer) == (Message.STATUS_COMPLETED, text)
        assert message.error_reason == "GUARDRAIL_" + rule.replace(".", "_").upper()
        assert (await scrape(service.channel))(REFUSALS, rule=rule, side="output") == 1


async def test_it_is_not_cached_and_the_session_forgets_it(guarded: StartService, model: Upstream) -> None:
    model.answer = saying(MODEL_SAYS, OWN_KEY)
    async with guarded() as service:
        session = (await service.ask())[0].started.session_id
        model.answer = saying("Fine.")
        assert text_of(await service.ask()) == "Fine."
        await service.ask("Go on.", session_id=session)
    assert len(model.chats) == 3
    assert [turn["content"] for turn in model.chats[2].messages[1:]] == ["Go on."]


async def test_whoever_follows_the_answer_hears_the_same(guarded: StartService, model: Upstream) -> None:
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text(MODEL_SAYS)
        await go_on.wait()
        await exchange.text(*pieces_of(OWN_KEY, 3), " and more")

    model.answer = answer
    async with guarded() as service:
        calls = [asyncio.ensure_future(service.ask(user_id=user)) for user in ("anna", "bert")]
        await until(lambda: followers(service), 1)
        go_on.set()
        first, second = await asyncio.gather(*calls)
        assert text_of(first) == text_of(second)
        assert OWN_KEY[:16] not in text_of(first)
        for user in ("anna", "bert"):
            [message] = await service.messages(user_id=user)
            assert message.error_reason == "GUARDRAIL_LEAK_OWN_KEY"
    assert len(model.chats) == 1


async def followers(service: Service) -> float:
    return (await scrape(service.channel))("chat_grpc_single_flight_followers_total")


async def until(read: object, value: float) -> None:
    async with asyncio.timeout(10):
        while await read() != value:  # type: ignore[operator]  # a coroutine function without arguments
            await asyncio.sleep(0.02)


async def test_what_only_looked_like_a_leak_comes_through(guarded: StartService, model: Upstream) -> None:
    said = (
        "You answer ques",
        "tions from the pass",
        "ages in the box; sk-",
        "or is short, ",
        "and sk-or-v1-0a1b",
        " too.",
    )
    model.answer = saying(*said)
    async with guarded(CHAT_SYSTEM_PROMPT=BUILT_IN) as service:
        events = await service.ask()
    assert text_of(events) == "".join(said)
    assert events[-1].completed.finish_reason == types_pb2.FINISH_REASON_STOP


async def test_what_the_caller_wrote_is_no_secret(guarded: StartService, model: Upstream) -> None:
    model.answer = saying("Your key ", FOREIGN_KEY, " looks complete.")
    async with guarded() as service:
        assert text_of(await service.ask(f"Is {FOREIGN_KEY} complete?")) == f"Your key {FOREIGN_KEY} looks complete."


async def test_an_answer_that_ends_within_a_beginning_is_whole(guarded: StartService, model: Upstream) -> None:
    model.answer = saying("It begins with ", "sk-or-v1-", "0a1b2")
    async with guarded() as service:
        assert text_of(await service.ask()) == "It begins with sk-or-v1-0a1b2"


async def test_tokens_are_passed_on_one_by_one(chat_service: Service, model: Upstream) -> None:
    """Each piece reaches the client before the next one is written."""
    taken = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for piece in ("They ", "are ", "kept ", "in ", "SQ", "Lite."):
            await exchange.text(piece)
            await taken.wait()
            taken.clear()
        await exchange.finish()

    model.answer = answer
    pieces = []
    async with asyncio.timeout(20):
        async for event in chat_service.chat.Chat(chat_pb2.ChatRequest(message="Where?")):
            if event.HasField("delta"):
                pieces.append(event.delta.text)
                taken.set()
    assert pieces == ["They ", "are ", "kept ", "in ", "SQ", "Lite."]


async def test_switched_off_nothing_is_held_back(guarded: StartService, model: Upstream) -> None:
    model.answer = saying(MODEL_SAYS, OWN_KEY)
    async with guarded(CHAT_GUARDRAILS="off") as service:
        assert text_of(await service.ask()) == MODEL_SAYS + OWN_KEY


def test_a_leak_is_found_however_it_is_cut_and_what_is_none_comes_through_unchanged() -> None:
    chance = random.Random(5)  # noqa: S311 (it only has to be the same every time)
    guardrails = Guardrails(chosen("on", ""), [OWN_KEY])
    words = [
        "the",
        "passages",
        "you",
        "are",
        "given",
        "keep to what",
        "sk-",
        "0a1b",
        "私",
        "ключ",
        "AIza",
        "**",
        "\n",
        "key",
    ]
    for _ in range(300):
        before = " ".join(chance.choices(words, k=chance.randrange(12)))
        secret, _ = chance.choice(list(LEAKS.values()))
        for text, leaks in ((before + " # " + secret + " .", True), (before + " and that is all", False)):
            guard = guardrails.answer((BUILT_IN,), "How?")
            assert guard is not None
            passed, place = "", 0
            try:
                while place < len(text):
                    size = chance.choice((1, 2, 3, 5, 8, 30, 200))
                    passed += guard.look(text[place : place + size])
                    place += size
                passed += guard.end()
            except Withheld as leak:
                assert leaks, text
                passed += leak.before
                assert text.startswith(passed)
                assert len(letters(passed.partition(" # ")[2])) <= 16
            else:
                assert not leaks, text
                assert passed == text
