"""How many tokens a model reads at once, its answer included."""

from __future__ import annotations

from chat_grpc.llm.catalog import Catalog

UNKNOWN = 32_768
"""What is taken for a model that no table knows: more than the longest message, so that none is refused by a guess."""
LOCAL = 4_096
"""What `chat-grpc llama` gives each stream."""
UNLIMITED = 1_000_000
"""The extractive provider sends no prompt to anybody."""
KNOWN = {"openrouter/nvidia/nemotron-nano-9b-v2:free": 128_000}
"""Default models of this program that the table lacks."""


class Contexts:
    """The models' context windows.

    Args:
        catalog: what the table knows.
        configured: tokens, for every model; 0 to go by the model.
    """

    def __init__(self, catalog: Catalog, *, configured: int = 0) -> None:
        self._catalog = catalog
        self._configured = configured

    async def window(self, model: str) -> int:
        """Return how many tokens "provider/model" reads at once."""
        provider = model.partition("/")[0]
        if provider == "extractive":
            return UNLIMITED
        if self._configured:
            return self._configured
        if provider == "local":
            return LOCAL
        if model in KNOWN:
            return KNOWN[model]
        known = await self._catalog.find(model)
        return (known.context if known else None) or UNKNOWN
