"""The way of a message: accept, keep, retrieve, generate, settle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from chat_grpc.conversation import ids, prompt, rules
from chat_grpc.conversation.sessions import Exchange, Session, Sessions
from chat_grpc.domain import (
    ChatRequest,
    Completed,
    Event,
    Message,
    Part,
    Retrieved,
    Started,
    Status,
    SuggestedQuestion,
    Usage,
)
from chat_grpc.errors import ChatError, Draining, ModelBroke, NotFound, RetrievalUnavailable
from chat_grpc.llm import Ending, Prompt, Provider
from chat_grpc.llm.tokens import estimate
from chat_grpc.retrieval import Retriever
from chat_grpc.storage import Storage
from chat_grpc.telemetry import logs

log = logs.get(__name__)

DEFAULT_TOP_K = 5


@dataclass(slots=True)
class _Answer:
    """What is known so far of the answer to a message."""

    message: Message
    session: Session
    keeping: asyncio.Task[None] | None = None
    prompt: Prompt | None = None
    pieces: list[str] = field(default_factory=list)
    degraded: tuple[Part, ...] = ()


class Conversation:
    """Answers messages. One instance serves all callers.

    Args:
        provider: who writes the answers.
        retriever: where passages are found.
        storage: where messages are kept.
        sessions: which conversations go on.
        system_prompt: what the model is told to be; "" for the built-in text.
        max_tokens: how long an answer may get where the request does not say.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        retriever: Retriever,
        storage: Storage,
        sessions: Sessions,
        system_prompt: str,
        max_tokens: int,
    ) -> None:
        self._provider = provider
        self._retriever = retriever
        self._storage = storage
        self._sessions = sessions
        self._system_prompt = system_prompt
        self._max_tokens = max_tokens
        self._settling: set[asyncio.Task[None]] = set()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Answer one message: Started, Retrieved, pieces of text, Completed.

        The message is kept as pending before a model is asked, and settled
        whatever happens: the end of this generator, by exhaustion, by error or
        by ``aclose`` at any point, is the end that the history tells of.
        Completed comes only once the whole answer has been kept.

        Raises:
            ChatError: InvalidRequest, NotFound and Forbidden before anything
                was kept; StorageUnavailable and ModelError at any point.
        """
        rules.check_request(request, models=self._provider.models)
        session = await self._sessions.open(request.session_id, request.user_id)
        model = request.options.model or self._provider.default_model
        answer = _Answer(_new_message(request, session, f"{self._provider.name}/{model}"), session)
        searching = asyncio.ensure_future(self._retrieve(request))
        try:
            await self._keep(answer)
            yield Started(answer.message.id, session.id, request.request_id)
            found = await searching
            if found is None:
                answer.degraded = (Part.RETRIEVAL,)
            yield found or Retrieved((), 0)
            passages = found.passages if found else None
            answer.prompt = prompt.build(
                request,
                passages,
                session.exchanges,
                system=self._system_prompt,
                model=model,
                max_tokens=self._max_tokens,
            )
            ending: Ending | None = None
            pieces = answer.pieces
            async with aclosing(self._provider.stream(answer.prompt)) as stream:
                async for piece in stream:
                    if isinstance(piece, str):
                        pieces.append(piece)
                        yield piece
                    else:
                        ending = piece
            yield await self._complete(answer, ending)
        except BaseException as error:
            fault = Draining() if Draining.ended(error) else error
            if answer.message.status is Status.PENDING:
                await self._settle_failure(answer, fault)
            if fault is not error:
                raise fault from None
            raise
        finally:
            searching.cancel()

    async def suggested_questions(self) -> tuple[SuggestedQuestion, ...]:
        """Return questions worth asking.

        Raises:
            NotFound: the memory holds no profile.
            RetrievalUnavailable: the memory can't be reached.
        """
        profile = await self._retriever.profile()
        if profile is None:
            raise NotFound(
                "the memory holds no profile; `chat-grpc ingest --profile FILE` adds one", reason="PROFILE_NOT_FOUND"
            )
        return profile.suggested_questions

    async def close(self) -> None:
        """Wait until every message that has ended is kept so."""
        while self._settling:
            await asyncio.wait(self._settling)

    async def _keep(self, answer: _Answer) -> None:
        """Keep the message as pending."""
        answer.keeping = self._background(self._storage.add(answer.message))
        await asyncio.shield(answer.keeping)

    async def _retrieve(self, request: ChatRequest) -> Retrieved | None:
        """Return the passages, or None when the memory is missing."""
        if not request.options.retrieval:
            return Retrieved((), 0)
        started = time.perf_counter()
        try:
            passages = await self._retriever.ask(
                request.message, top_k=request.options.top_k or DEFAULT_TOP_K, filters=request.options.filters
            )
        except RetrievalUnavailable as error:
            log.warning("answering without passages", reason=error.reason)
            return None
        return Retrieved(passages, round((time.perf_counter() - started) * 1000))

    async def _complete(self, answer: _Answer, ending: Ending | None) -> Completed:
        """Keep the whole answer, then say that it is complete."""
        if ending is None:
            raise ModelBroke("the provider ended without an ending", provider=self._provider.name, stage="stream")
        text = "".join(answer.pieces)
        usage = ending.usage or _estimated(answer)
        settled = replace(
            answer.message,
            status=Status.COMPLETED,
            answer=text,
            finish_reason=ending.finish_reason,
            usage=usage,
            completed_at=datetime.now(UTC),
            degraded=answer.degraded,
        )
        await asyncio.shield(self._background(self._storage.settle(settled)))
        answer.message = settled
        answer.session.exchanges.append(Exchange(settled.message, text))
        log.info("answered", message_id=settled.id, model=settled.model, tokens=usage.total_tokens)
        return Completed(
            settled.id,
            settled.session_id,
            settled.model,
            settled.created_at,
            ending.finish_reason,
            usage,
            degraded=answer.degraded,
        )

    async def _settle_failure(self, answer: _Answer, error: BaseException) -> None:
        """Keep how a message ended that was not completed."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            status, reason = Status.CANCELLED, "CANCELLED"
        else:
            status = Status.PARTIAL if answer.pieces else Status.FAILED
            reason = error.reason if isinstance(error, ChatError) else "INTERNAL"
        answer.message = replace(
            answer.message,
            status=status,
            answer="".join(answer.pieces),
            error_reason=reason,
            usage=_estimated(answer) if answer.prompt else None,
            completed_at=datetime.now(UTC),
            degraded=answer.degraded,
        )
        await asyncio.shield(self._background(self._settle_kept(answer)))

    async def _settle_kept(self, answer: _Answer) -> None:
        """Keep the end of a message, if the message itself was kept."""
        try:
            if answer.keeping is None:
                return
            await answer.keeping
            await self._storage.settle(answer.message)
        except ChatError as fault:
            # The error that ended the message is what the caller must hear of.
            log.warning("the end of a message could not be kept", message_id=answer.message.id, reason=fault.reason)
        else:
            message = answer.message
            log.info("not answered", message_id=message.id, status=message.status, reason=message.error_reason)

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do storage work that must come to its end also when the caller leaves meanwhile."""
        task = asyncio.ensure_future(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task


def _new_message(request: ChatRequest, session: Session, model: str) -> Message:
    now = datetime.now(UTC)
    return Message(
        id=ids.new_message_id(now),
        user_id=request.user_id,
        session_id=session.id,
        request_id=request.request_id,
        message=request.message,
        created_at=now,
        model=model,
    )


def _estimated(answer: _Answer) -> Usage:
    """Return what an answer cost where the provider reported nothing."""
    sent = sum(estimate(turn.content) for turn in answer.prompt.turns) if answer.prompt else 0
    written = estimate("".join(answer.pieces))
    return Usage(sent, written, sent + written, None, estimated=True)
