"""A light gRPC client that measures delays: just enough HTTP/2 (RFC 9113) and gRPC, as an asyncio protocol.

At 10,000 tokens a second grpc.aio's client takes more than half a processor for
itself. On a machine of two cores it is then the client that decides how late
tokens are, not the server that is measured. This one notes the time once for
whatever came together, cuts it into frames, and reads the messages only when
the load is over, which costs a few microseconds a token.

It asks every gRPC server alike, but is of no use elsewhere: requests must fit
into one frame, deadlines and compression are missing, and a stream may bring no
more than 2 GB.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING

import grpc

from chat_grpc._gen.chat.v1 import chat_pb2

if TYPE_CHECKING:
    from client import Seen

METHOD = "/chat.v1.ChatService/Chat"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8

FRAME = Struct(">HBBBI")  # the length's 16 high bits and 8 low ones, type, flags, stream
SETTING = Struct(">HI")
NUMBER = Struct(">I")
PREFIX = Struct(">BI")  # of a gRPC message: whether it is compressed, and its length

HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE = 1, 2, 4
LARGEST_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
LAST_STREAM = 2**31 - 1

STATUS = re.compile(rb"\x0bgrpc-status(?:\x01(\d)|\x02(\d\d))")
"""As it stands in a block of headers when the peer may keep no table: a name and a value, each with its length."""
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class LightCaller:
    """chat.v1 over connections that ``sharing`` callers share each."""

    def __init__(self, address: str, sharing: int) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._sharing = sharing
        self._connections: dict[int, asyncio.Task[Connection]] = {}
        self._headers = literals(
            {
                ":method": "POST",
                ":scheme": "http",
                ":path": METHOD,
                ":authority": address,
                "te": "trailers",
                "content-type": "application/grpc",
                "user-agent": "chat-grpc-benchmarks",
            }
        )
        self.events: list[bytes] = []

    async def ask(self, message: str, seen: Seen, number: int) -> None:
        """Ask on the connection that this caller's number shares."""
        request = chat_pb2.ChatRequest(message=message, options=chat_pb2.ChatOptions(retrieval=False))
        try:
            connection = await self._connection(number // self._sharing)
            seen.error = await connection.ask(self._headers, request.SerializeToString(), seen)
        except OSError as error:
            seen.error = str(error)

    async def _connection(self, number: int) -> Connection:
        opening = self._connections.get(number)
        if opening is None or (opening.done() and (opening.exception() is not None or opening.result().closed)):
            opening = self._connections[number] = asyncio.ensure_future(self._open())
        return await opening

    async def _open(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return connection

    def tokens(self, seen: Seen) -> list[tuple[int, str]]:
        """Read the words in the deltas; leave a piece per message, as grpc.aio would have brought them."""
        try:
            seen.pieces = list(messages(seen.pieces))
        except ValueError as error:
            seen.error = seen.error or str(error)
            return []
        self.events = [data for _, data in seen.pieces]
        found = []
        for received, data in seen.pieces:
            event = chat_pb2.ChatResponse.FromString(data)
            if event.HasField("delta"):
                found += [(received, sent) for sent in event.delta.text.split()]
            elif event.HasField("completed"):
                seen.cached = event.completed.cached
        return found


class Connection(asyncio.Protocol):
    """One HTTP/2 connection."""

    def __init__(self) -> None:
        self.closed = False
        self._rest = b""
        self._block = b""
        self._ends = False
        self._next = 1
        self._taken = 0
        self._streams: dict[int, tuple[Seen, asyncio.Future[str]]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is always one
        """Say how this end wants it: no table, so that each header can be read by itself, and no waiting."""
        self._transport = transport
        wanted = ((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, LARGEST_WINDOW))
        transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*one) for one in wanted))
            + frame(WINDOW_UPDATE, 0, 0, NUMBER.pack(LARGEST_WINDOW - DEFAULT_WINDOW))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way."""
        self._close(0, f"the connection was closed: {exc or 'by the server'}")

    async def ask(self, headers: bytes, message: bytes, seen: Seen) -> str:
        """Send a request, note in ``seen`` what comes, and return what went wrong, or nothing, once it has ended."""
        stream, self._next = self._next, self._next + 2
        if self.closed:
            return "the connection was closed"
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._streams[stream] = seen, ended
        self._transport.write(
            frame(HEADERS, END_HEADERS, stream, headers)
            + frame(DATA, END_STREAM, stream, PREFIX.pack(0, len(message)) + message)
        )
        return await ended

    def data_received(self, data: bytes) -> None:
        """Cut what came into frames; keep the messages' bytes, each with the time of this one moment."""
        now = time.monotonic_ns()
        if self._rest:
            data = self._rest + data
        streams, at, size = self._streams, 0, len(data)
        while size - at >= FRAME.size:
            high, low, kind, flags, stream = FRAME.unpack_from(data, at)
            begin = at + FRAME.size
            end = begin + (high << 8 | low)
            if end > size:
                break
            at = end
            if kind != DATA:
                self._control(kind, flags, stream, data[begin:end])
                continue
            self._taken += end - begin
            if flags & PADDED:
                end -= data[begin]
                begin += 1
            if stream in streams:
                streams[stream][0].pieces.append((now, data[begin:end]))
                if flags & END_STREAM:
                    self._end(stream, "ended without a status")
        self._rest = data[at:]
        if self._taken > LARGEST_WINDOW // 2:
            self._transport.write(frame(WINDOW_UPDATE, 0, 0, NUMBER.pack(self._taken)))
            self._taken = 0

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Do what a frame asks for that holds no messages; the ones that ask for nothing here are let go."""
        if kind in {HEADERS, CONTINUATION}:
            if kind == HEADERS:
                self._block, self._ends = b"", bool(flags & END_STREAM)
            self._block += payload
            if flags & END_HEADERS and self._ends:
                self._end(stream, failure(self._block))
        elif kind in {SETTINGS, PING} and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == RST_STREAM:
            self._end(stream, f"reset with HTTP/2 error {NUMBER.unpack(payload)[0]}")
        elif kind == GOAWAY:
            self._close((NUMBER.unpack_from(payload)[0] & LAST_STREAM) + 1, "the server is going away")

    def _close(self, first: int, error: str) -> None:
        """Begin no more streams, and end those from number ``first`` on."""
        self.closed = True
        for stream in [stream for stream in self._streams if stream >= first]:
            self._end(stream, error)

    def _end(self, stream: int, error: str) -> None:
        _, ended = self._streams.pop(stream, (None, None))
        if ended is not None and not ended.done():
            ended.set_result(error)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def literals(headers: dict[str, str]) -> bytes:
    """Return a block of headers of less than 127 bytes each, as they are: not indexed, not in Huffman's code."""
    return b"".join(
        b"\0" + b"".join(bytes((len(part),)) + part.encode() for part in header) for header in headers.items()
    )


def failure(trailers: bytes) -> str:
    """Return the name of the status in a block of trailers, or nothing if it is OK; no status is a failure too."""
    found = STATUS.search(trailers)
    if found is None:
        return "ended without a status"
    code = int(found[1] or found[2])
    return CODES.get(code, f"status {code}") if code else ""


def messages(pieces: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield the messages in a stream's pieces, which may be cut anywhere, each with the time of its last byte.

    Raises:
        ValueError: a message is not whole, or compressed.
    """
    rest = b""
    for received, piece in pieces:
        data, at = rest + piece, 0
        while len(data) - at >= PREFIX.size:
            compressed, size = PREFIX.unpack_from(data, at)
            if compressed:
                raise ValueError("a message is compressed")
            end = at + PREFIX.size + size
            if end > len(data):
                break
            yield received, data[at + PREFIX.size : end]
            at = end
        rest = data[at:]
    if rest:
        raise ValueError("a message is not whole")
