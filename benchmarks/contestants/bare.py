"""The least that a relay can do in Python: aiohttp on one side, grpc.aio on the other, one message per token.

It keeps nothing, limits nothing, logs nothing and trusts its upstream: what it
takes is what the two libraries take. With --replay it relays nothing and
answers each call with the messages of a file (each with its length before it,
4 bytes, big-endian).

    python benchmarks/contestants/bare.py PORT UPSTREAM_URL
    python benchmarks/contestants/bare.py PORT --replay FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import grpc
import msgspec
import uvloop

from chat_grpc._gen.chat.v1 import chat_pb2

Context: TypeAlias = "grpc.aio.ServicerContext[chat_pb2.ChatRequest, chat_pb2.ChatResponse]"

MAX_CONNECTIONS = 10_000
DATA = b"data: "


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


_decode = msgspec.json.Decoder(_Chunk).decode


class Relay:
    """Asks the upstream and passes each token on."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def chat(self, request: chat_pb2.ChatRequest, context: Context) -> None:
        """Relay one answer."""
        response, delta, write = chat_pb2.ChatResponse, chat_pb2.Delta, context.write
        body = msgspec.json.encode(
            {"model": "bench", "messages": [{"role": "user", "content": request.message}], "stream": True}
        )
        async with self._session.post(self._url, data=body) as answer:
            read = answer.content.readany
            tail = b""
            while chunk := await read():
                *lines, tail = (tail + chunk).split(b"\n")
                for line in lines:
                    if not line.startswith(DATA):
                        continue
                    if line == b"data: [DONE]":
                        continue  # what follows is the end of the body, which gives the connection back
                    choices = _decode(line[6:]).choices
                    if choices and (text := choices[0].delta.content):
                        await write(response(delta=delta(text=text)))


class Replay:
    """Answers every call with the same messages."""

    def __init__(self, messages: list[chat_pb2.ChatResponse]) -> None:
        self._messages = messages

    async def chat(self, request: chat_pb2.ChatRequest, context: Context) -> None:  # noqa: ARG002 (gRPC's signature)
        """Send the messages."""
        for message in self._messages:
            await context.write(message)


async def serve(port: int, servicer: Relay | Replay) -> None:
    """Serve until the process ends."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    # The stubs type this for grpc's threaded servers.
    behaviour: Any = servicer.chat
    handler = grpc.unary_stream_rpc_method_handler(
        behaviour,
        request_deserializer=chat_pb2.ChatRequest.FromString,
        response_serializer=chat_pb2.ChatResponse.SerializeToString,
    )
    methods = grpc.method_handlers_generic_handler("chat.v1.ChatService", {"Chat": handler})
    server.add_generic_rpc_handlers((methods,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def relay(port: int, url: str) -> None:
    """Relay the upstream at a base URL."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"content-type": "application/json"},
    ) as session:
        await serve(port, Relay(session, f"{url}/chat/completions"))


def messages(data: bytes) -> list[chat_pb2.ChatResponse]:
    """Read the messages of a file."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        found.append(chat_pb2.ChatResponse.FromString(data[4:end]))
        data = data[end:]
    return found


if __name__ == "__main__":
    if sys.argv[2] == "--replay":
        uvloop.run(serve(int(sys.argv[1]), Replay(messages(Path(sys.argv[3]).read_bytes()))))
    else:
        uvloop.run(relay(int(sys.argv[1]), sys.argv[2]))
