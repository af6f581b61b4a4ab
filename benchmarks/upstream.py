"""A fast upstream for measurements: the OpenAI wire format, as many tokens as asked, at the pace asked.

The model's name, or the message, says how: ``tokens=200,rate=50`` sends 200
tokens, 50 a second; without a rate, all in one write; with the word ``stall``,
one token and then nothing until the client leaves. Each token is a word that
tells when it was sent (stamp.py), so that whoever reads it knows how long it was
on its way.

    python benchmarks/upstream.py PORT
"""

from __future__ import annotations

import asyncio
import re
import sys
import time

import stamp
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 28\r\n\r\n{"object":"list","data":[]} '
USAGE = b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":%d,"total_tokens":%d}}'
STALL = re.compile(rb"\bstall\b")
STOP = b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'


class Upstream(asyncio.Protocol):
    """One connection, which answers one request after another."""

    def __init__(self) -> None:
        self._buffer = b""
        self._writing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is always one
        """Keep the transport."""
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """Stop writing."""
        if self._writing is not None:
            self._writing.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer once a whole request has arrived."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if len(body) < (int(length[1]) if length else 0):
            return
        self._buffer = b""
        if not head.startswith(b"POST"):
            self._transport.write(MODELS)
            return
        if STALL.search(body):
            self._transport.write(HEAD + token())
            return
        asked = dict(re.findall(rb"(tokens|rate)=(\d+)", body))
        self._writing = asyncio.ensure_future(self._write(int(asked.get(b"tokens", 20)), int(asked.get(b"rate", 0))))

    async def _write(self, tokens: int, rate: int) -> None:
        end = chunk(STOP) + chunk(USAGE % (tokens, tokens + 10)) + chunk(b"[DONE]") + b"0\r\n\r\n"
        if not rate:
            self._transport.write(HEAD + b"".join(token() for _ in range(tokens)) + end)
            return
        self._transport.write(HEAD + token())
        started = time.monotonic()
        for number in range(1, tokens):
            # Each is due at its own time, so that a late one does not delay the rest.
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            self._transport.write(token())
        self._transport.write(end)


def chunk(data: bytes) -> bytes:
    """Return one event as one chunk of an HTTP body."""
    return b"%x\r\ndata: %s\n\n\r\n" % (len(data) + 8, data)


def token() -> bytes:
    """Return a token that says when it was sent."""
    return chunk(
        b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench",'
        b'"choices":[{"index":0,"delta":{"content":"%s "},"finish_reason":null}]}' % stamp.word(time.monotonic_ns())
    )


async def serve(port: int) -> None:
    """Serve until cancelled."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
