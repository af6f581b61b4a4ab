"""memvid.v1 in, a question to the open memory, memvid.v1 out.

The defaults are those of the Rust service. What this one can't do is refused by
the name of the field, never passed over.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc

from chat_grpc._gen.memvid.v1 import health_pb2, health_pb2_grpc, memvid_pb2, memvid_pb2_grpc
from chat_grpc.embedded.memory import DEPTH, Answer, Conditions, Hit, InvalidQuery, Memory
from chat_grpc.errors import InvalidRequest, Violation

SERVICES = ("memvid.v1.MemvidService", "memvid.v1.Health")

DEFAULT_TOP_K = 5
DEFAULT_SNIPPET_CHARS = 200
MAX_SNIPPET_CHARS = 10_000
MAX_QUESTION_CHARS = 10_000
MAX_FILTERS = 16

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class OnThread(Protocol):
    """Runs a call on the one thread that may touch the memory."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]:
        """Return what the call returns; raise what it raises."""


class MemvidServicer(memvid_pb2_grpc.MemvidServiceServicer):
    """memvid.v1.MemvidService over one memory."""

    def __init__(self, memory: Memory, on_thread: OnThread) -> None:
        self._memory = memory
        self._on_thread = on_thread

    async def Search(self, request: memvid_pb2.SearchRequest, _: Context) -> memvid_pb2.SearchResponse:  # noqa: N802 (the contract's name)
        """Find passages that hold every word of the query."""
        faults = _Faults()
        faults.text("query", request.query)
        top_k, snippet_chars = _sizes(request, faults)
        faults.unless(
            math.isfinite(request.min_relevance) and 0 <= request.min_relevance <= 1, "min_relevance", "must be 0 to 1"
        )
        _mode(request.mode, faults)
        # A response to Search can't say that another index answered.
        faults.unless(
            request.mode != memvid_pb2.ASK_MODE_SEM,
            "mode",
            "this memory has no vector index; use ASK_MODE_LEX or ASK_MODE_HYBRID",
        )
        faults.raise_any()
        try:
            answer = await self._on_thread(
                lambda: self._memory.search(
                    request.query, top_k=top_k, snippet_chars=snippet_chars, min_relevance=request.min_relevance
                )
            )
        except InvalidQuery:
            rule = "is no query that memvid understands; use plain words, without quotes, brackets and colons"
            raise InvalidRequest([Violation("query", rule)]) from None
        return memvid_pb2.SearchResponse(
            hits=_hits(answer.hits), total_hits=answer.candidates, took_ms=answer.retrieval_ms + answer.ranking_ms
        )

    async def Ask(self, request: memvid_pb2.AskRequest, _: Context) -> memvid_pb2.AskResponse:  # noqa: N802 (the contract's name)
        """Find passages for a question.

        This server has no model, so ``use_llm`` changes nothing: ``answer`` is
        the context that a model would be given, as it is without.
        """
        faults = _Faults()
        faults.text("question", request.question)
        top_k, snippet_chars = _sizes(request, faults)
        _mode(request.mode, faults)
        faults.unless(len(request.filters) <= MAX_FILTERS, "filters", f"must be at most {MAX_FILTERS}")
        faults.unless(all(k and v for k, v in request.filters.items()), "filters", "must have no empty key or value")
        faults.unless(request.start >= 0, "start", "must not be negative")
        faults.unless(request.end >= 0, "end", "must not be negative")
        faults.unless(not request.end or request.start <= request.end, "end", "must not be before start")
        faults.unless(not request.cursor, "cursor", "must be empty: this server gives out no cursors")
        for name in ("as_of_frame", "as_of_ts"):
            faults.unless(getattr(request, name) >= 0, name, "must not be negative")
        faults.raise_any()
        answer = await self._on_thread(
            lambda: self._memory.ask(
                request.question,
                top_k=top_k,
                snippet_chars=snippet_chars,
                conditions=_conditions(request),
                adaptive=request.adaptive,
            )
        )
        return _ask_response(answer, used_fallback=request.mode == memvid_pb2.ASK_MODE_SEM)

    async def GetState(self, request: memvid_pb2.GetStateRequest, _: Context) -> memvid_pb2.GetStateResponse:  # noqa: N802 (the contract's name)
        """Read the slots of an entity."""
        faults = _Faults()
        faults.unless(bool(request.entity), "entity", 'must not be empty; "__profile__" is the memory\'s own')
        faults.raise_any()
        slots = await self._on_thread(lambda: self._memory.state(request.entity)) or {}
        if request.slot:
            slots = {request.slot: slots[request.slot]} if request.slot in slots else {}
        return memvid_pb2.GetStateResponse(found=bool(slots), entity=request.entity, slots=slots)


class MemvidHealthServicer(health_pb2_grpc.HealthServicer):
    """memvid.v1.Health: a server that answers has its file open."""

    def __init__(self, frame_count: int, path: Path) -> None:
        self._frame_count = frame_count
        self._path = path

    async def Check(self, request: health_pb2.HealthCheckRequest, _: Context) -> health_pb2.HealthCheckResponse:  # noqa: N802 (the contract's name)
        """Tell what is known of a service, from memory."""
        known = request.service in ("", *SERVICES)
        status = health_pb2.HealthCheckResponse.SERVING if known else health_pb2.HealthCheckResponse.UNKNOWN
        return health_pb2.HealthCheckResponse(status=status, frame_count=self._frame_count, memvid_file=str(self._path))


class _Faults:
    """Collects every rule that a request breaks, to tell the caller all at once."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def unless(self, holds: bool, field: str, rule: str) -> None:  # noqa: FBT001 (the condition is the subject)
        if not holds:
            self._violations.append(Violation(field, rule))

    def text(self, field: str, text: str) -> None:
        self.unless(
            bool(text.strip()) and len(text) <= MAX_QUESTION_CHARS,
            field,
            f"must be 1 to {MAX_QUESTION_CHARS:,} characters, not only white space",
        )

    def raise_any(self) -> None:
        if self._violations:
            raise InvalidRequest(self._violations)


def _sizes(request: memvid_pb2.SearchRequest | memvid_pb2.AskRequest, faults: _Faults) -> tuple[int, int]:
    faults.unless(0 <= request.top_k <= DEPTH, "top_k", f"must be 0 to {DEPTH}; 0 means {DEFAULT_TOP_K}")
    faults.unless(
        0 <= request.snippet_chars <= MAX_SNIPPET_CHARS,
        "snippet_chars",
        f"must be 0 to {MAX_SNIPPET_CHARS:,}; 0 means {DEFAULT_SNIPPET_CHARS}",
    )
    return request.top_k or DEFAULT_TOP_K, request.snippet_chars or DEFAULT_SNIPPET_CHARS


def _mode(mode: int, faults: _Faults) -> None:
    # A proto3 enum takes any number, also one of a later version.
    faults.unless(mode in memvid_pb2.AskMode.values(), "mode", "is not a mode of this version")


def _conditions(request: memvid_pb2.AskRequest) -> Conditions:
    until = [request.end] if request.end else []
    if request.HasField("as_of_ts"):
        until.append(request.as_of_ts)
    return Conditions(
        filters=dict(request.filters),
        uri=request.uri,
        added_from=request.start or None,
        added_until=min(until, default=None),
        last_frame=request.as_of_frame if request.HasField("as_of_frame") else None,
    )


def _hits(hits: tuple[Hit, ...]) -> list[memvid_pb2.SearchHit]:
    return [memvid_pb2.SearchHit(title=hit.title, score=hit.score, snippet=hit.snippet, tags=hit.tags) for hit in hits]


def _ask_response(answer: Answer, *, used_fallback: bool) -> memvid_pb2.AskResponse:
    return memvid_pb2.AskResponse(
        answer="\n\n".join(f"{hit.title}\n{hit.snippet}" for hit in answer.hits),
        evidence=_hits(answer.hits),
        stats=memvid_pb2.AskStats(
            candidates_retrieved=answer.candidates,
            results_returned=len(answer.hits),
            retrieval_ms=answer.retrieval_ms,
            reranking_ms=answer.ranking_ms,
            used_fallback=used_fallback,
        ),
    )
