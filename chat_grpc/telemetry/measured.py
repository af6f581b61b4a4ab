"""What a server is built of, with a watch beside it: each call's time and outcome are counted, and make a span.

These stand around the real ones, whichever they are, so that a new storage or
cache is measured without a line of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import TypeVar

from msgspec.structs import replace

from chat_grpc.cache import Cache, CachedAnswer
from chat_grpc.domain import Message, Passage
from chat_grpc.errors import ChatError
from chat_grpc.llm import Ending, Models, Opened, Prompt, Sink
from chat_grpc.retrieval import MemoryState, Profile, Retriever
from chat_grpc.storage import Batch, Cursor, Expired, Scope, Storage
from chat_grpc.telemetry.metrics import Metrics
from chat_grpc.telemetry.traces import Kind, Span, Tracer, reason_of

T = TypeVar("T")

SYSTEMS = {"gemini": "gcp.gemini"}
"""Providers that OpenTelemetry's conventions have another name for."""


class MeasuredStorage:
    """A storage, measured; see Storage."""

    def __init__(self, storage: Storage, metrics: Metrics, tracer: Tracer) -> None:
        self._storage = storage
        self._metrics = metrics
        self._tracer = tracer

    def add(self, message: Message) -> Awaitable[bool]:
        """See Storage."""
        return self._watched("add", self._storage.add(message))

    async def find_request(self, request_key: str) -> Message | None:
        """See Storage."""
        with self._measured("find_request"):
            return await self._storage.find_request(request_key)

    def settle(self, message: Message) -> Awaitable[None]:
        """See Storage."""
        return self._watched("settle", self._storage.settle(message))

    async def list_messages(self, scope: Scope, *, limit: int, before: Cursor | None = None) -> list[Message]:
        """See Storage."""
        with self._measured("list_messages"):
            return await self._storage.list_messages(scope, limit=limit, before=before)

    async def delete_messages(self, scope: Scope) -> int:
        """See Storage."""
        with self._measured("delete_messages"):
            return await self._storage.delete_messages(scope)

    async def expire(self, before: datetime, *, limit: int) -> Expired:
        """See Storage."""
        with self._measured("expire"):
            return await self._storage.expire(before, limit=limit)

    async def count(self) -> int:
        """See Storage."""
        return await self._storage.count()

    async def scan(self, after: str = "", *, limit: int) -> Batch:
        """See Storage."""
        with self._measured("scan"):
            return await self._storage.scan(after, limit=limit)

    async def put(self, messages: Sequence[Message]) -> int:
        """See Storage."""
        with self._measured("put"):
            return await self._storage.put(messages)

    async def secret(self, name: str) -> bytes:
        """See Storage. Not measured: it is asked for once."""
        return await self._storage.secret(name)

    async def ping(self) -> None:
        """See Storage. Not measured: probes would drown what messages take."""
        await self._storage.ping()

    async def close(self) -> None:
        """See Storage."""
        await self._storage.close()

    def _watched(self, operation: str, work: Awaitable[T]) -> Awaitable[T]:
        """Measure what may be a plain future, and then stays one: no task is put between it and whoever waits."""
        if not isinstance(work, asyncio.Future):
            return self._awaited(operation, work)
        began, span = time.perf_counter(), self._tracer.begin(f"storage {operation}", "internal")

        def note(done: asyncio.Future[T]) -> None:
            error = asyncio.CancelledError() if done.cancelled() else done.exception()
            if error is not None:
                span.fail(reason_of(error))
            span.end()
            self._metrics.storage(operation, time.perf_counter() - began, _outcome(error, "failed"))

        # A turn later, so that whoever awaits it now does not wait for the counting, too.
        asyncio.get_running_loop().call_soon(work.add_done_callback, note)
        return work

    async def _awaited(self, operation: str, work: Awaitable[T]) -> T:
        with self._measured(operation):
            return await work

    def _measured(self, operation: str) -> _Watch:
        def record(seconds: float, error: BaseException | None) -> None:
            self._metrics.storage(operation, seconds, _outcome(error, "failed"))

        return _Watch(self._tracer, f"storage {operation}", "internal", record)


class MeasuredRetriever:
    """A memory, measured; see Retriever."""

    def __init__(self, retriever: Retriever, metrics: Metrics, tracer: Tracer) -> None:
        self._retriever = retriever
        self._metrics = metrics
        self._tracer = tracer

    async def ask(self, question: str, *, top_k: int, filters: Mapping[str, str]) -> tuple[Passage, ...]:
        """See Retriever."""
        with self._measured("ask") as span:
            passages = await self._retriever.ask(question, top_k=top_k, filters=filters)
            span.set("chat.retrieval.passages", len(passages))
            return passages

    async def profile(self) -> Profile | None:
        """See Retriever."""
        with self._measured("profile"):
            return await self._retriever.profile()

    async def state(self) -> MemoryState:
        """See Retriever. Not measured: probes would drown what messages take."""
        return await self._retriever.state()

    def _measured(self, operation: str) -> _Watch:
        def record(seconds: float, error: BaseException | None) -> None:
            late = isinstance(error, ChatError) and error.reason == "RETRIEVAL_TIMEOUT"
            self._metrics.memvid(operation, seconds, _outcome(error, "timeout" if late else "unavailable"))

        return _Watch(self._tracer, f"memvid {operation}", "client", record)


class MeasuredCache:
    """A cache whose hits are counted; see Cache."""

    def __init__(self, cache: Cache, metrics: Metrics) -> None:
        self._cache = cache
        self._metrics = metrics

    async def get(self, key: str) -> CachedAnswer | None:
        """See Cache."""
        answer = await self._cache.get(key)
        self._metrics.cache(hit=answer is not None)
        return answer

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """See Cache."""
        await self._cache.put(key, answer)

    async def close(self) -> None:
        """See Cache."""
        await self._cache.close()


class TracedModels:
    """All providers as one, with a span for each answer; see Models.

    A piece of text passes through one more generator here, so this is for
    servers whose traces somebody collects.
    """

    def __init__(self, models: Models, tracer: Tracer) -> None:
        self._models = models
        self._tracer = tracer
        self.name = models.name
        self.default_model = models.default_model
        self.models = models.models

    def full_name(self, model: str) -> str:
        """See Models."""
        return self._models.full_name(model)

    async def begin(self, prompt: Prompt) -> Opened:
        """See Models. The span's name in the trace is what the provider is sent as the caller's."""
        provider, _, model = self._models.full_name(prompt.model).partition("/")
        span = self._tracer.begin(f"chat {model}", "client")
        span.set("gen_ai.operation.name", "chat")
        _name(span, provider)
        span.set("gen_ai.request.model", model)
        if prompt.max_tokens is not None:
            span.set("gen_ai.request.max_tokens", prompt.max_tokens)
        if prompt.temperature is not None:
            span.set("gen_ai.request.temperature", prompt.temperature)
        began = time.perf_counter()
        try:
            with self._tracer.enter(span):
                opened = await self._models.begin(prompt)
        except BaseException as error:
            span.fail(reason_of(error))
            span.end()
            raise
        written_by, _, model = opened.model.partition("/")
        _name(span, written_by)
        span.set("gen_ai.response.model", model)
        span.set("gen_ai.response.time_to_first_chunk", time.perf_counter() - began)
        rest = _followed(opened, span)
        await anext(rest)  # to where it can be sent a sink
        return replace(opened, rest=rest)

    async def open(self) -> None:
        """See Models."""
        await self._models.open()

    async def ping(self) -> None:
        """See Models."""
        await self._models.ping()

    async def close(self) -> None:
        """See Models."""
        await self._models.close()


async def _followed(opened: Opened, span: Span) -> AsyncGenerator[str | Ending, Sink | None]:
    """Yield what is left of an answer, and end its span with it."""
    try:
        if isinstance(opened.first, Ending):
            _tell(span, opened.first)
        async with aclosing(opened.rest) as rest:
            sink = yield opened.first
            while True:
                piece = await rest.asend(sink)
                if isinstance(piece, Ending):
                    _tell(span, piece)
                sink = yield piece
    except StopAsyncIteration:
        return
    except BaseException as error:
        span.fail(reason_of(error))
        raise
    finally:
        span.end()


def _name(span: Span, provider: str) -> None:
    """Name the provider, by the conventions' word of today and by the one before it, which most tools still read."""
    name = SYSTEMS.get(provider, provider)
    span.set("gen_ai.provider.name", name)
    span.set("gen_ai.system", name)


def _tell(span: Span, ending: Ending) -> None:
    span.set("gen_ai.response.finish_reasons", (str(ending.finish_reason),))
    if ending.usage is not None:
        span.set("gen_ai.usage.input_tokens", ending.usage.prompt_tokens)
        span.set("gen_ai.usage.output_tokens", ending.usage.completion_tokens)


class _Watch:
    """Does the work of its block in a span, and records how long it took and what it raised.

    A class and no generator: this stands around every write, and a generator takes three times as long.
    """

    __slots__ = ("_began", "_record", "_span")

    def __init__(
        self, tracer: Tracer, name: str, kind: Kind, record: Callable[[float, BaseException | None], None]
    ) -> None:
        self._span = tracer.span(name, kind)
        self._record = record
        self._began = 0.0

    def __enter__(self) -> Span:
        self._began = time.perf_counter()
        return self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, trace)
        self._record(time.perf_counter() - self._began, error)


def _outcome(error: BaseException | None, failed: str) -> str:
    if error is None:
        return "ok"
    return "cancelled" if isinstance(error, asyncio.CancelledError) else failed
