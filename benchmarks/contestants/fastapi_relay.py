"""The relay that most people would write: FastAPI in front, httpx behind, each line passed on as it arrives.

It keeps nothing, limits nothing and does not look into what it passes on.

    python benchmarks/contestants/fastapi_relay.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

PORT, UPSTREAM = int(sys.argv[1]), sys.argv[2]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold one client with a pool of connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1000)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:  # noqa: S113 (streams have no bound here)
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> StreamingResponse:
    """Relay one answer."""
    body = await request.body()
    client: httpx.AsyncClient = request.app.state.client

    async def events() -> AsyncIterator[str]:
        headers = {"content-type": "application/json"}
        async with client.stream("POST", f"{UPSTREAM}/chat/completions", content=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line:
                    yield f"{line}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, loop="uvloop", http="httptools", log_level="error", access_log=False)
