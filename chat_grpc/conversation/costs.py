"""What answers cost, in tokens and in money."""

from __future__ import annotations

from msgspec.structs import replace

from chat_grpc.conversation.answering import Answering
from chat_grpc.domain import Usage
from chat_grpc.errors import ChatError
from chat_grpc.llm import Ending, Opened
from chat_grpc.llm.prices import Prices
from chat_grpc.llm.tokens import TokenCounter


class Costs:
    """Tells what answers cost. One instance serves all callers.

    Args:
        tokens: what counts them where the provider reported nothing.
        prices: what they cost.
    """

    def __init__(self, tokens: TokenCounter, prices: Prices) -> None:
        self._tokens = tokens
        self._prices = prices

    async def of_whole(self, answering: Answering, opened: Opened, ending: Ending) -> Usage:
        """Return what a whole answer has cost."""
        usage = ending.usage or self._estimated(answering)
        return replace(usage, cost_usd=await self._prices.cost(opened.model, usage))

    async def of_broken_off(self, answering: Answering, error: BaseException) -> Usage | None:
        """Return what an answer that was not completed has cost; None if no model was asked, or none would answer."""
        if answering.prompt is None or (isinstance(error, ChatError) and not answering.pieces):
            return None
        usage = self._estimated(answering)
        return replace(usage, cost_usd=await self._prices.cost(answering.message.model, usage))

    def _estimated(self, answering: Answering) -> Usage:
        """Return what was sent and written where the provider reported nothing."""
        sent = sum(self._tokens.count(turn.content) for turn in answering.prompt.turns) if answering.prompt else 0
        written = self._tokens.count("".join(answering.pieces))
        return Usage(sent, written, sent + written, None, estimated=True)
