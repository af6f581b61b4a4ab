"""The answers of POST /v1/chat/completions, made from the events of a conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec import UNSET, UnsetType
from msgspec.json import encode
from msgspec.structs import astuple

from chat_grpc import domain
from gateway.openai_shapes import (
    Answer,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    Extras,
    Passage,
    Usage,
)

DONE = b"data: [DONE]\n\n"


class Chunks:
    """Makes the chunks of one stream.

    Args:
        created: seconds since 1970.
        model: the model that was asked for.
        include_usage: whether the request asks for the usage.
    """

    def __init__(self, created: int, model: str, *, include_usage: bool) -> None:
        self._created = created
        self._model = model
        self._include_usage = include_usage
        self._id = ""
        self._extras = Extras()
        self._head = b""
        self._tail = b""

    @property
    def begun(self) -> bool:
        """Whether a chunk was made."""
        return self._head != b""

    def started(self, event: domain.Started) -> None:
        """Note whose answer it is; nothing is told before there is text, so that a failure can be an HTTP status."""
        self._id = _completion_id(event.message_id)
        self._extras.message_id, self._extras.session_id = event.message_id, event.session_id

    def retrieved(self, event: domain.Retrieved) -> None:
        """Note what the answer rests on."""
        self._extras.passages = _passages(event)

    def text(self, text: str) -> bytes:
        """Return the event of a piece of text; before the first one, the event that begins the message.

        This is the path that is taken once per token: all but the text is made
        once, which is four times as fast.
        """
        if self._head:
            return self._head + encode(text) + self._tail
        return self._begin() + self._head + encode(text) + self._tail

    def completed(self, event: domain.Completed) -> bytes:
        """Return the events that end the stream: the finish reason, the usage if asked for, [DONE]."""
        begin = b"" if self._head else self._begin()
        last = self._chunk(ChunkChoice(Delta(), event.finish_reason.value))
        last.chat_grpc = Extras(
            model=event.model, cached=event.cached, degraded=_parts(event), suggested_questions=_suggestions(event)
        )
        events = begin + _event(last)
        if self._include_usage:
            counted = self._chunk(None)
            counted.usage = _usage(event)
            events += _event(counted)
        return events + DONE

    def _begin(self) -> bytes:
        empty = _event(self._chunk(ChunkChoice(Delta(content=""))))
        # The last such place is the right one, whatever the model's name holds.
        head, _, tail = empty.rpartition(b'"content":""')
        self._head, self._tail = head + b'"content":', tail
        first = self._chunk(ChunkChoice(Delta(role="assistant", content="")))
        first.chat_grpc = self._extras
        return _event(first)

    def _chunk(self, choice: ChunkChoice | None) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=[choice] if choice else []
        )
        if self._include_usage:
            chunk.usage = None
        return chunk


async def as_object(events: AsyncIterator[domain.Event], created: int, model: str) -> bytes:
    """Return the whole answer as one JSON object.

    Raises:
        ChatError: what the conversation raised.
    """
    pieces: list[str] = []
    retrieved = domain.Retrieved((), 0)
    completed: domain.Completed | None = None
    async for event in events:
        if isinstance(event, str):
            pieces.append(event)
        elif isinstance(event, domain.Retrieved):
            retrieved = event
        elif isinstance(event, domain.Completed):
            completed = event
    if completed is None:
        raise cut_short()
    return encode(
        ChatCompletion(
            id=_completion_id(completed.message_id),
            created=created,
            model=model,
            choices=[Choice(Answer("".join(pieces)), completed.finish_reason.value)],
            usage=_usage(completed),
            chat_grpc=Extras(
                message_id=completed.message_id,
                session_id=completed.session_id,
                passages=_passages(retrieved),
                model=completed.model,
                cached=completed.cached,
                degraded=_parts(completed),
                suggested_questions=_suggestions(completed),
            ),
        )
    )


def cut_short() -> RuntimeError:
    """Return what is raised for a conversation that breaks its own promise."""
    return RuntimeError("the conversation ended without Completed")


def _completion_id(message_id: str) -> str:
    return f"chatcmpl-{message_id.removeprefix('msg_')}"


def _event(chunk: ChatCompletionChunk) -> bytes:
    return b"data: " + encode(chunk) + b"\n\n"


def _passages(event: domain.Retrieved) -> list[Passage]:
    return [Passage(*astuple(passage)) for passage in event.passages]


def _parts(event: domain.Completed) -> list[str]:
    return [part.value for part in event.degraded]


def _suggestions(event: domain.Completed) -> list[str] | UnsetType:
    return [item.question for item in event.suggested_questions] or UNSET


def _usage(event: domain.Completed) -> Usage:
    usage = event.usage
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
