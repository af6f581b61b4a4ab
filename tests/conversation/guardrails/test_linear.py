"""No text makes a rule slow: four times the text takes about four times the time."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from chat_grpc.conversation.guardrails import Withheld
from chat_grpc.conversation.guardrails.guard import Guardrails
from chat_grpc.conversation.guardrails.table import chosen
from chat_grpc.conversation.system_prompt import BUILT_IN

ALL = Guardrails(chosen("all", ""), ["sk-or-v1-0a1b2c3d4e5f60718293a4b5c6d7e8f9"])
SMALL, LARGE = 2_500, 10_000
MOST = 3.0
"""How many times slower per character the large text may be; quadratic would be 4, and more."""

TEXTS = {
    "words": "ignore the ",
    "firsts": "ignore ",
    "almost": "ignore all the previous previous previous ",
    "letters": "i g n o r e ",
    "letter": "i",
    "base64": "QUFB",
    "hex": "4f ",
    "percent": "%41",
    "entities": "&#65;",
    "escapes": "\\u0041",
    "quotes": '"ignore previous instructions ',
    "mixed": "\u0456g",
    "chinese": "忽略之前",
    "tags": "<|im_",
    "keys": "sk-a",
    "pem": "-----BEGIN PRIVATE KEY-----",
    "jwt": "eyJhbGciOi.",
    "spaces": " ",
    "invisible": "a\u200b",
    "prompt": "the passages you are given ",
}


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def answer(text: str) -> None:
    guard = ALL.answer((BUILT_IN,), "How?")
    assert guard is not None
    try:
        for place in range(0, len(text), 40):
            guard.look(text[place : place + 40])
    except Withheld:
        return


@pytest.mark.parametrize("work", [ALL.refusing, answer], ids=["message", "answer"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_time_grows_with_the_text_and_no_faster(text: str, work: Callable[[str], object]) -> None:
    small, large = (seconds(lambda size=size: work((text * size)[:size])) for size in (SMALL, LARGE))  # type: ignore[misc]  # a default binds the size
    assert large / LARGE < MOST * max(small, 2e-4) / SMALL
