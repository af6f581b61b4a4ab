"""Reading the body of POST /v1/chat/completions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

import msgspec

from chat_grpc.conversation.rules import MAX_TOKENS, is_user_id
from chat_grpc.domain import ChatOptions, Exchange
from chat_grpc.errors import InvalidRequest, Violation
from gateway.openai_shapes import (
    REFUSED,
    AssistantMessage,
    ChatCompletionRequest,
    Content,
    RefusalPart,
    Retrieval,
    Said,
    TextPart,
    UserMessage,
)

_DECODER = msgspec.json.Decoder(ChatCompletionRequest)

# msgspec says where a fault is, and which types met. No value of the caller's is
# taken over from its texts: those are made here.
_PLACE = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING = re.compile(r"^Object missing required field `(\w+)`")
_TYPES = re.compile(r"^Expected `([a-z |]+)`, got `([a-z]+)`")
_BOUND = re.compile(r"^Expected `[a-z |]+` ((?:of length )?[<>]=? [0-9.]+)")
_NO_OBJECT = Violation("", "the body must be one JSON object in UTF-8")
_PARTS = "must be text, or parts of the type text"
_ROLES = "must be one of system, developer, user and assistant"


def decode(body: bytes) -> ChatCompletionRequest:
    """Return the request that a body holds.

    Raises:
        InvalidRequest: it is not JSON, breaks a rule, or asks for what is not supported.
    """
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest([_violation(str(error))]) from None
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested by the thousand
        raise InvalidRequest([_NO_OBJECT]) from None
    if request.logprobs:
        raise InvalidRequest([Violation("logprobs", REFUSED["logprobs"])])
    if not isinstance(request.messages[-1], UserMessage):
        last = len(request.messages) - 1
        raise InvalidRequest([Violation(f"messages[{last}].role", "must be user: the last message is answered")])
    return request


def question_of(request: ChatCompletionRequest) -> str:
    """Return the message to answer: the last one."""
    return _text(request.messages[-1])


def system_of(request: ChatCompletionRequest) -> str:
    """Return what the caller tells the model to be: all system and developer messages, wherever they stand."""
    texts = (_text(said) for said in request.messages if not isinstance(said, UserMessage | AssistantMessage))
    return "\n\n".join(text for text in texts if text.strip())


def history_of(request: ChatCompletionRequest) -> tuple[Exchange, ...] | None:
    """Return what was said before, None if that is for the session to know.

    A request that names a session and holds nothing but its message continues
    the session; any other knows by itself what was said.
    """
    history = tuple(_exchanges(request.messages[:-1]))
    if not history and session_of(request):
        return None
    return history


def session_of(request: ChatCompletionRequest) -> str:
    """Return the session that is named, "" for a new one."""
    return (request.metadata and request.metadata.session_id) or ""


def user_of(request: ChatCompletionRequest) -> str:
    """Return the user that is named, "" for none.

    Programs put all kinds of things there; what can't be a user's id names nobody.
    """
    return next((name for name in (request.user, request.safety_identifier) if name and is_user_id(name)), "")


def options_of(request: ChatCompletionRequest, model: str) -> ChatOptions:
    """Return how the message is to be answered, by a model that may be named."""
    own = request.chat_grpc or Retrieval()
    max_tokens = request.max_completion_tokens or request.max_tokens
    return ChatOptions(
        # Programs send what OpenAI's models can do; an answer is cut where ours can't.
        max_tokens=None if max_tokens is None else min(max_tokens, MAX_TOKENS),
        temperature=request.temperature,
        model=model,
        retrieval=own.retrieval,
        top_k=own.top_k,
        filters=own.filters or {},
        skip_cache=own.skip_cache,
    )


def _exchanges(messages: Iterable[Said]) -> Iterator[Exchange]:
    """Yield what was said in turn; what one side said in several messages, one after the other, is one text."""
    spoken = (said for said in messages if isinstance(said, UserMessage | AssistantMessage))
    question = ""
    for kind, group in groupby(spoken, type):
        text = "\n\n".join(filter(None, map(_text, group)))
        if kind is UserMessage:
            question = text
        elif question or text:
            yield Exchange(question, text)
            question = ""
    if question:
        yield Exchange(question, "")


def _text(said: Said) -> str:
    content: Content | list[TextPart | RefusalPart] | None = said.content
    if content is None:
        return (said.refusal if isinstance(said, AssistantMessage) else None) or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _violation(text: str) -> Violation:
    """Say what msgspec found, in this service's words."""
    found = _PLACE.search(text)
    place = found[1] if found else ""
    if missing := _MISSING.match(text):
        return Violation(f"{place}.{missing[1]}".removeprefix("."), "is required")
    return Violation(place, _rule(text, place)) if place else _NO_OBJECT


def _rule(text: str, place: str) -> str:
    names = re.findall(r"[a-z_]+", place)
    if refused := next((REFUSED[name] for name in names if name in REFUSED), None):
        return refused
    if names[-1:] == ["role"]:
        return _ROLES
    if "content" in names:
        return _PARTS
    if types := _TYPES.match(text):
        return f"must be {types[1].replace(' | ', ' or ')}, not {types[2]}"
    if bound := _BOUND.match(text):
        return f"must be {bound[1]}"
    return "has a value that is not allowed here"
