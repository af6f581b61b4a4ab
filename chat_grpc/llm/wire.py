"""The OpenAI wire format's stream of chunks: what a read of the socket says of an answer."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from chat_grpc.domain import FinishReason, Usage
from chat_grpc.llm import Ending, Prompt
from chat_grpc.llm.sse import LineTooLong, SSEDecoder

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}

CUT = ("MODEL_CUT", "ended the answer without a finish reason")
ERROR = ("MODEL_ERROR", "reported an error in the middle of the answer")
PROTOCOL = ("MODEL_PROTOCOL", "sent what is not the OpenAI wire format")
EMPTY = ("MODEL_EMPTY", "sent an empty answer")


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost: float | None = None  # OpenRouter's, in US dollars


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Text(msgspec.Struct, gc=False):
    content: Annotated[str, msgspec.Meta(min_length=1)]


class _TextChoice(msgspec.Struct, gc=False):
    delta: _Text
    finish_reason: None = None


class _TextChunk(msgspec.Struct, gc=False):
    """A chunk that says nothing but text, as nearly all of them do."""

    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_text = msgspec.json.Decoder(_TextChunk).decode
_NO_CHOICE = _Choice()


class WireAnswer:
    """What has been learnt of an answer while it is read.

    Attributes:
        thinking: the last read brought no text, but the model's thoughts.
        over: nothing more is to be read, as it is done or has failed.
        done: the stream said that it has ended.
        failure: the reason, and what the provider did in words, once it has
            gone wrong; the text that came before it stands.
    """

    __slots__ = ("_events", "_finish_reason", "_has_text", "_usage", "done", "failure", "over", "thinking")

    def __init__(self) -> None:
        self.thinking = False
        self.over = False
        self.done = False
        self.failure: tuple[str, str] | None = None
        self._events = SSEDecoder()
        self._has_text = False
        self._finish_reason: str | None = None
        self._usage: _Usage | None = None

    def feed(self, chunk: bytes) -> str:
        """Take what one read brought, and return the text in it."""
        if (  # just one event in its usual form, as reads bring it when tokens come one by one
            chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and chunk.count(b"\n") == 2  # noqa: PLR2004 (the two at its end)
            and b"\r" not in chunk
            and self._events.between
        ):
            try:
                text = _decode_text(chunk[6:-2]).choices[0].delta.content
            except msgspec.DecodeError:
                return self._feed(chunk)
            self._has_text = True
            return text
        return self._feed(chunk)

    def _feed(self, chunk: bytes) -> str:
        """Take what one read brought, whatever it is."""
        text = ""
        self.thinking = False
        try:
            for event in self._events.feed(chunk):
                if event == b"[DONE]":
                    self.done = True
                    break
                message = _decode(event)
                choice = message.choices[0] if message.choices else _NO_CHOICE
                if choice.delta is not None and choice.delta.content:
                    text += choice.delta.content
                if message.usage is None and message.error is None and choice.finish_reason is None and text:
                    continue  # as it is with nearly all of them
                self._note(message, choice)
                if self.failure is not None:
                    break
        except (LineTooLong, msgspec.DecodeError):
            self.failure = PROTOCOL
        if text:
            self._has_text = True
            self.thinking = False
        self.over = self.done or self.failure is not None
        return text

    def _note(self, message: _Chunk, choice: _Choice) -> None:
        """Take note of what a chunk says beside its text."""
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
        if choice.delta is not None and (choice.delta.reasoning or choice.delta.reasoning_content):
            self.thinking = True
        if message.usage is not None:
            self._usage = message.usage
        if message.error is not None:
            self.failure = ERROR

    def ending(self) -> Ending | tuple[str, str]:
        """Return how the answer ended, or what was wrong with its end, as ``failure`` does."""
        reason = self._finish_reason
        if reason is None:
            return CUT
        if reason == "error":
            return ERROR
        if not self._has_text and reason != "content_filter":
            return EMPTY
        usage = None
        if (counts := self._usage) is not None:
            total = counts.total_tokens or counts.prompt_tokens + counts.completion_tokens
            usage = Usage(counts.prompt_tokens, counts.completion_tokens, total, counts.cost)
        # Reasons beyond OpenAI's three are other servers' words for a natural end.
        return Ending(FINISH_REASONS.get(reason, FinishReason.STOP), usage)


def request_body(prompt: Prompt) -> dict[str, Any]:
    """Return the JSON of a request for a streamed answer."""
    body: dict[str, Any] = {
        "model": prompt.model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in prompt.turns],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if prompt.max_tokens is not None:
        body["max_tokens"] = prompt.max_tokens
    if prompt.temperature is not None:
        body["temperature"] = prompt.temperature
    return body
