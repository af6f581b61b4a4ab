"""The client of all measurements: reads loads from stdin, drives them, writes what it saw to stdout.

One JSON object a line, in both directions. A load is ``streams`` callers at
once, each of which asks ``requests`` times, one after another; ``message`` is
what they ask. Each question has a number of its own, so that no two are equal,
unless ``same`` is set. Callers begin at random moments of ``ramp`` seconds
(the same ones every time). ``hold`` answers as soon as every caller has had its
first token and keeps the streams open until the next line comes. ``light`` asks
gRPC servers with http2.py instead of grpc.aio; it can't ``hold``.

Times are taken as the bytes arrive; what they say is read when the load is over.

    python benchmarks/client.py grpc ADDRESS
    python benchmarks/client.py sse ADDRESS PATH
"""

from __future__ import annotations

import asyncio
import bisect
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import msgspec
import stamp
import uvloop
from http2 import LightCaller

STREAMS_PER_CHANNEL = 25
"""gRPC streams on one connection: a caller is no machine of its own, nor do all share one."""
LAST = 10
"""Tokens at the end of a stream that tell whether it has fallen behind."""
IDLE_SECONDS = 2.0
"""How long a connection is kept: uvicorn closes it after 5, perhaps in the moment in which it is used again."""
PATIENCE = 5.0
"""Seconds without another first token after which no more are expected."""
CONTENT = re.compile(rb'"content": ?"([a-z ]+)"')


class Load(msgspec.Struct):
    """What to do; see above."""

    message: str
    streams: int = 1
    requests: int = 1
    ramp: float = 0.0
    same: bool = False
    hold: bool = False
    keep_events: bool = False
    light: bool = False


@dataclass(slots=True)
class Seen:
    """What one request brought; times in nanoseconds of CLOCK_MONOTONIC."""

    started: int
    pieces: list[tuple[int, Any]] = field(default_factory=list)
    error: str = ""
    cached: bool = False
    begun: bool = False


class Caller(Protocol):
    """One way to ask."""

    async def ask(self, message: str, seen: Seen, number: int) -> None:
        """Ask, and note in ``seen`` what came."""

    def tokens(self, seen: Seen) -> list[tuple[int, str]]:
        """Return when each token was received and when it was sent."""


class GrpcCaller:
    """chat.v1 over grpc.aio."""

    def __init__(self, address: str) -> None:
        import grpc

        from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc

        self._grpc = grpc
        self._pb = chat_pb2
        self._stub = chat_pb2_grpc.ChatServiceStub
        self._address = address
        self._stubs: list[Any] = []
        self.events: list[bytes] = []

    async def ask(self, message: str, seen: Seen, number: int) -> None:
        """Ask on the connection that this caller's number shares."""
        channel = number // STREAMS_PER_CHANNEL
        while len(self._stubs) <= channel:
            # Channels to one address share a connection unless told not to.
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._stubs.append(self._stub(self._grpc.aio.insecure_channel(self._address, options)))
        request = self._pb.ChatRequest(message=message, options=self._pb.ChatOptions(retrieval=False))
        call = self._stubs[channel].Chat(request)
        pieces, clock, end = seen.pieces, time.monotonic_ns, self._grpc.aio.EOF
        try:
            while (event := await call.read()) is not end:
                pieces.append((clock(), event))
                if not seen.begun and event.HasField("delta"):
                    seen.begun = True
            if pieces:
                seen.cached = pieces[-1][1].completed.cached
        except self._grpc.aio.AioRpcError as error:
            seen.error = error.code().name
        finally:
            call.cancel()

    def tokens(self, seen: Seen) -> list[tuple[int, str]]:
        """Read the words in the deltas."""
        self.events = [event.SerializeToString() for _, event in seen.pieces]
        return [
            (received, sent)
            for received, event in seen.pieces
            if event.HasField("delta")
            for sent in event.delta.text.split()
        ]


class SseCaller:
    """HTTP/1.1 with server-sent events, one connection per stream, kept for the next one."""

    def __init__(self, address: str, path: str) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._path = path
        self._idle: list[_Connection] = []

    async def ask(self, message: str, seen: Seen, number: int) -> None:  # noqa: ARG002 (any connection will do)
        """Ask on a connection that is free."""
        body = json.dumps(
            {"message": message}
            if self._path.startswith("/api/")
            else {"model": "bench", "messages": [{"role": "user", "content": message}], "stream": True}
        ).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\nauthorization: Bearer sk-none\r\n"
            f"content-type: application/json\r\naccept: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        while self._idle and not self._idle[-1].usable:
            self._idle.pop().transport.abort()
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        try:
            await connection.ask(head.encode() + body, seen)
            self._idle.append(connection)
        except ConnectionError as error:
            seen.error = str(error)
        except asyncio.CancelledError:
            connection.transport.abort()
            raise

    def tokens(self, seen: Seen) -> list[tuple[int, str]]:
        """Read the words in the events, which may be cut anywhere."""
        body, ends = bytearray(), []
        for position, chunk in _chunks(b"".join(data for _, data in seen.pieces)):
            body += chunk
            ends.append((len(body), position))
        arrived, total = [], 0
        for moment, data in seen.pieces:
            total += len(data)
            arrived.append((total, moment))
        found = []
        for match in CONTENT.finditer(body):
            offset, position = ends[bisect.bisect_left(ends, (match.end(), 0))]
            raw = position - (offset - match.end())  # where in the connection's bytes the text ended
            received = arrived[bisect.bisect_left(arrived, (raw, 0))][1]
            found += [(received, sent) for sent in match[1].decode().split()]
        return found


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection."""

    transport: asyncio.Transport

    @property
    def usable(self) -> bool:
        """Whether the server still has it."""
        return not self.transport.is_closing() and time.monotonic() - self._ended < IDLE_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is always one
        self.transport = transport
        self._done: asyncio.Future[None] | None = None
        self._ended = 0.0

    async def ask(self, request: bytes, seen: Seen) -> None:
        """Send a request and return when its response has ended; ConnectionError if it is no success."""
        self._seen = seen
        self._tail = b""
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._done
        self._ended = time.monotonic()

    def data_received(self, data: bytes) -> None:
        seen = self._seen
        if not seen.pieces and not data.startswith(b"HTTP/1.1 200"):
            self._end(ConnectionError(data[:200].decode(errors="replace")))
            self.transport.close()
            return
        seen.pieces.append((time.monotonic_ns(), data))
        if not seen.begun and b'content":' in data:
            seen.begun = True
        # The last chunk of a body, whatever was cut where.
        tail = (self._tail + data)[-7:] if len(data) < 7 else data[-7:]  # noqa: PLR2004 (\r\n0\r\n\r\n)
        self._tail = tail
        if tail == b"\r\n0\r\n\r\n":
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self._end(ConnectionError("the connection was closed"))

    def _end(self, error: ConnectionError | None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the chunks of a response's body, each with where it ended in ``data``."""
    at = data.find(b"\r\n\r\n") + 4
    while True:
        line = data.find(b"\r\n", at)
        size = int(data[at:line].split(b";")[0] or b"0", 16) if line > 0 else 0
        if not size:
            return
        yield line + 2 + size, data[line + 2 : line + 2 + size]
        at = line + 2 + size + 2


async def drive(
    caller: Caller, load: Load, numbers: Iterator[int]
) -> tuple[list[list[Seen]], list[asyncio.Task[None]]]:
    """Begin a load; return what will have been seen, by caller, and the callers' tasks."""
    chance = random.Random(0)  # noqa: S311 (no secret)
    seen: list[list[Seen]] = [[] for _ in range(load.streams)]

    async def one(number: int, begin: float) -> None:
        await asyncio.sleep(begin)
        for _ in range(load.requests):
            message = load.message if load.same else f"Question {next(numbers)}: {load.message}"
            seen[number].append(Seen(time.monotonic_ns()))
            await caller.ask(message, seen[number][-1], number)

    return seen, [
        asyncio.ensure_future(one(number, chance.uniform(0, load.ramp) if load.ramp else 0.0))
        for number in range(load.streams)
    ]


def report(caller: Caller, seen: list[list[Seen]], started: int, ended: int) -> dict[str, Any]:
    """Say what was seen: counts, and milliseconds."""
    first, delays, behind = [], [], []
    for one in seen:
        for request in one:
            tokens = caller.tokens(request)
            if tokens:
                first.append((tokens[0][0] - request.started) / 1e6)
                mine = [stamp.age(sent, received) for received, sent in tokens]
                delays += mine
                behind.append(statistics.median(mine[-LAST:]))
    requests = [request for one in seen for request in one]
    delays.sort()
    return {
        "requests": len(requests),
        "tokens": len(delays),
        "messages": sum(len(request.pieces) for request in requests),
        "errors": sorted({request.error for request in requests if request.error}),
        "failed": sum(bool(request.error) for request in requests),
        "cached": sum(request.cached for request in requests),
        "seconds": (ended - started) / 1e9,
        "first": statistics.median(first) if first else None,
        "p50": delays[len(delays) // 2] if delays else None,
        "p99": delays[len(delays) * 99 // 100] if delays else None,
        "behind": max(behind) if behind else None,
    }


async def hold(caller: Caller, load: Load, numbers: Iterator[int]) -> dict[str, Any]:
    """Open streams, say how many have brought a first token, and keep them until the next line."""
    seen, tasks = await drive(caller, load, numbers)
    started = time.monotonic_ns()
    opened, unchanged = 0, 0
    while opened < len(seen) and unchanged < PATIENCE / 0.1:
        await asyncio.sleep(0.1)
        before, opened = opened, sum(bool(one) and one[0].begun and not one[0].error for one in seen)
        unchanged = unchanged + 1 if opened == before else 0
    say({"opened": opened, "seconds": (time.monotonic_ns() - started) / 1e9})
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"released": len(tasks)}


def say(answer: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main(kind: str, *where: str) -> None:
    """Drive loads until stdin ends."""
    usual: Any = GrpcCaller(*where) if kind == "grpc" else SseCaller(*where)
    light: Any = LightCaller(where[0], STREAMS_PER_CHANNEL) if kind == "grpc" else usual
    numbers = count(time.monotonic_ns())
    while line := await asyncio.to_thread(sys.stdin.readline):
        load = msgspec.json.decode(line, type=Load)
        caller = light if load.light else usual
        if load.hold:
            if caller is not usual:
                sys.exit("a load that holds needs grpc.aio: leave out light")
            say(await hold(caller, load, numbers))
            continue
        started = time.monotonic_ns()
        seen, tasks = await drive(caller, load, numbers)
        await asyncio.gather(*tasks)
        ended = time.monotonic_ns()
        answer = report(caller, seen, started, ended)
        if load.keep_events:
            answer["events"] = [event.hex() for event in caller.events]
        say(answer)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
