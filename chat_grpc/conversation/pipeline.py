"""The way of a message: accept, keep, retrieve, generate, settle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from chat_grpc.cache import Cache
from chat_grpc.conversation import access, ids, requests, rules
from chat_grpc.conversation.admission import Admission
from chat_grpc.conversation.answering import Answering, Direct
from chat_grpc.conversation.costs import Costs
from chat_grpc.conversation.flight import TENANT, Flights, key_of
from chat_grpc.conversation.guarding import Guarding
from chat_grpc.conversation.keeping import Keeper
from chat_grpc.conversation.limits import Claim
from chat_grpc.conversation.passages import Passages
from chat_grpc.conversation.peers import Peers
from chat_grpc.conversation.prompting import Prompting
from chat_grpc.conversation.replay import Replay
from chat_grpc.conversation.sessions import Session, Sessions
from chat_grpc.conversation.system_prompt import SystemPrompt
from chat_grpc.conversation.tasks import Tasks
from chat_grpc.conversation.writing import Writer
from chat_grpc.domain import ChatRequest, Event, Message, Part, Retrieved, Status, SuggestedQuestion
from chat_grpc.errors import Draining, NotFound
from chat_grpc.llm import Models, Prompt
from chat_grpc.llm.contexts import Contexts
from chat_grpc.llm.prices import Prices
from chat_grpc.llm.tokens import TokenCounter
from chat_grpc.retrieval import Retriever
from chat_grpc.shared import SharedState
from chat_grpc.storage import Storage
from chat_grpc.telemetry import context
from chat_grpc.telemetry.metrics import Metrics

if TYPE_CHECKING:  # its patterns are compiled only where guardrails are on
    from chat_grpc.conversation.guardrails.guard import Guardrails

UNKEPT_SECONDS = 0.01
"""How long a message may go unkept: an answer that the cache holds is there by then, and is kept with it at once."""


class Conversation:
    """Answers messages. One instance serves all callers.

    Args:
        models: who writes the answers.
        retriever: where passages are found.
        storage: where messages are kept.
        sessions: which conversations go on.
        cache: answers of earlier, equal requests.
        admission: who may ask, how often.
        guardrails: what must not go to a model, or come from it; None checks nothing.
        system_prompt: what the model is told to be.
        contexts: how much a model reads at once.
        tokens: what counts them.
        prices: what they cost.
        max_tokens: how long an answer may get where the request does not say.
        metrics: where it is counted what became of them.
        shared: what other servers know; None where there are none.
    """

    def __init__(
        self,
        *,
        models: Models,
        retriever: Retriever,
        storage: Storage,
        sessions: Sessions,
        cache: Cache,
        admission: Admission,
        guardrails: Guardrails | None,
        system_prompt: SystemPrompt,
        contexts: Contexts,
        tokens: TokenCounter,
        prices: Prices,
        max_tokens: int,
        metrics: Metrics,
        shared: SharedState | None = None,
    ) -> None:
        self._models = models
        self._retriever = retriever
        self._sessions = sessions
        self._cache = cache
        self._admission = admission
        self._metrics = metrics
        self._flights = Flights()
        self._named: dict[str, Answering] = {}
        self._tasks = tasks = Tasks()
        self._passages = Passages(retriever)
        self._guarding = guarding = Guarding(guardrails, retriever, metrics)
        self._prompting = Prompting(
            models=models,
            system_prompt=system_prompt,
            contexts=contexts,
            tokens=tokens,
            guarding=guarding,
            max_tokens=max_tokens,
        )
        self._peers = peers = (
            None
            if shared is None
            else Peers(
                shared,
                sessions=sessions,
                admission=admission,
                passages=self._passages,
                guarding=guarding,
                cache=cache,
                metrics=metrics,
                tasks=tasks,
            )
        )
        costs = Costs(tokens, prices)
        self._keeper = keeper = Keeper(
            storage=storage, sessions=sessions, costs=costs, peers=peers, metrics=metrics, tasks=tasks
        )
        self._replay = Replay(storage=storage, guarding=guarding, peers=peers)
        self._writer = Writer(
            models=models,
            flights=self._flights,
            cache=cache,
            keeper=keeper,
            guarding=guarding,
            costs=costs,
            peers=peers,
            metrics=metrics,
            tasks=tasks,
        )

    async def chat(self, request: ChatRequest, direct: Direct | None = None) -> AsyncGenerator[Event, None]:
        """Answer one message: Started, Retrieved, pieces of text, Completed.

        A caller that can be given text while it waits for the next event passes
        ``direct``, and spares each token a good part of its way.

        The message is kept as pending before a model is asked, and settled
        whatever happens: the end of this generator, by exhaustion, by error or
        by ``aclose`` at any point, is the end that the history tells of.
        Completed comes only once the whole answer has been kept. A request that
        its caller named, and that is being answered, is joined.

        Raises:
            ChatError: InvalidRequest, TooManyRequests, NotFound, Forbidden and
                Conflict before anything was kept; StorageUnavailable and
                ModelError at any point.
        """
        if (user_id := access.speaker(request.user_id)) != request.user_id:
            request = replace(request, user_id=user_id)
        rules.check_request(request, models=self._models.models)
        call = context.call()
        call.user_id, call.session_id = request.user_id, request.session_id
        async with self._admission.enter(request) as unpaid:
            answering = await self._answering(request, unpaid)
            try:
                if answering.task is None:
                    await self._look_and_begin(answering)
                async with aclosing(answering.read(direct)) as events:
                    async for event in events:
                        yield event
            finally:
                call.message = answering.message

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

    @property
    def working(self) -> int:
        """How many tasks are answering, or keeping what was answered."""
        return len(self._tasks)

    async def close(self) -> None:
        """Wait until every message that has ended is kept so."""
        await self._tasks.ended()

    async def _answering(self, request: ChatRequest, unpaid: Sequence[Claim]) -> Answering:
        """Return the answer to read: the one that the request's name stands for, or a new one."""
        sending = await self._prompting.sending(request)
        key = requests.key_of(request)
        digest = requests.digest_of(request) if key else ""
        while True:
            if known := self._named.get(key):
                requests.check_same(digest, known.digest)
                if self._peers is not None and unpaid:
                    await self._peers.pay(unpaid)
                    unpaid = ()
                elif known.joinable:
                    return known
                else:
                    # Its readers have left and it is about to end: then it may be tried again.
                    assert known.task is not None  # noqa: S101 (it was started before it was named)
                    await asyncio.wait((known.task,))
                continue
            guardrail = self._guarding.refusing(request.message)
            if self._peers is None:
                session, common, searching = await self._sessions.open(request.session_id, request.user_id), None, None
            else:
                session, common, searching = await self._peers.open(request, unpaid, sending, refused=bool(guardrail))
                unpaid = ()
            if key not in self._named:  # nobody came first meanwhile
                break
            if self._peers is not None:
                self._peers.tell(common, None)
        answering = Answering(
            request, session, self._new_message(request, session, sending.model, key, digest), digest, sending
        )
        answering.common, answering.searching, answering.guardrail = common, searching, guardrail
        if common is not None and common.opening is None:
            answering.degraded = (Part.CACHE,)
        if key:  # others may join it from now on
            self._named[key] = answering
            self._begin(answering).add_done_callback(lambda _: self._named.pop(key, None))
        return answering

    def _begin(self, answering: Answering) -> asyncio.Task[None]:
        return self._tasks.track(answering.start(self._answer(answering)))

    async def _look_and_begin(self, answering: Answering) -> None:
        """Give what the cache holds, if it can be told at once; have a task answer otherwise.

        Most of what an answer from the cache costs would be that task, and waking it up.
        """
        searching = self._search(answering)
        try:
            if searching is None or await _done_soon(searching):
                asked = await self._look(answering)
                if asked is None:
                    answering.end()
                    return
        except BaseException as error:
            if searching:
                searching.cancel()
            if self._peers is not None:
                self._peers.tell(answering.common, error)
            if answering.message.status is Status.PENDING:
                await self._keeper.settle_failure(answering, Draining() if Draining.ended(error) else error)
            raise
        self._begin(answering)

    def _new_message(self, request: ChatRequest, session: Session, model: str, key: str, digest: str) -> Message:
        now = datetime.now(UTC)
        return Message(
            id=ids.new_message_id(now),
            user_id=request.user_id,
            session_id=session.id,
            request_id=request.request_id,
            message=request.message,
            created_at=now,
            model=model,
            request_key=key,
            request_digest=digest,
        )

    async def _answer(self, answering: Answering) -> None:
        """Do all the work of one message that is left."""
        try:
            # What takes a while, or what another server could be asked for too, is kept before it is done.
            if answering.asked is None and not await self._keeper.keep(answering, answering.message):
                await self._replay.give(answering)
                return
            if asked := answering.asked or await self._look(answering):
                await self._writer.write(answering, asked)
        except BaseException as error:
            if self._peers is not None:
                self._peers.tell(answering.common, error)
            if answering.message.status is Status.PENDING:
                await self._keeper.settle_failure(answering, answering.cause(error))
            raise
        finally:
            if answering.searching:
                answering.searching.cancel()
            if self._peers is not None:
                self._peers.tell(answering.common, None)

    def _search(self, answering: Answering) -> asyncio.Task[Retrieved | None] | None:
        """Begin to look for passages, if they are wanted."""
        request = answering.request
        if request.options.retrieval and answering.searching is None and not answering.guardrail:
            answering.searching = asyncio.ensure_future(self._passages.find(request))
        return answering.searching

    async def _look(self, answering: Answering) -> Prompt | None:
        """Return what a model is to be asked; None if it is not, and an answer has been given and kept.

        That is so if the cache held the answer, or a guardrail refuses the message.
        """
        if answering.guardrail:
            await self._keeper.complete(answering, await self._guarding.refuse(answering), cached=False)
            return None
        searching = self._search(answering)
        found = await searching if searching else Retrieved((), 0)
        answering.found = found or Retrieved((), 0)
        if answering.found.passages:
            answering.message = replace(answering.message, passages=answering.found.passages)
        if found is None:
            answering.degraded += (Part.RETRIEVAL,)
        answering.asked = asked = await self._prompting.prompt(answering, found)
        opening = answering.common.opening if answering.common else None
        if opening is not None and opening.key:
            answering.key, cached = opening.key, opening.answer
            if not answering.request.options.skip_cache:
                self._metrics.cache(hit=cached is not None)
        else:
            answering.key = key_of(asked, tenant=TENANT, model=answering.sending.model)
            ask = opening is None and not answering.request.options.skip_cache
            cached = await self._cache.get(answering.key) if ask else None
        if cached is not None:
            await self._keeper.complete(answering, cached, cached=True)
            return None
        return asked


async def _done_soon(searching: asyncio.Task[Any]) -> bool:
    """Tell whether the passages are there at once, or nearly so."""
    if searching.done():
        return True
    done, _ = await asyncio.wait((searching,), timeout=UNKEPT_SECONDS)
    return bool(done)
