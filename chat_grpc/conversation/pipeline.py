"""The way of a message: accept, keep, retrieve, generate, settle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from chat_grpc.cache import Cache, CachedAnswer
from chat_grpc.conversation import access, admission, ids, prompt, requests, rules
from chat_grpc.conversation.admission import Admission
from chat_grpc.conversation.answering import Answering, Common, Direct, Sending
from chat_grpc.conversation.flight import Flight, Flights, base_of, key_of
from chat_grpc.conversation.guardrails import Side, Withheld, refusal
from chat_grpc.conversation.guardrails.table import reason_of
from chat_grpc.conversation.limits import Claim
from chat_grpc.conversation.sessions import Session, Sessions, foreign
from chat_grpc.conversation.system_prompt import SystemPrompt
from chat_grpc.domain import (
    ChatRequest,
    Completed,
    Event,
    Exchange,
    FinishReason,
    Message,
    Part,
    Retrieved,
    Started,
    Status,
    SuggestedQuestion,
    Usage,
)
from chat_grpc.errors import (
    ChatError,
    Conflict,
    Draining,
    ModelBroke,
    ModelError,
    NotFound,
    RetrievalUnavailable,
    StorageUnavailable,
)
from chat_grpc.llm import Ending, Models, Opened, Prompt
from chat_grpc.llm.contexts import Contexts
from chat_grpc.llm.prices import Prices
from chat_grpc.llm.tokens import TokenCounter
from chat_grpc.retrieval import Retriever
from chat_grpc.shared import Asking, Closing, Lease, NotShared, SharedState, writer_lost
from chat_grpc.storage import Storage
from chat_grpc.telemetry import context, logs
from chat_grpc.telemetry.metrics import Metrics
from chat_grpc.telemetry.tokens import TokenGaps

if TYPE_CHECKING:  # its patterns are compiled only where guardrails are on
    from chat_grpc.conversation.guardrails.guard import Guardrails
    from chat_grpc.conversation.guardrails.stream import AnswerGuard

log = logs.get(__name__)

Work = TypeVar("Work", bound="asyncio.Future[Any]")

DEFAULT_TOP_K = 5
UNKEPT_SECONDS = 0.01
"""How long a message may go unkept: an answer that the cache holds is there by then, and is kept with it at once."""
TENANT = ""
"""Whose answers are shared: everybody's, as long as there is one tenant."""


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
        self._storage = storage
        self._sessions = sessions
        self._cache = cache
        self._admission = admission
        self._guardrails = guardrails
        self._suggestions = refusal.Suggestions(retriever)
        self._system_prompt = system_prompt
        self._contexts = contexts
        self._tokens = tokens
        self._prices = prices
        self._max_tokens = max_tokens
        self._metrics = metrics
        self._shared = shared
        self._flights = Flights()
        self._named: dict[str, Answering] = {}
        self._working: set[asyncio.Future[Any]] = set()

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
        return len(self._working)

    async def close(self) -> None:
        """Wait until every message that has ended is kept so."""
        while self._working:
            await asyncio.wait(self._working)

    async def _answering(self, request: ChatRequest, unpaid: Sequence[Claim]) -> Answering:
        """Return the answer to read: the one that the request's name stands for, or a new one."""
        sending = await self._sending(request)
        key = requests.key_of(request)
        digest = requests.digest_of(request) if key else ""
        while True:
            if known := self._named.get(key):
                requests.check_same(digest, known.digest)
                if unpaid:
                    await self._pay(unpaid)
                    unpaid = ()
                elif known.joinable:
                    return known
                else:
                    # Its readers have left and it is about to end: then it may be tried again.
                    assert known.task is not None  # noqa: S101 (it was started before it was named)
                    await asyncio.wait((known.task,))
                continue
            guardrail = self._guardrails.refusing(request.message) if self._guardrails is not None else ""
            if self._shared is None:
                session, common, searching = await self._sessions.open(request.session_id, request.user_id), None, None
            else:
                session, common, searching = await self._open_shared(
                    self._shared, request, unpaid, sending, refused=bool(guardrail)
                )
                unpaid = ()
            if key not in self._named:  # nobody came first meanwhile
                break
            self._sessions.discard(session, request.session_id)
            self._tell(common, None)
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

    async def _pay(self, claims: Sequence[Claim]) -> None:
        """Take tokens that all servers take from, or this one's own while those are out of reach."""
        assert self._shared is not None  # noqa: S101 (else they were taken on entering)
        try:
            shortage = await self._shared.take(claims)
        except NotShared:
            self._metrics.unshared()
            await self._admission.take(claims)
        else:
            admission.check(shortage)

    async def _open_shared(
        self, shared: SharedState, request: ChatRequest, unpaid: Sequence[Claim], sending: Sending, *, refused: bool
    ) -> tuple[Session, Common, asyncio.Task[Retrieved | None] | None]:
        """Return the session, what the other servers know, and the search for passages, which has ended.

        They are asked once for everything, and so not before it is known what the
        answer depends on: the passages. Of a message that is ``refused`` they are
        asked no more than whether it may be sent at all.
        """
        wanted = request.options.retrieval and not refused
        searching = asyncio.ensure_future(self._retrieve(request)) if wanted else None
        try:
            found = await searching if searching else Retrieved((), 0)
            known = self._sessions.known(request.session_id) if request.session_id else None
            asking = Asking(
                claims=unpaid,
                session_id=request.session_id.lower(),
                user_id=request.user_id,
                known=known.digest if known else None,
                base=base_of(
                    request,
                    found.passages if found else None,
                    tenant=TENANT,
                    model=sending.model,
                    max_tokens=sending.max_tokens,
                    setting=f"{sending.budget}\n{sending.system}",
                ),
                remembers=request.history is None,
                lookup=not (request.options.skip_cache or refused),
            )
            try:
                opening = await shared.open(asking)
            except NotShared:
                self._metrics.unshared()
                await self._admission.take(unpaid)
                return await self._sessions.open(request.session_id, request.user_id), Common(None), searching
        except BaseException:
            if searching:
                searching.cancel()
            raise
        admission.check(opening.shortage)
        if opening.foreign:
            raise foreign()
        common = Common(opening, lease=opening.lease)
        if not request.session_id:
            return await self._sessions.open("", request.user_id), common, searching
        if opening.known:
            session = self._sessions.adopt(request.session_id, request.user_id, opening.digest, opening.exchanges)
        else:
            session = await self._sessions.restore(request.session_id, request.user_id)
        return session, common, searching

    def _begin(self, answering: Answering) -> asyncio.Task[None]:
        return self._track(answering.start(self._answer(answering)))

    async def _look_and_begin(self, answering: Answering) -> None:
        """Give what the cache holds, if it can be told at once; have a task answer otherwise.

        Most of what an answer from the cache costs would be that task, and waking it up.
        """
        searching = self._search(answering)
        try:
            if await _done_soon(searching):
                asked = await self._look(answering)
                if asked is None:
                    answering.end()
                    return
        except BaseException as error:
            if searching:
                searching.cancel()
            self._tell(answering.common, error)
            if answering.message.status is Status.PENDING:
                await self._settle_failure(answering, Draining() if Draining.ended(error) else error)
            raise
        self._begin(answering)

    async def _sending(self, request: ChatRequest) -> Sending:
        """Return what goes to the model whatever is found, once it is known that the question fits.

        Raises:
            InvalidRequest: it does not.
        """
        model = self._models.full_name(request.options.model)
        max_tokens = request.options.max_tokens or self._max_tokens
        own = await self._system_prompt.text()
        system = prompt.system_of(own, request.system)
        budget = prompt.budget_of(await self._contexts.window(model), max_tokens)
        if not prompt.question_surely_fits(request.message, system=system, budget=budget):
            await self._tokens.load()
            prompt.check_question(request.message, system=system, budget=budget, count=self._tokens.count)
        return Sending(model, max_tokens, own, system, budget)

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
            if answering.asked is None and not await self._keep(answering, answering.message):
                await self._replay(answering)
                return
            if asked := answering.asked or await self._look(answering):
                await self._write(answering, asked)
        except BaseException as error:
            self._tell(answering.common, error)
            if answering.message.status is Status.PENDING:
                await self._settle_failure(answering, answering.cause(error))
            raise
        finally:
            if answering.searching:
                answering.searching.cancel()
            self._tell(answering.common, None)

    def _search(self, answering: Answering) -> asyncio.Task[Retrieved | None] | None:
        """Begin to look for passages, if they are wanted."""
        request = answering.request
        if request.options.retrieval and answering.searching is None and not answering.guardrail:
            answering.searching = asyncio.ensure_future(self._retrieve(request))
        return answering.searching

    async def _look(self, answering: Answering) -> Prompt | None:
        """Return what a model is to be asked; None if it is not, and an answer has been given and kept.

        That is so if the cache held the answer, or a guardrail refuses the message.
        """
        if answering.guardrail:
            await self._refuse(answering)
            return None
        searching = self._search(answering)
        found = await searching if searching else Retrieved((), 0)
        answering.found = found or Retrieved((), 0)
        if answering.found.passages:
            answering.message = replace(answering.message, passages=answering.found.passages)
        if found is None:
            answering.degraded += (Part.RETRIEVAL,)
        answering.asked = asked = await self._prompt(answering, found)
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
            await self._complete(answering, cached, cached=True)
            return None
        return asked

    async def _keep(self, answering: Answering, message: Message) -> bool:
        """Keep the message for the first time, and say that it has been accepted; False if one of its name is kept."""
        return await asyncio.shield(self._begin_to_keep(answering, message))

    def _begin_to_keep(self, answering: Answering, message: Message) -> asyncio.Future[bool]:
        # Not to be broken off: whoever settles the message has to know whether it is there.
        answering.kept = kept = self._track(asyncio.ensure_future(self._storage.add(message)))
        # Said a turn of the loop later, so that a model's request which waits for this goes out first.
        say_soon = asyncio.get_running_loop().call_soon
        kept.add_done_callback(lambda _: say_soon(self._say_kept, answering, kept))
        return kept

    def _say_kept(self, answering: Answering, kept: asyncio.Future[bool]) -> None:
        if not kept.cancelled() and kept.exception() is None and kept.result():
            self._say_started(answering)

    def _say_started(self, answering: Answering) -> None:
        """Say that the message has been accepted, unless that was said, and what has been found for it since."""
        if not answering.started:
            answering.started = True
            message = answering.message
            answering.say(Started(message.id, message.session_id, message.request_id))
        if answering.found is not None:
            answering.say(answering.found)
            answering.found = None

    async def _prompt(self, answering: Answering, found: Retrieved | None) -> Prompt:
        sending, given = answering.sending, answering.request.history
        exchanges = answering.session.exchanges if given is None else self._harmless(given)
        draft = prompt.Draft(answering.request, found.passages if found else None, exchanges, system=sending.system)
        if not draft.fits_by_far(sending.budget):
            await self._tokens.load()
            draft.cut(sending.budget, self._tokens.count)
        return draft.prompt(model=answering.request.options.model, max_tokens=sending.max_tokens)

    def _harmless(self, history: Sequence[Exchange]) -> Sequence[Exchange]:
        """Leave out what a guardrail refuses: its callers keep it, and would send it to the model after all."""
        if self._guardrails is None:
            return history
        return [said for said in history if not self._guardrails.refusing(said.message)]

    async def _refuse(self, answering: Answering) -> None:
        """Answer a message, in place of a model, that a guardrail refuses."""
        self._note(answering, Side.INPUT)
        answering.suggested = await self._suggestions.questions()
        answering.found = Retrieved((), 0)
        text = refusal.refusal_of(answering.suggested)
        refused = CachedAnswer(text, refusal.MODEL, FinishReason.CONTENT_FILTER, Usage(0, 0, 0, 0.0))
        await self._complete(answering, refused, cached=False)

    def _note(self, answering: Answering, side: Side) -> None:
        """Count that a guardrail refused a message or withheld an answer."""
        self._metrics.guardrail(answering.guardrail, side)
        log.info("refused by a guardrail", message_id=answering.message.id, rule=answering.guardrail, side=side)

    async def _write(self, answering: Answering, asked: Prompt) -> None:
        """Have the answer written, or give the one that is being written for an equal request."""
        key, common = answering.key, answering.common
        seen = None if answering.request.options.skip_cache else self._flights.get(key)
        if seen is None and common and (cached := await self._just_written(answering, common)):
            await self._complete(answering, cached, cached=True)
            return
        writer = common.writer if common else ""
        if seen is not None or writer:
            if answering.kept is None:
                await self._keep(answering, answering.message)
            self._say_started(answering)
            # Keeping it took a moment: what was being written may be whole by now, or have failed.
            flight = seen if seen and seen.answer else self._flights.get(key)
            if flight is not None:
                await self._follow(answering, flight)
                return
        if answering.kept is None:
            # The model's request is got ready meanwhile, and not sent before.
            asked = replace(asked, kept=self._begin_to_keep(answering, answering.message))
        else:
            self._say_started(answering)
        with self._flights.begin(key) as flight:
            answering.stays_for(lambda: self._abandon(answering, flight, key))
            relayed = await self._relay(answering, flight, common, writer) if common and writer else None
            written = relayed or await self._generate(answering, flight, asked)
            flight.answer = written
            flight.text.close()
            keep = (
                relayed is None
                and Part.LLM not in answering.degraded
                and written.finish_reason is not FinishReason.CONTENT_FILTER
            )
            if common and common.opening:
                common.written, common.keep = written, keep and bool(common.opening.key)
            if keep:  # here also where it is shared: the others are told later, and this server's readers come at once
                await self._cache.put(key, written)
        if not answering.abandoned:
            await self._complete(answering, written, cached=relayed is not None)

    async def _generate(self, answering: Answering, flight: Flight, asked: Prompt) -> CachedAnswer:
        """Have the answer written and passed on as it comes, and return the whole."""
        answering.prompt = asked
        if (common := answering.common) and common.lease and self._shared:
            self._shared.fly(common.lease, flight)
        await asyncio.sleep(0)  # the keeping begins now, not when there is nothing else to do
        began = time.monotonic()
        try:
            opened = await self._open(answering, asked)
            # It may have answered sooner than the reader was told that the message is kept.
            self._say_started(answering)
            ending = await self._pass_on(answering, flight, opened, began)
        except BaseException as error:
            cause = answering.cause(error)
            if not isinstance(cause, StorageUnavailable):  # then no model was asked
                outcome = "failed" if isinstance(cause, ChatError) else "cancelled"
                usage = await self._priced(answering, cause)
                self._metrics.answer_ended(outcome, _provider(answering.message.model), usage)
            raise
        usage = ending.usage or self._estimated(answering)
        usage = replace(usage, cost_usd=await self._prices.cost(opened.model, usage))
        self._metrics.answer_ended("completed", _provider(opened.model), usage)
        if answering.guardrail:
            answering.suggested = await self._suggestions.questions()
            _say(answering, flight, refusal.withheld_of(answering.suggested))
        return CachedAnswer(
            text="".join(answering.pieces),
            model=opened.model,
            finish_reason=ending.finish_reason,
            usage=usage,
            guardrail=answering.guardrail,
        )

    async def _open(self, answering: Answering, asked: Prompt) -> Opened:
        """Ask the models, and return the answer that one of them has begun."""
        opened = await self._models.begin(asked)
        if opened.fallback:
            answering.message = replace(answering.message, model=opened.model)
            self._metrics.fallback(_provider(answering.sending.model))
            answering.degraded += (Part.LLM,)
        return opened

    # In two, each token would pass through another frame.
    async def _pass_on(  # noqa: C901, PLR0912
        self, answering: Answering, flight: Flight, opened: Opened, began: float
    ) -> Ending:
        """Give the readers each piece as it comes; ``began`` is when the models were asked.

        What stands in the inner loop is paid for every token.
        """
        piece = opened.first
        guard = self._guard_of(answering)
        look = guard.look if guard else None
        clock, last, gaps = time.monotonic, time.monotonic(), TokenGaps()
        try:
            async with aclosing(opened.rest) as rest:
                if isinstance(piece, str):
                    if text := look(piece) if look else piece:
                        flight.text.append(text)
                        if (taking := answering.pass_text(text)) is not None:
                            await taking
                    self._metrics.first_token(_provider(opened.model), last - began)
                    async for piece in rest:
                        if not isinstance(piece, str):
                            break
                        now = clock()
                        gaps.add(now - last)
                        last = now
                        if look is not None and not (piece := look(piece)):
                            continue  # all of it is held back
                        flight.text.append(piece)
                        if flight.followed:
                            answering.say_text(piece)
                        elif (taking := answering.pass_text(piece)) is not None:
                            flight.handing_since = now
                            await taking
                            flight.handing_since = None
                if isinstance(piece, str):
                    raise ModelBroke(
                        "the provider ended without an ending", provider=_provider(opened.model), stage="stream"
                    )
                if guard is not None and (held := guard.end()):
                    _say(answering, flight, held)
                async for _ in rest:  # to its end, so that its connection can be used again
                    pass
        except ModelError as error:
            opened.failed(error)
            raise
        except Withheld as leak:  # leaving the block above has ended the upstream request
            if leak.before:
                _say(answering, flight, leak.before)
            answering.guardrail = leak.rule
            self._note(answering, Side.OUTPUT)
            piece = Ending(FinishReason.CONTENT_FILTER, None)
        finally:
            self._metrics.merge_gaps(gaps)
        opened.succeeded()
        return piece

    def _guard_of(self, answering: Answering) -> AnswerGuard | None:
        """Return what looks at an answer while it is passed on, if anything does."""
        if self._guardrails is None:
            return None
        told = (answering.sending.own, prompt.PASSAGES.partition("\n")[0])
        return self._guardrails.answer(told, answering.request.message)

    async def _just_written(self, answering: Answering, common: Common) -> CachedAnswer | None:
        """Return the answer that this server wrote, where the others have not been told of it when they were asked."""
        opening = common.opening
        if opening is None or not opening.key or opening.writer or opening.lease:
            return None
        return None if answering.request.options.skip_cache else await self._cache.get(opening.key)

    async def _relay(self, answering: Answering, flight: Flight, common: Common, writer: str) -> CachedAnswer | None:
        """Give the answer that another server writes; None if it has to be written here.

        Raises:
            ChatError: writing it failed, or broke off when a part of it had been given.
        """
        assert self._shared is not None  # noqa: S101 (it was asked)
        self._metrics.followed()
        while writer:
            async with aclosing(self._shared.follow(answering.key, writer)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, CachedAnswer):
                        await self._take_over(answering, piece)
                        return piece
                    answering.say_text(piece)
                    flight.text.append(piece)
            taken = await self._shared.take_over(answering.key, writer)
            if isinstance(taken, Lease):
                common.lease = taken
                break
            writer = taken
        return None

    async def _follow(self, answering: Answering, flight: Flight) -> None:
        """Give the answer that is being written for an equal request."""
        self._metrics.followed()
        async with aclosing(flight.follow()) as pieces:
            async for piece in pieces:
                answering.say_text(piece)
        assert flight.answer is not None  # noqa: S101 (set before the text was closed)
        await self._take_over(answering, flight.answer)
        await self._complete(answering, flight.answer, cached=True)

    async def _take_over(self, answering: Answering, written: CachedAnswer) -> None:
        """Note if a guardrail withheld the rest of an answer that was written for an equal request."""
        if written.guardrail:
            answering.guardrail = written.guardrail
            answering.suggested = await self._suggestions.questions()

    def _abandon(self, answering: Answering, flight: Flight, key: str) -> bool:
        """The readers have left: go on if somebody follows, and let nobody begin to follow otherwise."""
        if flight.text.closed:
            return False
        if not flight.followed:
            self._flights.close(key, flight)
            return False
        assert answering.task is not None  # noqa: S101 (this is called from a reader of it)
        flight.abandon(answering.task.cancel)
        self._track(asyncio.ensure_future(self._settle_failure(answering, asyncio.CancelledError())))
        return True

    async def _replay(self, answering: Answering) -> None:
        """Give the answer that is kept for an earlier request of this name."""
        self._sessions.discard(answering.session, answering.request.session_id)
        kept = await self._storage.find_request(answering.message.request_key)
        if kept is not None and kept.status is Status.PENDING and answering.common:
            kept = await self._read_along(answering, answering.common, kept)
            if kept is None:
                return
        if kept is None or kept.status is Status.PENDING:
            raise Conflict(
                "the request is being answered elsewhere; ask again for its answer",
                reason="REQUEST_IN_PROGRESS",
                retry_after=1.0,
            )
        requests.check_same(answering.digest, kept.request_digest)
        answering.message = kept
        answering.say(Started(kept.id, kept.session_id, kept.request_id))
        answering.say(Retrieved(kept.passages, 0))
        answering.say_text(kept.answer)
        answering.say(_completed(kept, await self._suggestions.questions() if kept.error_reason else ()))

    async def _read_along(self, answering: Answering, common: Common, kept: Message) -> Message | None:
        """Give the answer that another server writes for a request of this name.

        Returns:
            The message as it is kept then, if nothing of it has been given; else None.

        Raises:
            ChatError: writing it failed, or broke off.
        """
        opening = common.opening
        if self._shared is None or opening is None or not opening.writer:
            return kept
        requests.check_same(answering.digest, kept.request_digest)
        answering.key = opening.key
        answering.message = kept
        begun = False
        async with aclosing(self._shared.follow(opening.key, opening.writer)) as pieces:
            async for piece in pieces:
                if not begun:
                    begun = True
                    answering.say(Started(kept.id, kept.session_id, kept.request_id))
                    answering.say(Retrieved(kept.passages, 0))
                if not isinstance(piece, CachedAnswer):
                    answering.say_text(piece)
        # The answer is told to the others once it has been kept.
        settled = await self._storage.find_request(kept.request_key)
        if not begun:
            return settled
        if settled is None or settled.status is not Status.COMPLETED:
            raise writer_lost()
        answering.message = settled
        answering.say(_completed(settled, await self._suggestions.questions() if settled.error_reason else ()))
        return None

    async def _retrieve(self, request: ChatRequest) -> Retrieved | None:
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

    async def _complete(self, answering: Answering, answer: CachedAnswer, *, cached: bool) -> None:
        """Keep the whole answer, then say that it is complete."""
        settled = replace(
            answering.message,
            status=Status.COMPLETED,
            answer=answer.text,
            model=answer.model,
            finish_reason=answer.finish_reason,
            error_reason=reason_of(answering.guardrail) if answering.guardrail else "",
            # An answer that was written for somebody else is not paid for again.
            usage=replace(answer.usage, cost_usd=0.0) if cached else answer.usage,
            completed_at=datetime.now(UTC),
            cached=cached,
            degraded=answering.degraded,
        )
        at_once = answering.found is not None
        if answering.kept is None:  # nothing had to be asked for it
            await self._keep(answering, settled)
        else:
            await asyncio.shield(self._track(asyncio.ensure_future(self._storage.settle(settled))))
        answering.message = settled
        self._metrics.message_ended(settled.status)
        if not answering.guardrail:  # else a model would be sent it with the next message
            exchange = Exchange(settled.message, settled.answer)
            answering.session.exchanges.append(exchange)
            if answering.common is not None:
                await self._share(answering, answering.common, exchange)
        log.debug(
            "answered", message_id=settled.id, model=settled.model, tokens=answer.usage.total_tokens, cached=cached
        )
        if at_once:
            self._say_started(answering)
            answering.say_text(answer.text)
        answering.say(_completed(settled, answering.suggested))

    async def _share(self, answering: Answering, common: Common, exchange: Exchange) -> None:
        """Tell the other servers what was said, and whoever waits for the answer what it is."""
        assert self._shared is not None  # noqa: S101 (else there is nothing in common)
        if common.opening is None:
            self._shared.missed(answering.session)
            return
        closing = Closing(
            session=answering.session,
            exchange=exchange,
            key=answering.key,
            answer=common.written,
            keep=common.keep,
            lease=common.lease,
        )
        common.lease = None
        # Not to be broken off: the lease has ended for this server.
        await asyncio.shield(self._track(asyncio.ensure_future(self._shared.close_message(closing))))

    def _tell(self, common: Common | None, error: BaseException | None) -> None:
        """Let a lease end that has not ended yet, and tell whoever waits for the answer why there is none."""
        if common is None or common.lease is None or self._shared is None:
            return
        closing = Closing(
            key=common.lease.key,
            answer=common.written,
            keep=common.keep,
            lease=common.lease,
            error=error if isinstance(error, ChatError) else None,
        )
        common.lease = None
        self._track(asyncio.ensure_future(self._shared.close_message(closing)))

    async def _settle_failure(self, answering: Answering, error: BaseException) -> None:
        """Keep how a message ended that was not completed."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            status, reason = Status.CANCELLED, "CANCELLED"
        else:
            status = Status.PARTIAL if answering.pieces else Status.FAILED
            reason = error.reason if isinstance(error, ChatError) else "INTERNAL"
        answering.message = replace(
            answering.message,
            status=status,
            answer="".join(answering.pieces),
            error_reason=reason,
            usage=await self._priced(answering, error),
            completed_at=datetime.now(UTC),
            degraded=answering.degraded,
        )
        await asyncio.shield(self._track(asyncio.ensure_future(self._settle_kept(answering))))

    async def _priced(self, answering: Answering, error: BaseException) -> Usage | None:
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

    async def _settle_kept(self, answering: Answering) -> None:
        """Keep the end of a message, unless it is one that is kept already."""
        message = answering.message
        try:
            if answering.kept is None:
                await self._storage.add(message)
            elif await answering.kept:
                await self._storage.settle(message)
            else:
                return
        except ChatError as fault:
            # The error that ended the message is what the caller must hear of.
            log.warning("the end of a message could not be kept", message_id=message.id, reason=fault.reason)
        else:
            log.info("not answered", message_id=message.id, status=message.status, reason=message.error_reason)
            self._metrics.message_ended(message.status)

    def _track(self, task: Work) -> Work:
        """Hold on to what must come to its end also when the caller leaves meanwhile."""
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task


async def _done_soon(searching: asyncio.Task[Any] | None) -> bool:
    """Tell whether the passages are there at once, or nearly so."""
    if searching is None or searching.done():
        return True
    done, _ = await asyncio.wait((searching,), timeout=UNKEPT_SECONDS)
    return bool(done)


def _provider(model: str) -> str:
    """Return the provider of a model's full name."""
    return model.partition("/")[0]


def _say(answering: Answering, flight: Flight, text: str) -> None:
    """Give a piece of text to the reader, and to those who follow."""
    answering.say_text(text)
    flight.text.append(text)


def _completed(message: Message, suggested: tuple[SuggestedQuestion, ...]) -> Completed:
    assert message.finish_reason is not None  # noqa: S101 (completed messages have one)
    assert message.usage is not None  # noqa: S101 (and were counted)
    return Completed(
        message.id,
        message.session_id,
        message.model,
        message.created_at,
        message.finish_reason,
        message.usage,
        cached=message.cached,
        degraded=message.degraded,
        suggested_questions=suggested,
    )
