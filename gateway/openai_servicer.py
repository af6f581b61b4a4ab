"""OpenAI's routes: convert in, call the conversation, convert out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from google.api.httpbody_pb2 import HttpBody

from chat_grpc._gen.gateway.v1 import openai_pb2, openai_pb2_grpc
from chat_grpc.domain import ChatRequest
from chat_grpc.errors import NotFound
from chat_grpc.llm import Models
from chat_grpc.rpc.caller import caller_of
from chat_grpc.rpc.interceptor import Context
from chat_grpc.settings import Networks
from chat_grpc.telemetry.context import named_by_caller, request_id
from gateway import openai_errors, openai_request
from gateway.openai_answers import Chunks, as_object
from gateway.openai_stream import EventStream

if TYPE_CHECKING:
    from chat_grpc.conversation.pipeline import Conversation
    from gateway.openai_shapes import ChatCompletionRequest

ALIASES = ("default", "chat-grpc")
"""Names of the first choice's model, for programs that must be told some name."""
IDEMPOTENCY_KEY = "idempotency-key"
MAX_QUOTED = 100


class OpenAIServicer(openai_pb2_grpc.OpenAIServiceServicer):
    """Answers gateway.v1.OpenAIService.

    Args:
        conversation: what answers messages.
        models: who writes the answers.
        trusted: the proxies that are believed when they say whose call they pass on.
        keep_alive: seconds of silence in a stream of events after which a comment is sent.
    """

    def __init__(
        self, conversation: Conversation, models: Models, trusted: Networks, *, keep_alive: float = 15.0
    ) -> None:
        self._conversation = conversation
        self._models = models
        self._trusted = trusted
        self._keep_alive = keep_alive
        self._since = int(time.time())

    async def CreateChatCompletion(self, request: HttpBody, context: Context) -> AsyncGenerator[HttpBody, None]:
        """Answer the last message of a conversation, as events or (unless stream is true) as one JSON object.

        Raises:
            ChatError: what the conversation raised; before it InvalidRequest for
                a body that breaks a rule, and NotFound for a model that is not
                offered.
        """
        asked = openai_request.decode(request.data)
        model = self._model_of(asked.model)
        message = self._message(asked, model, context)
        created = int(time.time())
        if asked.stream:
            include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            chunks = Chunks(created, model, include_usage=include_usage)
            await EventStream(context, chunks, self._keep_alive).write(partial(self._conversation.chat, message))
            return
        async with aclosing(self._conversation.chat(message)) as events:
            yield HttpBody(content_type="application/json", data=await as_object(events, created, model))

    async def ListModels(
        self, request: openai_pb2.ListModelsRequest, context: Context
    ) -> openai_pb2.ListModelsResponse:
        """List the models that requests may name, each once, the default first."""
        shortest: dict[str, str] = {}
        for name in sorted(self._models.models, key=lambda name: (name != self._models.default_model, len(name), name)):
            shortest.setdefault(self._models.full_name(name), name)
        return openai_pb2.ListModelsResponse(object="list", data=[self._model(name) for name in shortest.values()])

    async def GetModel(self, request: openai_pb2.GetModelRequest, context: Context) -> openai_pb2.Model:
        """Tell of one model.

        Raises:
            NotFound: requests may not name it.
        """
        return self._model(self._model_of(request.model))

    def _model(self, name: str) -> openai_pb2.Model:
        owner = self._models.full_name(name).partition("/")[0]
        return openai_pb2.Model(id=name, object="model", created=self._since, owned_by=owner)

    def _model_of(self, name: str) -> str:
        """Return the model that a request names."""
        if name in self._models.models:
            return name
        if name in ALIASES:
            return self._models.default_model
        raise NotFound(
            f"the model '{name[:MAX_QUOTED]}' is not offered here; GET /v1/models lists those that are, "
            "and 'default' is the first of them",
            reason=openai_errors.MODEL_NOT_FOUND,
        )

    def _message(self, asked: ChatCompletionRequest, model: str, context: Context) -> ChatRequest:
        metadata = dict(context.invocation_metadata() or ())
        key = str(metadata.get(IDEMPOTENCY_KEY, ""))
        caller = caller_of(context, self._trusted)
        return ChatRequest(
            message=openai_request.question_of(asked),
            user_id=openai_request.user_of(asked),
            session_id=openai_request.session_of(asked),
            system=openai_request.system_of(asked),
            history=openai_request.history_of(asked),
            request_id=key or request_id(),
            idempotent=bool(key) or named_by_caller(),
            address=caller.address,
            deadline=caller.deadline,
            options=openai_request.options_of(asked, model),
        )
