"""ChatClient: the RPCs of chat.v1 as methods over one channel."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import betterproto2
import grpc

from chat_grpc.client._gen.chat.v1 import (
    ChatOptions,
    ChatRequest,
    ChatResponse,
    Completed,
    DeleteMessagesRequest,
    DeleteMessagesResponse,
    Delta,
    GetHealthRequest,
    GetHealthResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    ListSuggestedQuestionsRequest,
    ListSuggestedQuestionsResponse,
    Message,
    Passage,
    Retrieval,
    Started,
    SuggestedQuestion,
)
from chat_grpc.client.errors import INCOMPLETE, ChatError, from_status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType
    from typing import Self

Event = Started | Retrieval | Delta | Completed
"""One event of an answer."""

Response = TypeVar("Response", bound=betterproto2.Message)

CHANNEL_OPTIONS = (
    # A dead peer is noticed in the middle of a stream: once a minute, because
    # servers with grpc's defaults take more pings than that for an attack.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A server that was started again is found again at once, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its text, the passages it rests on, and how it ended."""

    text: str
    passages: tuple[Passage, ...]
    completed: Completed


class ChatClient:
    """A client of one chat server, to be used as an async context manager.

    One client serves any number of tasks of one event loop at once.

    Args:
        address: ``host:port``.
        secure: speak TLS, trusting the system's certificates.
        credentials: speak TLS with these credentials instead.
        metadata: sent with every call, such as ``{"authorization": "Bearer ..."}``.
        timeout: seconds that a call other than ``chat`` and ``answer`` may take.
    """

    def __init__(
        self,
        address: str = "localhost:50052",
        *,
        secure: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.address = address
        self._credentials = credentials or (grpc.ssl_channel_credentials() if secure else None)
        self._metadata = tuple((metadata or {}).items())
        self._timeout = timeout
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        # Made here, because a channel belongs to the event loop that is running.
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(self.address, self._credentials, options=CHANNEL_OPTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def chat(
        self,
        message: str,
        *,
        user_id: str = "",
        session_id: str = "",
        request_id: str = "",
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str = "",
        retrieval: bool | None = None,
        top_k: int | None = None,
        filters: Mapping[str, str] | None = None,
        skip_cache: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 (it is the call's deadline, which the server sees too)
    ) -> AsyncGenerator[Event, None]:
        """Send one message and yield the answer's events: Started, Retrieval, Delta..., Completed.

        Parameters are the fields of ChatRequest and ChatOptions in protos/chat/v1/chat.proto;
        ``timeout`` is a limit in seconds for the whole answer, none by default (the server has its own).

        Closing the generator cancels the answer on the server. ``break`` alone closes it only when
        Python collects it, so wrap it: ``async with aclosing(client.chat(...)) as events:``.

        Raises:
            ChatError: the answer failed; the deltas before it stand.
        """
        request = ChatRequest(
            message=message,
            user_id=user_id,
            session_id=session_id,
            request_id=request_id,
            options=ChatOptions(
                max_tokens=max_tokens,
                temperature=temperature,
                model=model,
                retrieval=retrieval,
                top_k=top_k,
                filters=dict(filters or {}),
                skip_cache=skip_cache,
            ),
        )
        stub = self._open_channel().unary_stream(
            "/chat.v1.ChatService/Chat",
            request_serializer=ChatRequest.SerializeToString,
            response_deserializer=ChatResponse.FromString,
        )
        call = stub(request, timeout=timeout, metadata=self._metadata)
        answered = completed = False
        try:
            async for response in call:
                answered = True
                event: Event | None = betterproto2.which_one_of(response, "event")[1]
                if event is None:
                    continue  # an event of a later version of the protocol
                completed = isinstance(event, Completed)
                yield event
        except grpc.aio.AioRpcError as error:
            raise from_status(error, self.address, answered=answered) from None
        except asyncio.CancelledError:
            if _asked_to_stop():
                raise
            raise ChatError(grpc.StatusCode.CANCELLED, f"the server at {self.address} cancelled the call") from None
        finally:
            call.cancel()
        if not completed:
            raise ChatError(grpc.StatusCode.UNKNOWN, "the answer ended without its last event", reason=INCOMPLETE)

    async def answer(
        self,
        message: str,
        *,
        user_id: str = "",
        session_id: str = "",
        request_id: str = "",
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str = "",
        retrieval: bool | None = None,
        top_k: int | None = None,
        filters: Mapping[str, str] | None = None,
        skip_cache: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 (as above)
    ) -> Answer:
        """Send one message and return the whole answer; parameters and errors are those of ``chat``."""
        text: list[str] = []
        passages: tuple[Passage, ...] = ()
        completed = Completed()
        events = self.chat(
            message,
            user_id=user_id,
            session_id=session_id,
            request_id=request_id,
            max_tokens=max_tokens,
            temperature=temperature,
            model=model,
            retrieval=retrieval,
            top_k=top_k,
            filters=filters,
            skip_cache=skip_cache,
            timeout=timeout,
        )
        async with aclosing(events):
            async for event in events:
                match event:
                    case Retrieval():
                        passages = tuple(event.passages)
                    case Delta():
                        text.append(event.text)
                    case Completed():
                        completed = event
                    case Started():
                        pass
        return Answer("".join(text), passages, completed)

    async def list_messages(
        self, *, user_id: str = "", session_id: str = "", page_size: int = 20
    ) -> AsyncGenerator[Message, None]:
        """Yield the messages of a user or of a session, newest first, asking for pages as they are needed.

        Raises:
            ChatError: also when neither or both are named.
        """
        token = ""
        while True:
            page = await self._unary(
                "HistoryService/ListMessages",
                ListMessagesRequest(user_id=user_id, session_id=session_id, page_size=page_size, page_token=token),
                ListMessagesResponse,
            )
            for message in page.messages:
                yield message
            token = page.next_page_token
            if not token:
                return

    async def delete_messages(self, *, user_id: str = "", session_id: str = "") -> int:
        """Delete all messages of a user or of a session, for good; return how many there were."""
        request = DeleteMessagesRequest(user_id=user_id, session_id=session_id)
        return (await self._unary("HistoryService/DeleteMessages", request, DeleteMessagesResponse)).deleted_count

    async def suggested_questions(self) -> list[SuggestedQuestion]:
        """Return questions worth asking; ChatError with code NOT_FOUND when the memory holds none."""
        request = ListSuggestedQuestionsRequest()
        response = await self._unary("ChatService/ListSuggestedQuestions", request, ListSuggestedQuestionsResponse)
        return response.questions

    async def health(self) -> GetHealthResponse:
        """Return the state of the service and of each part."""
        return await self._unary("HealthService/GetHealth", GetHealthRequest(), GetHealthResponse)

    async def _unary(self, method: str, request: betterproto2.Message, response: type[Response]) -> Response:
        stub = self._open_channel().unary_unary(
            f"/chat.v1.{method}",
            request_serializer=betterproto2.Message.SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            result: Response = await stub(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise from_status(error, self.address) from None
        except asyncio.CancelledError:
            if _asked_to_stop():
                raise
            raise ChatError(grpc.StatusCode.CANCELLED, f"the server at {self.address} cancelled the call") from None
        return result

    def _open_channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise RuntimeError("ChatClient is not open: use it as `async with ChatClient(...) as client:`")
        return self._channel


def _asked_to_stop() -> bool:
    """Tell whether a CancelledError out of grpc.aio is this task's own.

    It raises the same exception when the server answers with the status
    CANCELLED, which must not look as if somebody had cancelled this task.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
