"""chat.v1: convert in, call, convert out."""

from __future__ import annotations

from contextlib import aclosing

from chat_grpc._gen.chat.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    health_pb2,
    health_pb2_grpc,
    history_pb2,
    history_pb2_grpc,
)
from chat_grpc.conversation.health import HealthReporter
from chat_grpc.conversation.history import History
from chat_grpc.conversation.pipeline import Conversation
from chat_grpc.rpc import convert
from chat_grpc.rpc.caller import caller_of
from chat_grpc.rpc.delta import delta_bytes
from chat_grpc.rpc.interceptor import Context
from chat_grpc.rpc.writer import EventWriter
from chat_grpc.settings import Networks


class ChatServicer(chat_pb2_grpc.ChatServiceServicer):
    """chat.v1.ChatService over a Conversation; ``trusted`` are the proxies that are believed."""

    def __init__(self, conversation: Conversation, trusted: Networks) -> None:
        self._conversation = conversation
        self._trusted = trusted

    async def Chat(  # type: ignore[override]  # grpc.aio takes a coroutine that writes, too; the stubs know generators only
        self, request: chat_pb2.ChatRequest, context: Context
    ) -> None:
        """Answer one message. It writes by itself: a generator would be on the way of every event."""
        writer = EventWriter(context.write)  # which takes bytes here: see rpc/interceptor.py
        asked = convert.chat_request(request, caller_of(context, self._trusted))
        try:
            async with aclosing(self._conversation.chat(asked, writer.give)) as events:
                async for event in events:
                    message = delta_bytes(event) if isinstance(event, str) else convert.event(event).SerializeToString()
                    if (taking := writer.begin(message)) is not None:
                        await taking
            await writer.drain()
        finally:
            writer.leave()

    async def ListSuggestedQuestions(
        self, request: chat_pb2.ListSuggestedQuestionsRequest, context: Context
    ) -> chat_pb2.ListSuggestedQuestionsResponse:
        """List questions worth asking."""
        questions = await self._conversation.suggested_questions()
        return chat_pb2.ListSuggestedQuestionsResponse(
            questions=[convert.suggested_question(item) for item in questions]
        )


class HistoryServicer(history_pb2_grpc.HistoryServiceServicer):
    """chat.v1.HistoryService over a History."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def ListMessages(
        self, request: history_pb2.ListMessagesRequest, context: Context
    ) -> history_pb2.ListMessagesResponse:
        """List a page of messages."""
        page = await self._history.list_messages(
            request.user_id, request.session_id, page_size=request.page_size, page_token=request.page_token
        )
        return history_pb2.ListMessagesResponse(
            messages=[convert.message(item) for item in page.messages], next_page_token=page.next_page_token
        )

    async def DeleteMessages(
        self, request: history_pb2.DeleteMessagesRequest, context: Context
    ) -> history_pb2.DeleteMessagesResponse:
        """Delete the messages of a user or of a session."""
        deleted = await self._history.delete_messages(request.user_id, request.session_id)
        return history_pb2.DeleteMessagesResponse(deleted_count=deleted)


class HealthServicer(health_pb2_grpc.HealthServiceServicer):
    """chat.v1.HealthService over a HealthReporter."""

    def __init__(self, reporter: HealthReporter) -> None:
        self._reporter = reporter

    async def GetHealth(self, request: health_pb2.GetHealthRequest, context: Context) -> health_pb2.GetHealthResponse:
        """Tell the state of each part."""
        return convert.health(await self._reporter.report())
