"""The guardrails that are switched on, as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from chat_grpc.conversation.guardrails import InputRule, OutputRule, override, persona, reveal
from chat_grpc.conversation.guardrails.encoded import Encoded
from chat_grpc.conversation.guardrails.hidden import Hidden
from chat_grpc.conversation.guardrails.key_leak import KeyLeak, PrivateKeyLeak, TokenLeak
from chat_grpc.conversation.guardrails.override import Override
from chat_grpc.conversation.guardrails.own_key_leak import OwnKeyLeak
from chat_grpc.conversation.guardrails.persona import Persona
from chat_grpc.conversation.guardrails.plain import PlainWords
from chat_grpc.conversation.guardrails.prompt_leak import PromptLeak
from chat_grpc.conversation.guardrails.repetition import Repetition
from chat_grpc.conversation.guardrails.reveal import Reveal
from chat_grpc.conversation.guardrails.stream import AnswerGuard, union
from chat_grpc.conversation.guardrails.template import Template
from chat_grpc.conversation.guardrails.text import Readings

INPUT_RULES: tuple[Callable[[], InputRule], ...] = (
    Hidden, Override, Reveal, Persona, Encoded, Template, Repetition,
)  # fmt: skip
"""In the order in which they are asked; the first one that refuses a message names the refusal."""


class Guardrails:
    """Checks messages and answers. One instance serves all callers.

    Args:
        rules: the ids of the rules that are on.
        secrets: the service's own keys and passwords.
    """

    def __init__(self, rules: Iterable[str], secrets: Sequence[str] = ()) -> None:
        on = frozenset(rules)
        outputs: tuple[OutputRule, ...] = (OwnKeyLeak(secrets), PrivateKeyLeak(), KeyLeak(), TokenLeak())
        self._input = tuple(rule for rule in (build() for build in INPUT_RULES) if rule.id in on)
        self._output = tuple(rule for rule in outputs if rule.id in on)
        self._plain_words = PlainWords((override.phrases(), reveal.phrases(), persona.phrases()))
        self._guards_prompt = PromptLeak.id in on
        self._for_prompt = lru_cache(maxsize=8)(self._rules_for)

    def refusing(self, message: str) -> str:
        """Return the id of the first rule that refuses a message; "" if none does."""
        if self._plain_words.harmless(message):
            return ""
        readings = Readings(message)
        return next((rule.id for rule in self._input if rule.refuses(readings)), "")

    def answer(self, told: tuple[str, ...], question: str) -> AnswerGuard | None:
        """Return what looks at one answer; None if no rule is on that does.

        Args:
            told: what the model is told and nobody else, each part that may be told by itself.
            question: the message that is answered.
        """
        if not self._output and not self._guards_prompt:
            return None
        return AnswerGuard(*self._for_prompt(told), question)

    def _rules_for(self, told: tuple[str, ...]) -> tuple[tuple[OutputRule, ...], frozenset[bytes], frozenset[bytes]]:
        rules = (*self._output, PromptLeak(*told)) if self._guards_prompt else self._output
        return rules, union(rule.short for rule in rules), union(rule.long for rule in rules)

    async def open(self) -> None:
        """Make ready what the first message would have to wait for."""
        self.refusing("What stands in the first message?")
