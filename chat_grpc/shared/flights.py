"""Answers that one server writes for all: the writer publishes them on demand, the others read along.

Nobody reads most answers but who asked for them, so nothing is published until
another server asks for it, through the writer's inbox. Then the text goes into a
stream, from its start, in batches; the writer's own readers never wait for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from chat_grpc import errors
from chat_grpc.cache import CachedAnswer
from chat_grpc.cache.redis import decode
from chat_grpc.errors import ChatError, ModelError, Unavailable
from chat_grpc.shared import Lease, NotShared, scripts, writer_lost
from chat_grpc.shared.link import WAIT_SECONDS, Link
from chat_grpc.shared.names import Names
from chat_grpc.telemetry import logs

if TYPE_CHECKING:  # see chat_grpc.shared
    from chat_grpc.conversation.flight import Flight

log = logs.get(__name__)

BATCH_SECONDS = 0.05
"""At least so long lies between two pieces of a stream."""
STREAM_SECONDS = 60.0
"""A stream that nothing was written to for so long is dropped; models are given up sooner."""
MAX_PUBLISHED = 1_000_000
"""Characters of one answer; a longer one is not published, and whoever wants it has to have it written."""
CHECK_SECONDS = 1.0
"""How often a reader looks whether the writer lives, and says that it does itself."""
WANTED_SECONDS = 5.0
GONE = "g"
"""The entry of a stream that says that nothing will come: not a failure, only nothing to wait for."""
MODEL_ERRORS = {kind.__name__: kind for kind in (errors.ModelUnavailable, errors.ModelBroke, errors.ModelTimeout)}


class _Told(msgspec.Struct, array_like=True):
    """An error, as other servers are told of it; its text is made for clients anyway."""

    kind: str
    message: str
    reason: str
    metadata: dict[str, str]
    retry_after: float | None


def encode_error(error: ChatError) -> str:
    """Return an error as other servers are told of it."""
    told = _Told(type(error).__name__, error.message, error.reason, error.metadata, error.retry_after)
    return msgspec.json.encode(told).decode()


def decode_error(kept: bytes) -> ChatError:
    """Return the error that another server met."""
    told = msgspec.json.decode(kept, type=_Told)
    kind: type[ModelError] | None = MODEL_ERRORS.get(told.kind)
    if kind is None:
        return Unavailable(told.message, reason=told.reason, metadata=told.metadata, retry_after=told.retry_after)
    return kind(
        told.message,
        provider=told.metadata.get("provider", ""),
        stage=told.metadata.get("stage", ""),
        reason=told.reason,
        retry_after=told.retry_after,
    )


class Published:
    """The answers that this server has the right to write, and those of them that others read along.

    Args:
        link: the way to Redis.
        names: of what is there.
        server: what others call this one.
        lease_seconds: how long a lease lasts that is not renewed.
    """

    def __init__(self, link: Link, names: Names, server: str, *, lease_seconds: float) -> None:
        self._link = link
        self._names = names
        self._server = server
        self._lease_seconds = lease_seconds
        self._held: dict[str, Lease] = {}
        self._flying: dict[str, Flight] = {}
        self._wanted: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._publishing: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._renewing: asyncio.Task[None] | None = None
        self._closed = False  # see Link.closed
        self.times = {"stream_ms": round(STREAM_SECONDS * 1000), "wanted_ms": round(WANTED_SECONDS * 1000)}

    def start(self) -> None:
        """Begin to listen."""
        self._spawn(self._listen())

    def hold(self, lease: Lease) -> None:
        """Keep a lease from ending."""
        self._held[lease.value] = lease
        if self._renewing is None or self._renewing.done():
            self._renewing = self._spawn(self._renew())

    def fly(self, lease: Lease, flight: Flight) -> None:
        """Publish a flight, if it is wanted."""
        self._flying[lease.value] = flight
        if lease.value in self._wanted:
            self._begin(lease.value, flight)

    def release(self, lease: Lease) -> None:
        """Let a lease end."""
        self._held.pop(lease.value, None)
        self._flying.pop(lease.value, None)
        self._wanted.discard(lease.value)

    def stop(self) -> None:
        """Publish nothing more. Those who read along are told that nothing will come when the leases end."""
        self._stopped = True
        for task in self._publishing:
            task.cancel()

    async def close(self) -> None:
        """Stop all of it."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _renew(self) -> None:
        while self._held and not self._closed:
            await asyncio.sleep(self._lease_seconds / 3)
            leases = [(self._names.flight(lease.key), lease.value) for lease in self._held.values()]
            try:
                args = {"leases": leases, "lease_ms": round(self._lease_seconds * 1000)}
                await self._link.run(scripts.RENEW, self._names.fence, args)
            except NotShared:
                continue

    async def _listen(self) -> None:
        """Take what others want from the inbox."""
        inbox, redis = self._names.inbox(self._server), self._link.waiting
        while not self._closed:
            try:
                found = await self._link.wait(lambda: redis.blpop([inbox], timeout=WAIT_SECONDS))
            except NotShared:
                await asyncio.sleep(BATCH_SECONDS)
                continue
            if found is not None:
                self._want(found[1].decode().rpartition(" ")[2])

    def _want(self, value: str) -> None:
        if value not in self._held:
            return  # it has just ended, and how stands in the stream
        self._wanted.add(value)
        if (flight := self._flying.get(value)) is not None:
            self._begin(value, flight)

    def _begin(self, value: str, flight: Flight) -> None:
        if not self._stopped:
            publishing = self._spawn(self._publish(value, flight))
            self._publishing.add(publishing)
            publishing.add_done_callback(self._publishing.discard)

    async def _publish(self, value: str, flight: Flight) -> None:
        """Write a flight's text into its stream. Its end is written by who ends the lease."""
        size = 0
        try:
            if flight.held_up:
                await self._add(value, GONE, "")
                return
            async with aclosing(flight.follow()) as pieces:
                async for text in pieces:
                    size += len(text)
                    if size > MAX_PUBLISHED:
                        await self._add(value, GONE, "")
                        return
                    if not await self._add(value, "t", text):
                        return  # nobody reads it any more
                    await asyncio.sleep(BATCH_SECONDS)
        except (ChatError, NotShared):
            return
        finally:
            self._wanted.discard(value)

    async def _add(self, value: str, kind: str, text: str) -> bool:
        args = {
            "stream": self._names.stream(value),
            "wanted": self._names.wanted(value),
            "kind": kind,
            "text": text,
            **self.times,
        }
        return bool(await self._link.run(scripts.PUBLISH, self._names.fence, args))


async def follow(link: Link, names: Names, key: str, writer: str) -> AsyncGenerator[str | CachedAnswer, None]:
    """Yield what another server writes; see SharedState.follow."""
    stream = _Stream(link, names, key, writer)
    given = 0
    while stream.goes_on:
        for kind, text in await stream.read():
            if kind == b"t":
                piece = text.decode()
                given += len(piece)
                yield piece
            elif kind == b"d" and (answer := decode(text)) is not None:
                if len(answer.text) > given:
                    yield answer.text[given:]
                yield answer
                return
            elif kind == b"f":
                raise decode_error(text)
    if given:
        raise writer_lost()


class _Stream:
    """What another server writes, read batch by batch.

    Attributes:
        goes_on: whether there may be more.
    """

    def __init__(self, link: Link, names: Names, key: str, writer: str) -> None:
        self._link = link
        self._stream = names.stream(writer)
        self._wanted = names.wanted(writer)
        self._flight = names.flight(key)
        self._writer = writer.encode()
        self._last = b"0"
        self._checked = time.monotonic()
        self._alive = True
        self.goes_on = True

    async def read(self) -> list[tuple[bytes, bytes]]:
        """Return the next entries (kind and text), after a wait of CHECK_SECONDS at most; none is possible."""
        try:
            if time.monotonic() - self._checked >= CHECK_SECONDS:
                await self._check()
            # Of a writer that is gone there may still be something to read, once.
            block = round(CHECK_SECONDS * 1000) if self._alive else None
            found = await self._link.wait(partial(self._link.waiting.xread, {self._stream: self._last}, block=block))
        except NotShared:
            self.goes_on = False
            return []
        entries = []
        for number, entry in found[0][1] if found else ():
            self._last = number
            entries += entry.items()
        if not self._alive or any(kind == GONE.encode() for kind, _ in entries):
            self.goes_on = False
        return entries

    async def _check(self) -> None:
        """Look whether the writer lives, and say that a reader does."""
        self._checked = time.monotonic()
        async with self._link.redis.pipeline(transaction=False) as asked:
            asked.get(self._flight)
            asked.set(self._wanted, "1", px=round(WANTED_SECONDS * 1000))
            held, _ = await self._link.ask(asked.execute)
        self._alive = held == self._writer
