"""The bodies of POST /v1/chat/completions in OpenAI's forms, as far as this service speaks them.

A field that is not listed is ignored. One that is listed only to be refused has
a type that takes nothing but what means the same as leaving it out; REFUSED
says why, in words.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from chat_grpc.conversation.rules import MAX_EARLIER, MAX_FILTER_TEXT, MAX_FILTERS, MAX_TEMPERATURE, MAX_TOP_K

EmptyList = Annotated[list[Any], Meta(max_length=0)]
EmptyObject = Annotated[dict[str, Any], Meta(max_length=0)]
FilterText = Annotated[str, Meta(max_length=MAX_FILTER_TEXT)]
FinishReason = Literal["stop", "length", "content_filter"]
ErrorType = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]

REFUSED = {
    "audio": "audio is not written here; leave it out",
    "function_call": "models call no functions here; leave it out, or set it to none",
    "functions": "models call no functions here; leave it out",
    "logit_bias": "tokens can't be made likelier or rarer here; leave it out",
    "logprobs": "probabilities of tokens are not told here; leave it out, or set it to false",
    "modalities": 'answers are text here; leave it out, or set it to ["text"]',
    "n": "one answer is written to a request; leave it out, or set it to 1",
    "response_format": "answers are plain text here; leave it out, or set its type to text",
    "stop": "answers can't be ended at chosen words here; leave it out",
    "tool_choice": "models call no tools here; leave it out, or set it to none or auto",
    "tool_calls": "models call no tools here, so there are no calls to go on from",
    "tools": "models call no tools here; leave it out",
    "top_logprobs": "probabilities of tokens are not told here; leave it out",
    "web_search_options": "the web is not searched here; leave it out",
}
"""What is said of parameters that would change what an answer means, and are not supported."""


class TextPart(Struct, tag_field="type", tag="text"):
    """A part of a message: text."""

    text: str


class RefusalPart(Struct, tag_field="type", tag="refusal"):
    """A part of an earlier answer: a model's refusal, in words."""

    refusal: str


Content = str | list[TextPart]


class SystemMessage(Struct, tag_field="role", tag="system"):
    """What the model is told to be. It is added to what the service itself tells the model."""

    content: Content


class DeveloperMessage(Struct, tag_field="role", tag="developer"):
    """The same as a system message."""

    content: Content


class UserMessage(Struct, tag_field="role", tag="user"):
    """What the user said. The last message of a request is one; passages are looked up for it."""

    content: Content


class AssistantMessage(Struct, tag_field="role", tag="assistant"):
    """What was answered."""

    content: str | list[TextPart | RefusalPart] | None = None
    refusal: str | None = None
    tool_calls: EmptyList | None = None
    function_call: None = None


Said = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage


class ResponseFormat(Struct):
    """The form of the answer."""

    type: Literal["text"]


class StreamOptions(Struct):
    """What a stream holds beside the answer."""

    include_usage: (
        Annotated[bool, Meta(description="whether a chunk with the usage, and no choices, comes before [DONE]")] | None
    ) = False


class Metadata(Struct):
    """What else is said of a request; other keys are ignored."""

    session_id: (
        Annotated[
            str,
            Meta(
                pattern="^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
                description="the conversation to continue; absent begins a new one",
            ),
        ]
        | None
    ) = None


class Retrieval(Struct):
    """How passages are looked up: this service's own options, in the field ``chat_grpc``."""

    retrieval: Annotated[bool, Meta(description="whether passages are looked up")] = True
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K, description="how many, at most; absent means 5")] | None = None
    filters: Annotated[dict[FilterText, FilterText], Meta(max_length=MAX_FILTERS)] | None = None
    skip_cache: Annotated[bool, Meta(description="whether the answer is written anew")] = False


class ChatCompletionRequest(Struct):
    """The body of a request. Parameters of OpenAI's that are not listed are ignored."""

    messages: Annotated[
        list[Said],
        Meta(min_length=1, max_length=MAX_EARLIER, description="the conversation; the last message is the user's"),
    ]
    model: Annotated[
        str, Meta(description="a name from GET /v1/models, provider/model, or default for the first in the list")
    ] = "default"
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, description="more than 8,192 counts as 8,192")] | None = None
    max_tokens: Annotated[int, Meta(ge=1, description="an older name of max_completion_tokens")] | None = None
    temperature: Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)] | None = None
    user: Annotated[str, Meta(description="whose message it is; the history is kept under this name")] | None = None
    safety_identifier: Annotated[str, Meta(description="a newer name of user")] | None = None
    metadata: Metadata | None = None
    chat_grpc: Retrieval | None = None
    # From here on: refused, unless they say what is so anyway.
    n: Literal[1] | None = None
    stop: Annotated[str, Meta(max_length=0)] | Annotated[list[str], Meta(max_length=0)] | None = None
    tools: EmptyList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    logprobs: Annotated[bool, Meta(extra_json_schema={"const": False})] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: EmptyObject | None = None
    web_search_options: None = None


class Passage(Struct):
    """A passage that the answer rests on; ``score`` is 0 to 1."""

    title: str
    score: float
    snippet: str
    tags: tuple[str, ...]


class Extras(Struct, kw_only=True):
    """What OpenAI's forms have no place for, in the field ``chat_grpc``.

    In a stream the first chunk holds what is known when the text begins, the
    last one with a choice what is known when it ends.
    """

    message_id: str | UnsetType = UNSET
    session_id: Annotated[str, Meta(description="metadata.session_id of the next request")] | UnsetType = UNSET
    passages: list[Passage] | UnsetType = UNSET
    model: Annotated[str, Meta(description="provider/model that wrote the answer")] | UnsetType = UNSET
    cached: bool | UnsetType = UNSET
    degraded: Annotated[list[str], Meta(description="the parts that were missing")] | UnsetType = UNSET
    suggested_questions: (
        Annotated[
            list[str],
            Meta(description="what may be asked instead, where a guardrail refused the message or withheld text"),
        ]
        | UnsetType
    ) = UNSET


class Usage(Struct):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(Struct):
    """The answer's message."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(Struct):
    """The one answer."""

    message: Answer
    finish_reason: FinishReason
    index: Literal[0] = 0
    logprobs: None = None


class ChatCompletion(Struct, kw_only=True):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    chat_grpc: Extras


class Delta(Struct):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct):
    """What a chunk adds to the one answer."""

    delta: Delta
    finish_reason: FinishReason | None = None
    index: Literal[0] = 0
    logprobs: None = None


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a stream; ``usage`` is there, and null but in the last one, if the request asks for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: Annotated[list[ChunkChoice], Meta(max_length=1)]
    usage: Usage | UnsetType | None = UNSET
    chat_grpc: Extras | UnsetType = UNSET


class ErrorObject(Struct):
    """What went wrong. ``param`` is the path of the parameter at fault."""

    message: str
    type: ErrorType
    param: str | None
    code: str | None


class ErrorResponse(Struct):
    """The body of an answer with a status from 400 on; in a stream, the last event if the answer failed."""

    error: ErrorObject


def schemas() -> dict[str, Any]:
    """Return the JSON Schemas of these forms by name, referring to each other as parts of an OpenAPI document."""
    roots = (ChatCompletionRequest, ChatCompletion, ChatCompletionChunk, ErrorResponse)
    _, components = msgspec.json.schema_components(roots, ref_template="#/components/schemas/{name}")
    return components
