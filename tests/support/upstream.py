"""An upstream that speaks the OpenAI wire format and does as it is told.

A real HTTP/1.1 server on a loopback port. What it does with a request is a
coroutine that the test writes::

    async def cut(exchange):
        await exchange.start()
        await exchange.text("half an ans")
        exchange.reset()

    upstream.answer = cut

It records every request, and when each client left.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

CHUNK_END = b"0\r\n\r\n"


class Exchange:
    """One request, and the means to answer it."""

    def __init__(
        self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body: dict[str, Any] = json.loads(body) if body else {}
        self.gone = asyncio.Event()
        """Set as soon as the client has closed its side."""
        self.finished = False
        """Whether the whole response was written."""
        self.broken = False
        """Whether the connection was broken from this side."""
        self._writer = writer

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages that the model was sent."""
        messages: list[dict[str, str]] = self.body["messages"]
        return messages

    async def start(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """Write the head of a chunked response."""
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        await self._writer.drain()

    async def send(self, data: bytes) -> None:
        """Write one chunk of body, at once."""
        self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self._writer.drain()

    async def event(self, payload: Any) -> None:
        """Write one event."""
        await self.send(f"data: {json.dumps(payload)}\n\n".encode())

    async def text(self, *pieces: str) -> None:
        """Write each piece of text as an event of its own."""
        for piece in pieces:
            await self.event({"choices": [{"index": 0, "delta": {"content": piece}}]})

    async def finish(self, reason: str | None = "stop", *, usage: tuple[int, int] | None = (7, 3)) -> None:
        """Write the finish reason, the usage (prompt and completion tokens), [DONE], and end the response."""
        if reason is not None:
            await self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if usage is not None:
            counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
            await self.event({"choices": [], "usage": counts})
        await self.send(b"data: [DONE]\n\n")
        await self.end()

    async def end(self) -> None:
        """End the response properly, whatever was in it."""
        self._writer.write(CHUNK_END)
        await self._writer.drain()
        self.finished = True

    async def refuse(self, status: int, **headers: str) -> None:
        """Answer with an error in OpenAI's form. Its text must reach no client."""
        await self.start(status, "application/json", **headers)
        await self.send(b'{"error": {"message": "SECRET-UPSTREAM-TEXT", "type": "x", "code": null}}')
        await self.end()

    def reset(self) -> None:
        """Cut the connection with a TCP reset."""
        self.broken = True
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """Close the connection in the middle of the response."""
        self.broken = True
        self._writer.close()


Answer = Callable[[Exchange], Awaitable[None]]


def saying(*pieces: str, reason: str | None = "stop", usage: tuple[int, int] | None = (7, 3)) -> Answer:
    """Return an answer that says the pieces, one event each."""

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text(*pieces)
        await exchange.finish(reason, usage=usage)

    return answer


def sending(chunks: Iterable[bytes]) -> Answer:
    """Return an answer that writes these chunks of body, each in a read of its own."""

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for chunk in chunks:
            await exchange.send(chunk)
            await asyncio.sleep(0)
        await exchange.end()

    return answer


class Upstream:
    """The server. ``answer`` is what it does with chat completions."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.answer: Answer = saying("Hello", " there", ".")
        self.exchanges: list[Exchange] = []

    @property
    def chats(self) -> list[Exchange]:
        """The requests for chat completions."""
        return [exchange for exchange in self.exchanges if exchange.path.endswith("/chat/completions")]

    async def next_chat(self) -> Exchange:
        """Wait until a request for a chat completion has come, and return the latest."""
        async with asyncio.timeout(10):
            while not self.chats:
                await asyncio.sleep(0.005)
        return self.chats[-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (exchange := await self._read(reader, writer)) is not None:
                self.exchanges.append(exchange)
                if not exchange.path.endswith("/chat/completions"):
                    await exchange.start(content_type="application/json")
                    await exchange.send(b'{"object": "list", "data": []}')
                    await exchange.end()
                    continue
                answering = asyncio.ensure_future(self.answer(exchange))
                leaving = asyncio.ensure_future(_closed(reader, exchange))
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    answering.cancel()
                    return
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
                if not exchange.finished:
                    exchange.broken = True
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")[:-2]
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Exchange(writer, method, path, headers, body)


async def _closed(reader: asyncio.StreamReader, exchange: Exchange) -> None:
    """Return once the client has closed its side; it sends nothing while it waits for an answer."""
    with suppress(ConnectionError):
        await reader.read(1)
    exchange.gone.set()


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """Run an upstream on a free port."""
    serving: list[Upstream] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serving[0]._serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    serving.append(Upstream(server.sockets[0].getsockname()[1]))
    try:
        yield serving[0]
    finally:
        server.close()
        for exchange in serving[0].exchanges:
            exchange.close()
