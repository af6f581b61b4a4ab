"""What stands between the storage and DynamoDB in tests: it counts the calls, and does what networks do to them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

Fault = Callable[[web.Request, Callable[[], Awaitable[web.Response]]], Awaitable[web.StreamResponse]]
"""Answers a call; its second argument passes the call on and returns what DynamoDB answered."""


class Proxy:
    """A running proxy. ``calls`` are the operations that came, in order; ``faults`` come over the next ones."""

    def __init__(self, upstream: str) -> None:
        self.url = ""
        self.upstream = upstream
        self.calls: list[str] = []
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.only = ""
        self._http: aiohttp.ClientSession | None = None

    def take_calls(self) -> list[str]:
        """Return the operations since the last time, without those by which a server says that it is alive."""
        calls, self.calls = self.calls, []
        return calls

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers.get("X-Amz-Target", ".").rpartition(".")[2]
        body = await request.read()
        if b'"V#' in body:  # a heartbeat
            return await self._pass(request, body)
        self.calls.append(operation)
        hit = not self.only or self.only == operation
        if hit and self.faults:
            return await self.faults.popleft()(request, lambda: self._pass(request, body))
        if hit and self.always is not None:
            return await self.always(request, lambda: self._pass(request, body))
        return await self._pass(request, body)

    async def _pass(self, request: web.Request, body: bytes) -> web.Response:
        assert self._http is not None
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in {"content-length", "connection", "transfer-encoding"}
        }
        async with self._http.post(self.upstream, data=body, headers=headers) as answer:
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower().startswith("x-amz") or name.lower() == "content-type"
            }
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)


@asynccontextmanager
async def proxy(upstream: str) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a server."""
    running = Proxy(upstream)
    application = web.Application(client_max_size=50_000_000)
    application.router.add_route("*", "/{tail:.*}", running._handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as http:
            running._http = http
            yield running
    finally:
        await runner.cleanup()


async def cut_before(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """Cut the connection before DynamoDB has seen the call."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut_after(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """Cut the connection once DynamoDB has done what it was asked for, before it could say so."""
    await forward()
    return await cut_before(request, forward)


async def cut_within(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """Cut the connection in the middle of the answer."""
    whole = await forward()
    body = whole.body
    assert isinstance(body, bytes)
    answer = web.StreamResponse(status=whole.status, headers={"Content-Length": str(len(body) + 10)})
    await answer.prepare(request)
    await answer.write(body[: len(body) // 2] or b"{")
    return await cut_before(request, forward)


async def throttle(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """Refuse the call, as a table does that is asked too often."""
    return fault(400, "ProvisionedThroughputExceededException")


def fault(status: int, code: str) -> web.Response:
    """Return an error in DynamoDB's form."""
    return web.Response(
        status=status,
        body=json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no"}).encode(),
        content_type="application/x-amz-json-1.0",
    )


def delayed(seconds: float) -> Fault:
    """Return what passes a call on after some seconds."""

    async def wait(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await forward()

    return wait
