"""The client of the memvid service."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import grpc
import msgspec

from chat_grpc._gen.memvid.v1 import health_pb2, health_pb2_grpc, memvid_pb2, memvid_pb2_grpc
from chat_grpc.domain import Passage, SuggestedQuestion
from chat_grpc.errors import RetrievalUnavailable
from chat_grpc.retrieval import MemoryState, Profile
from chat_grpc.telemetry import context, logs

log = logs.get(__name__)

T = TypeVar("T")

SNIPPET_CHARS = 600
PROFILE_ENTITY = "__profile__"
PROFILE_SLOT = "data"

OPTIONS = (
    # A service that died without a goodbye is noticed by pings, also between calls.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # One that comes back is found within 2 s; the default waits up to 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class _ProfileCard(msgspec.Struct):
    """The profile as the memory keeps it; further fields are passed over."""

    name: str = ""
    title: str = ""
    suggested_questions: list[str] = []
    categories: dict[str, str] = {}
    system_prompt: Any = ""


class MemvidRetriever:
    """A memory behind memvid.v1.

    Args:
        target: host:port of the service.
        timeout: seconds that one call may take.
    """

    def __init__(self, target: str, *, timeout: float) -> None:
        self._target = target
        self._timeout = timeout
        self._channel = grpc.aio.insecure_channel(target, OPTIONS)
        self._memory = memvid_pb2_grpc.MemvidServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def ask(self, question: str, *, top_k: int, filters: Mapping[str, str]) -> tuple[Passage, ...]:
        """Ask for passages; see Retriever."""
        # Search would want every word of the question in one passage.
        request = memvid_pb2.AskRequest(
            question=question, use_llm=False, top_k=top_k, filters=filters, snippet_chars=SNIPPET_CHARS
        )
        response = await self._call(self._memory.Ask(request, timeout=self._timeout, metadata=_metadata()))
        return tuple(Passage(hit.title, hit.score, hit.snippet, tuple(hit.tags)) for hit in response.evidence)

    async def profile(self) -> Profile | None:
        """Read the profile card; see Retriever."""
        request = memvid_pb2.GetStateRequest(entity=PROFILE_ENTITY, slot=PROFILE_SLOT)
        response = await self._call(self._memory.GetState(request, timeout=self._timeout, metadata=_metadata()))
        if not response.found or PROFILE_SLOT not in response.slots:
            return None
        try:
            card = msgspec.json.decode(response.slots[PROFILE_SLOT], type=_ProfileCard)
        except msgspec.DecodeError:
            log.warning("the memory's profile is not of the form of a profile", target=self._target)
            return None
        questions = tuple(
            SuggestedQuestion(text, card.categories.get(text, "general")) for text in card.suggested_questions
        )
        # A card that others wrote may hold anything under this name; its questions are good all the same.
        system_prompt = card.system_prompt if isinstance(card.system_prompt, str) else ""
        return Profile(card.name, card.title, questions, system_prompt)

    async def state(self) -> MemoryState:
        """Ask the service's own health; see Retriever."""
        response = await self._call(
            self._health.Check(health_pb2.HealthCheckRequest(), timeout=self._timeout, metadata=_metadata())
        )
        serving = response.status == health_pb2.HealthCheckResponse.SERVING
        return MemoryState(serving, response.frame_count, response.memvid_file)

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            raise RetrievalUnavailable(
                f"the memvid service at {self._target} "
                + (f"did not answer within {self._timeout:g} s" if late else "could not be asked"),
                reason="RETRIEVAL_TIMEOUT" if late else None,
                metadata={"grpc_code": error.code().name},
            ) from None


def _metadata() -> tuple[tuple[str, str], ...]:
    """Pass the request's id and its trace on, so that both services' logs can be read together."""
    request_id = context.request_id()
    named = (("x-request-id", request_id),) if request_id else ()
    return (*named, *context.trace_headers().items())
