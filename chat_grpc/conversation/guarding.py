"""What guardrails do to a message on its way: refuse it, watch its answer, and say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from chat_grpc.cache import CachedAnswer
from chat_grpc.conversation import prompt
from chat_grpc.conversation.answering import Answering
from chat_grpc.conversation.guardrails import Side, refusal
from chat_grpc.domain import Exchange, FinishReason, Retrieved, SuggestedQuestion, Usage
from chat_grpc.retrieval import Retriever
from chat_grpc.telemetry import logs
from chat_grpc.telemetry.metrics import Metrics

if TYPE_CHECKING:  # its patterns are compiled only where guardrails are on
    from chat_grpc.conversation.guardrails.guard import Guardrails
    from chat_grpc.conversation.guardrails.stream import AnswerGuard

log = logs.get(__name__)


class Guarding:
    """Applies the guardrails to messages and answers. One instance serves all callers.

    Args:
        guardrails: what must not go to a model, or come from it; None checks nothing.
        retriever: who knows what may be asked instead.
        metrics: where it is counted what was refused.

    Attributes:
        refusing: returns the id of the rule that refuses a message; "" if none does.
    """

    def __init__(self, guardrails: Guardrails | None, retriever: Retriever, metrics: Metrics) -> None:
        self._guardrails = guardrails
        self._suggestions = refusal.Suggestions(retriever)
        self._metrics = metrics
        self.refusing: Callable[[str], str] = _refusing_nothing if guardrails is None else guardrails.refusing

    def harmless(self, history: Sequence[Exchange]) -> Sequence[Exchange]:
        """Leave out what a guardrail refuses: its callers keep it, and would send it to the model after all."""
        if self._guardrails is None:
            return history
        return [said for said in history if not self._guardrails.refusing(said.message)]

    def guard_of(self, answering: Answering) -> AnswerGuard | None:
        """Return what looks at an answer while it is passed on, if anything does."""
        if self._guardrails is None:
            return None
        told = (answering.sending.own, prompt.PASSAGES.partition("\n")[0])
        return self._guardrails.answer(told, answering.request.message)

    async def suggested(self) -> tuple[SuggestedQuestion, ...]:
        """Return what may be asked instead."""
        return await self._suggestions.questions()

    async def refuse(self, answering: Answering) -> CachedAnswer:
        """Return what answers a message, in place of a model, that a guardrail refuses."""
        self._note(answering, Side.INPUT)
        answering.suggested = await self._suggestions.questions()
        answering.found = Retrieved((), 0)
        text = refusal.refusal_of(answering.suggested)
        return CachedAnswer(text, refusal.MODEL, FinishReason.CONTENT_FILTER, Usage(0, 0, 0, 0.0))

    def withhold(self, answering: Answering, rule: str) -> None:
        """Note that the rest of an answer is withheld."""
        answering.guardrail = rule
        self._note(answering, Side.OUTPUT)

    async def ending_of(self, answering: Answering) -> str:
        """Return what ends an answer whose rest is withheld."""
        answering.suggested = await self._suggestions.questions()
        return refusal.withheld_of(answering.suggested)

    async def take_over(self, answering: Answering, written: CachedAnswer) -> None:
        """Note if a guardrail withheld the rest of an answer that was written for an equal request."""
        if written.guardrail:
            answering.guardrail = written.guardrail
            answering.suggested = await self._suggestions.questions()

    def _note(self, answering: Answering, side: Side) -> None:
        """Count that a guardrail refused a message or withheld an answer."""
        self._metrics.guardrail(answering.guardrail, side)
        log.info("refused by a guardrail", message_id=answering.message.id, rule=answering.guardrail, side=side)


def _refusing_nothing(_: str) -> str:
    return ""
