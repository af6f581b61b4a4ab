"""The client of the benchmarks: both of its gRPC callers see the same, and neither takes a failure for an answer."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
WORD = "aaaaaa "
"""What the upstream of the benchmarks sends: a moment in six letters."""
STREAMS, REQUESTS, TOKENS = 60, 3, 20
HANG_GUARD = 60


class Answering(chat_pb2_grpc.ChatServiceServicer):
    """Does what the message says; see below."""

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> AsyncIterator[chat_pb2.ChatResponse]:
        """Send words, one long delta for ``long``, or nothing for ``none``; then end, for ``fail`` and ``odd`` badly."""
        if "none" not in request.message:
            yield chat_pb2.ChatResponse(started=chat_pb2.Started(message_id="msg_1"))
            for _ in range(1 if "long" in request.message else TOKENS):
                text = WORD * (TOKENS * 10_000 if "long" in request.message else 1)
                yield chat_pb2.ChatResponse(delta=chat_pb2.Delta(text=text))
        if "fail" in request.message:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no model")
        if "odd" in request.message:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a code of two digits")
        yield chat_pb2.ChatResponse(
            completed=chat_pb2.Completed(message_id="msg_1", cached="cached" in request.message)
        )


@asynccontextmanager
async def answering() -> AsyncIterator[str]:
    """Serve; yield the address."""
    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(Answering(), server)  # type: ignore[abstract]  # one method is played
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def drive(address: str, *loads: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the client with loads; return its answers."""
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "benchmarks" / "client.py"), "grpc", address),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        written = "".join(json.dumps(load) + "\n" for load in loads).encode()
        output, _ = await asyncio.wait_for(client.communicate(written), HANG_GUARD)
    finally:
        if client.returncode is None:
            client.kill()
            await client.wait()
    assert client.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.e2e
async def test_both_callers_see_the_same() -> None:
    load = {"message": "words, cached", "streams": STREAMS, "requests": REQUESTS}
    async with answering() as address:
        usual, light = await drive(address, load, load | {"light": True})
    for seen in (usual, light):
        assert seen["errors"] == []
        assert seen["requests"] == seen["cached"] == STREAMS * REQUESTS
        assert seen["tokens"] == STREAMS * REQUESTS * TOKENS
        assert seen["messages"] == STREAMS * REQUESTS * (TOKENS + 2)


@pytest.mark.e2e
async def test_the_light_caller_puts_together_what_was_cut() -> None:
    # A delta of 1.4 MB: many frames, and more than the flow control of HTTP/2 lets through by default.
    async with answering() as address:
        (seen,) = await drive(address, {"message": "long", "streams": 3, "light": True})
    assert (seen["failed"], seen["tokens"], seen["messages"]) == (0, 3 * TOKENS * 10_000, 9)


@pytest.mark.e2e
@pytest.mark.parametrize("when", ["after words", "before any, with none"])
@pytest.mark.parametrize(("how", "code"), [("fail", "UNAVAILABLE"), ("odd", "UNAUTHENTICATED")])
async def test_a_status_that_is_not_ok_is_a_failure(when: str, how: str, code: str) -> None:
    load = {"message": f"{how} {when}", "streams": 2, "requests": 2}
    async with answering() as address:
        for seen in await drive(address, load, load | {"light": True}):
            assert (seen["failed"], seen["errors"]) == (4, [code])


@pytest.mark.e2e
async def test_a_connection_that_cannot_be_made_or_ends_is_a_failure() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        (seen,) = await drive(f"127.0.0.1:{nobody.getsockname()[1]}", {"message": "words", "light": True})
    assert seen["failed"] == 1

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(leave, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        (seen,) = await drive(f"127.0.0.1:{port}", {"message": "words", "requests": 2, "light": True})
    assert (seen["failed"], seen["tokens"]) == (2, 0)
