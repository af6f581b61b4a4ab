"""Writing one answer as the events of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from google.api.httpbody_pb2 import HttpBody

from chat_grpc.conversation.answering import Direct
from chat_grpc.domain import Completed, Event, Retrieved, Started
from chat_grpc.rpc.interceptor import Context
from gateway import sse
from gateway.keepalive import KeepAlive
from gateway.openai_answers import Chunks, cut_short
from gateway.openai_errors import event_of


class EventStream:
    """Writes chunks to a client, and comments in their silences.

    Args:
        context: the call.
        chunks: what makes the chunks.
        keep_alive: seconds of silence after which a comment is sent.
    """

    def __init__(self, context: Context, chunks: Chunks, keep_alive: float) -> None:
        self._context = context
        self._chunks = chunks
        self._silence = KeepAlive(self._comment, keep_alive)
        # Text is written by the task that reads it from the model, the rest by the call's own; when that is told to
        # stop, the other may be in the midst of writing.
        self._writing = asyncio.Lock()
        self._completed = False

    async def write(self, chat: Callable[[Direct], AsyncGenerator[Event, None]]) -> None:
        """Write what a conversation says.

        The first event is written when there is text. Until then a failure is
        raised and nothing else, so that it becomes an HTTP status, which makes
        OpenAI's SDKs try again where that helps. A later one becomes the last
        event, and is raised all the same: the log, the gRPC status and the
        metrics say what happened, while Envoy ends the body cleanly.
        """
        async with self._silence, aclosing(chat(self._say)) as events:
            try:
                async for event in events:
                    await self._take(event)
                if not self._completed:
                    raise cut_short()  # noqa: TRY301 (it takes the way that every other failure takes)
            except Exception as error:
                if self._chunks.begun:
                    await self._send(event_of(error), first=False)
                raise

    async def _take(self, event: Event) -> None:
        match event:
            case str():
                await self._say(event)
            case Started():
                self._chunks.started(event)
            case Retrieved():
                self._chunks.retrieved(event)
            case Completed():
                first = not self._chunks.begun
                await self._send(self._chunks.completed(event), first=first)
                self._completed = True

    async def _say(self, text: str) -> None:
        first = not self._chunks.begun
        await self._send(self._chunks.text(text), first=first)

    async def _send(self, data: bytes, *, first: bool) -> None:
        async with self._writing:
            if first:
                await self._context.send_initial_metadata(sse.HEADERS)
            await self._silence.turn()
            # Envoy takes the response's content type from the first message.
            body = HttpBody(content_type=sse.CONTENT_TYPE if first else "", data=data)
            await self._context.write(body.SerializeToString())
            self._silence.done()

    async def _comment(self) -> None:
        await self._context.write(HttpBody(data=sse.KEEP_ALIVE).SerializeToString())
