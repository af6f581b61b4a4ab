"""A memvid service that holds what a test puts into it: the real protocol over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from chat_grpc._gen.memvid.v1 import health_pb2, health_pb2_grpc, memvid_pb2, memvid_pb2_grpc

PASSAGES = (
    ("Storage › DynamoDB", "To keep messages in DynamoDB, set CHAT_DATABASE_URL to dynamodb://table."),
    ("Storage › SQLite", "SQLite keeps messages in one file. It is the default."),
)


class Memvid(memvid_pb2_grpc.MemvidServiceServicer, health_pb2_grpc.HealthServicer):
    """Answers with ``passages`` whatever the question, and records the questions."""

    def __init__(self) -> None:
        self.address = ""
        self.passages: tuple[tuple[str, str], ...] = PASSAGES
        self.profile: str | None = '{"name": "docs", "title": "The docs", "suggested_questions": ["What is it?"]}'
        self.requests: list[memvid_pb2.AskRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.hold: asyncio.Event | None = None
        """While set to an event, answers wait for it."""
        self.left = asyncio.Event()
        """Set when a caller left while its answer waited."""

    async def Ask(self, request: memvid_pb2.AskRequest, context: Any) -> memvid_pb2.AskResponse:
        """Return the passages."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
        hits = [
            memvid_pb2.SearchHit(title=title, score=0.9 - 0.1 * rank, snippet=snippet, tags=["docs"])
            for rank, (title, snippet) in enumerate(self.passages)
        ]
        return memvid_pb2.AskResponse(evidence=hits[: request.top_k or 5])

    async def Search(self, request: memvid_pb2.SearchRequest, context: Any) -> memvid_pb2.SearchResponse:
        """Find nothing: the client asks questions with Ask."""
        return memvid_pb2.SearchResponse()

    async def GetState(self, request: memvid_pb2.GetStateRequest, context: Any) -> memvid_pb2.GetStateResponse:
        """Return the profile card."""
        if self.profile is None or request.entity != "__profile__":
            return memvid_pb2.GetStateResponse(found=False, entity=request.entity)
        return memvid_pb2.GetStateResponse(found=True, entity=request.entity, slots={"data": self.profile})

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """Say that all is well."""
        return health_pb2.HealthCheckResponse(
            status=health_pb2.HealthCheckResponse.SERVING, frame_count=len(self.passages), memvid_file="test.mv2"
        )


@asynccontextmanager
async def memvid(servicer: Memvid, port: int = 0) -> AsyncIterator[int]:
    """Serve on a port (0: a free one), which is yielded."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    memvid_pb2_grpc.add_MemvidServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)
