"""The REST facade's methods: convert in, call the conversation, convert out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc
from google.api.httpbody_pb2 import HttpBody

from chat_grpc._gen.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from chat_grpc.conversation.admission import REST_B
from chat_grpc.domain import ChatRequest
from chat_grpc.errors import InvalidRequest, Violation
from chat_grpc.rpc.caller import caller_of
from chat_grpc.settings import Networks
from chat_grpc.telemetry.context import named_by_caller, request_id
from gateway import answers, sse
from gateway.keepalive import KeepAlive

if TYPE_CHECKING:
    from chat_grpc.conversation.health import HealthReporter
    from chat_grpc.conversation.pipeline import Conversation

MAX_MESSAGE = 2_000
"""How many characters a message may have here; chat.v1 takes more."""


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers gateway.v1, which Envoy makes of the REST routes.

    Args:
        conversation: what answers messages.
        health: what knows the state of the service.
        trusted: the proxies that are believed when they say whose call they pass on.
        keep_alive: seconds of silence in a stream of events after which a comment is sent.
    """

    def __init__(
        self, conversation: Conversation, health: HealthReporter, trusted: Networks, *, keep_alive: float = 15.0
    ) -> None:
        self._conversation = conversation
        self._health = health
        self._trusted = trusted
        self._keep_alive = keep_alive

    async def Chat(
        self,
        request: gateway_pb2.ChatRequest,
        context: grpc.aio.ServicerContext[gateway_pb2.ChatRequest, AsyncIterator[HttpBody]],
    ) -> AsyncIterator[HttpBody]:
        """Answer one message, as events or (stream false) as one JSON object.

        Raises:
            ChatError: what the conversation raised; InvalidRequest before it for a message of the wrong length.
        """
        _check_message(request.message)
        caller = caller_of(context, self._trusted)
        events = self._conversation.chat(
            ChatRequest(
                message=request.message,
                session_id=request.session_id,
                request_id=request_id(),
                idempotent=named_by_caller(),
                address=caller.address,
                route=REST_B,
                deadline=caller.deadline,
            )
        )
        async with aclosing(events):
            if request.HasField("stream") and not request.stream:
                yield HttpBody(content_type="application/json", data=await answers.as_object(events))
                return

            async def comment() -> None:
                await context.write(HttpBody(data=sse.KEEP_ALIVE))

            # Envoy takes the response's content type from the first message.
            content_type = sse.CONTENT_TYPE
            async with KeepAlive(comment, self._keep_alive) as silence, aclosing(answers.as_events(events)) as stream:
                async for data in stream:
                    if content_type:
                        await context.send_initial_metadata(sse.HEADERS)
                    await silence.turn()
                    yield HttpBody(content_type=content_type, data=data)
                    silence.done()
                    content_type = ""

    async def GetHealth(
        self,
        request: gateway_pb2.GetHealthRequest,
        context: grpc.aio.ServicerContext[gateway_pb2.GetHealthRequest, Awaitable[gateway_pb2.GetHealthResponse]],
    ) -> gateway_pb2.GetHealthResponse:
        """Tell the state of the service. The metadata ``x-http-status: 503`` has Envoy say "unhealthy" in HTTP too."""
        report = await self._health.report()
        if report.status == "unhealthy":
            await context.send_initial_metadata((("x-http-status", "503"),))
        return gateway_pb2.GetHealthResponse(
            status=report.status,
            memvid_connected=report.retrieval_up,
            memvid_frame_count=report.frame_count,
            active_sessions=report.active_sessions,
            version=report.version,
        )


def _check_message(message: str) -> None:
    """Raise InvalidRequest unless the message has 1 to 2,000 characters, not only white space."""
    if not message.strip():
        raise InvalidRequest([Violation("message", "must have at least one character that is not white space")])
    if len(message) > MAX_MESSAGE:
        raise InvalidRequest(
            [Violation("message", f"must have at most {MAX_MESSAGE:,} characters; this one has {len(message):,}")]
        )
