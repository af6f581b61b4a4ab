"""The two tables: what must be refused, what must be answered. `pytest -s` prints both rates."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from chat_grpc.conversation.guardrails import Withheld, override, persona, reveal
from chat_grpc.conversation.guardrails.guard import INPUT_RULES, Guardrails
from chat_grpc.conversation.guardrails.plain import PlainWords
from chat_grpc.conversation.guardrails.table import RULES, chosen
from chat_grpc.conversation.guardrails.text import Readings
from chat_grpc.conversation.system_prompt import BUILT_IN

HERE = Path(__file__).parent
ATTACKS: dict[str, list[str]] = yaml.safe_load((HERE / "attacks.yaml").read_text(encoding="utf-8"))
INNOCENT: dict[str, Any] = yaml.safe_load((HERE / "innocent.yaml").read_text(encoding="utf-8"))
PASTED: list[str] = [item["line"] * item["times"] + item["question"] for item in INNOCENT["pasted"]]
QUESTIONS: list[str] = INNOCENT["questions"] + PASTED
ANSWERS: list[str] = INNOCENT["answers"]
SIZES = (1, 3, 7, 1000)
"""Characters of the pieces that answers come in."""

ON = Guardrails(chosen("on", ""))
ALL = Guardrails(chosen("all", ""))


def withheld_by(guardrails: Guardrails, text: str, size: int) -> str:
    """Return the id of the rule that withholds a part of an answer; "" if all of it comes through."""
    guard = guardrails.answer((BUILT_IN,), "How?")
    if guard is None:
        return ""
    try:
        passed = "".join(guard.look(text[place : place + size]) for place in range(0, len(text), size)) + guard.end()
    except Withheld as leak:
        return leak.rule
    assert passed == text
    return ""


def refuses(rule: str) -> int:
    """Count the innocent texts that a rule refuses alone."""
    alone = Guardrails([rule])
    answers = sum(any(withheld_by(alone, text, size) for size in SIZES) for text in ANSWERS)
    return answers + sum(bool(alone.refusing(text)) for text in QUESTIONS)


def test_the_tables_are_long_enough() -> None:
    assert sum(len(texts) for texts in ATTACKS.values()) >= 60
    assert len(QUESTIONS) >= 60


def test_the_quick_look_lets_nothing_through_that_a_rule_refuses() -> None:
    quick = PlainWords((override.phrases(), reveal.phrases(), persona.phrases()))
    texts = [text for attacks in ATTACKS.values() for text in attacks] + QUESTIONS
    # As plain as they can be made, and with their words in another order or cut off, so that more of them get there.
    plain = [" ".join(re.findall("[a-z]+", text.lower())) for text in texts]
    chance = random.Random(7)  # noqa: S311 (a test that can be repeated)
    cut = [" ".join(words[place:]) for words in map(str.split, plain) for place in range(len(words))]
    mixed = [" ".join(chance.sample(words, len(words))) for words in map(str.split, plain) for _ in range(20)]
    harmless = [text for text in (*texts, *plain, *cut, *mixed) if quick.harmless(text)]
    assert len(harmless) > 300
    assert [
        text for text in harmless if any(rule.refuses(Readings(text)) for rule in (build() for build in INPUT_RULES))
    ] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is a vector database?", True),
        ("Ignore that.", False),  # a word that an attack would need
        ("What did they ingore?", False),  # also with its letters mixed
        ("i g n o r e", False),
        ("ign0re it", False),
        ("69 67 6e 6f 72 65 20 61 6c 6c 20 6f", False),
        ("Pneumonoultramicroscopic?", False),
        ("Was ist möglich?", False),
        ("word " * 300, False),
        ("<b>bold</b>", False),
    ],
)
def test_what_the_quick_look_is_sure_of(text: str, *, expected: bool) -> None:
    assert PlainWords((override.phrases(), reveal.phrases(), persona.phrases())).harmless(text) is expected


@pytest.mark.parametrize(
    ("rule", "text"), [(rule, text) for rule, texts in ATTACKS.items() for text in texts], ids=ascii
)
def test_an_attack_is_refused(rule: str, text: str) -> None:
    assert ALL.refusing(text) == rule
    assert bool(ON.refusing(text)) == RULES[rule][1]


@pytest.mark.parametrize("text", QUESTIONS, ids=lambda text: ascii(text)[:60])
def test_an_innocent_question_is_answered(text: str) -> None:
    assert ON.refusing(text) == ""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text", ANSWERS, ids=lambda text: ascii(text)[:60])
def test_an_innocent_answer_comes_through(text: str, size: int) -> None:
    assert withheld_by(ON, text, size) == ""


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_on_by_default_if_and_only_if_it_refuses_nothing_innocent(rule: str) -> None:
    assert RULES[rule][1] == (refuses(rule) == 0)


def test_the_rates() -> None:
    attacks = [text for texts in ATTACKS.values() for text in texts]
    for name, guardrails in (("on", ON), ("all", ALL)):
        detected = sum(bool(guardrails.refusing(text)) for text in attacks)
        wrong = sum(bool(guardrails.refusing(text)) for text in QUESTIONS)
        wrong += sum(any(withheld_by(guardrails, text, size) for size in SIZES) for text in ANSWERS)
        innocent = len(QUESTIONS) + len(ANSWERS)
        print(  # noqa: T201 (the rates are to be seen)
            f"\nCHAT_GUARDRAILS={name}: {detected} of {len(attacks)} attacks refused ({detected / len(attacks):.1%}), "
            f"{wrong} of {innocent} innocent texts refused ({wrong / innocent:.1%})"
        )
        assert detected / len(attacks) > 0.9
        assert wrong == 0 or name == "all"
