"""Passages for a message, or the knowledge that they are missing."""

from __future__ import annotations

import time

from chat_grpc.domain import ChatRequest, Retrieved
from chat_grpc.errors import RetrievalUnavailable
from chat_grpc.retrieval import Retriever
from chat_grpc.telemetry import logs

log = logs.get(__name__)

DEFAULT_TOP_K = 5


class Passages:
    """Finds passages in the memory. One instance serves all callers."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    async def find(self, request: ChatRequest) -> Retrieved | None:
        """Return the passages, or None when the memory is missing."""
        started = time.perf_counter()
        try:
            passages = await self._retriever.ask(
                request.message, top_k=request.options.top_k or DEFAULT_TOP_K, filters=request.options.filters
            )
        except RetrievalUnavailable as error:
            log.warning("answering without passages", reason=error.reason)
            return None
        return Retrieved(passages, round((time.perf_counter() - started) * 1000))
