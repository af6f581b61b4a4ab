"""What an answer cost."""

from __future__ import annotations

from chat_grpc.domain import Usage
from chat_grpc.llm.catalog import Catalog

FREE_PROVIDERS = frozenset({"extractive", "local"})
FREE_VARIANT = ":free"
"""How OpenRouter ends the names of models that cost nothing."""

DIGITS = 12
"""Behind the point; what follows is the noise of floating point, as the cheapest token costs more than 1e-9."""


class Prices:
    """Turns tokens into US dollars.

    Prices are the table's: what a provider takes without discounts, such as for
    a prompt that it has kept from before.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def cost(self, model: str, usage: Usage) -> float | None:
        """Return what an answer of "provider/model" cost in USD, or None if no price is known.

        What the provider itself said it cost goes before the table.
        """
        if usage.cost_usd is not None:
            return usage.cost_usd
        if model.partition("/")[0] in FREE_PROVIDERS or model.endswith(FREE_VARIANT):
            return 0.0
        known = await self._catalog.find(model)
        for tier in known.tiers if known else ():
            if usage.prompt_tokens > tier.above or not tier.above:
                cost = usage.prompt_tokens * tier.input_cost + usage.completion_tokens * tier.output_cost
                return round(cost, DIGITS)
        return None

    async def preload(self) -> None:
        """Read the table now rather than for the first answer."""
        await self._catalog.preload()
