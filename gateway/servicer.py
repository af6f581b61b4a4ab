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
from chat_grpc.rpc.convert import suggested_question
from chat_grpc.settings import Networks
from chat_grpc.telemetry.context import named_by_caller, request_id
from gateway import answers, convert, history, rules, sse
from gateway.keepalive import KeepAlive

if TYPE_CHECKING:
    from chat_grpc.conversation.health import HealthReporter
    from chat_grpc.conversation.history import History
    from chat_grpc.conversation.pipeline import Conversation

DEFAULT_LIMIT = 10
"""How many messages of a history are listed where the request does not say (protos/gateway/v1/gateway.proto)."""


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers gateway.v1, which Envoy makes of the REST routes.

    Args:
        conversation: what answers messages.
        messages: what was said.
        health: what knows the state of the service.
        trusted: the proxies that are believed when they say whose call they pass on.
        keep_alive: seconds of silence in a stream of events after which a comment is sent.
    """

    def __init__(
        self,
        conversation: Conversation,
        messages: History,
        health: HealthReporter,
        trusted: Networks,
        *,
        keep_alive: float = 15.0,
    ) -> None:
        self._conversation = conversation
        self._messages = messages
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
            ChatError: what the conversation raised; InvalidRequest before it for what breaks a rule of the schema.
        """
        rules.check(request)
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
                await context.write(HttpBody(data=sse.KEEP_ALIVE).SerializeToString())

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

    async def SendMessage(
        self,
        request: gateway_pb2.SendMessageRequest,
        context: grpc.aio.ServicerContext[gateway_pb2.SendMessageRequest, Awaitable[gateway_pb2.SendMessageResponse]],
    ) -> gateway_pb2.SendMessageResponse:
        """Answer one message of a user.

        Raises:
            ChatError: what the conversation raised; InvalidRequest before it for what breaks a rule of the schema.
        """
        rules.check(request)
        caller = caller_of(context, self._trusted)
        events = self._conversation.chat(
            ChatRequest(
                message=request.content,
                user_id=request.user_id,
                session_id=request.session_id,
                request_id=request_id(),
                idempotent=named_by_caller(),
                address=caller.address,
                deadline=caller.deadline,
            )
        )
        async with aclosing(events):
            try:
                return convert.answer(await answers.whole(events))
            except InvalidRequest as error:
                raise InvalidRequest([_as_content(fault) for fault in error.violations]) from None

    async def ListHistory(
        self,
        request: gateway_pb2.ListHistoryRequest,
        context: grpc.aio.ServicerContext[gateway_pb2.ListHistoryRequest, Awaitable[HttpBody]],
    ) -> HttpBody:
        """List a user's latest messages, newest first.

        Raises:
            InvalidRequest: no such user_id can be, or limit is less than 1.
            StorageUnavailable: the history can't be read.
        """
        rules.check(request)
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        page = await self._messages.list_messages(request.user_id, "", page_size=limit, page_token="")
        # What people said is nothing for a cache on the way.
        await context.send_initial_metadata((("cache-control", "no-store"),))
        return HttpBody(content_type="application/json", data=history.as_array(page.messages))

    async def ListSuggestedQuestions(
        self,
        request: gateway_pb2.ListSuggestedQuestionsRequest,
        context: grpc.aio.ServicerContext[
            gateway_pb2.ListSuggestedQuestionsRequest, Awaitable[gateway_pb2.ListSuggestedQuestionsResponse]
        ],
    ) -> gateway_pb2.ListSuggestedQuestionsResponse:
        """List questions worth asking.

        Raises:
            NotFound: the memory holds no profile.
            RetrievalUnavailable: the memory can't be reached.
        """
        questions = await self._conversation.suggested_questions()
        return gateway_pb2.ListSuggestedQuestionsResponse(questions=[suggested_question(item) for item in questions])

    async def GetHealth(
        self,
        request: gateway_pb2.GetHealthRequest,
        context: grpc.aio.ServicerContext[gateway_pb2.GetHealthRequest, Awaitable[gateway_pb2.GetHealthResponse]],
    ) -> gateway_pb2.GetHealthResponse:
        """Tell the state of the service. The metadata ``x-http-status: 503`` has Envoy say "unhealthy" in HTTP too."""
        report = await self._health.report()
        if report.status == "unhealthy":
            await context.send_initial_metadata((("x-http-status", "503"),))
        return convert.health(report, detailed=request.detailed)


def _as_content(fault: Violation) -> Violation:
    """Name a field as POST /chat does."""
    return Violation("content", fault.description) if fault.field == "message" else fault
