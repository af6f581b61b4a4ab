"""Providers that speak the OpenAI wire format: OpenAI, OpenRouter, Gemini, vLLM, llama.cpp, Ollama.

This is the token path: a pooled aiohttp session, an incremental decoder, and
one piece of text for all that one read of the socket brought.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import msgspec

from chat_grpc.domain import FinishReason, Usage
from chat_grpc.errors import ModelBroke, ModelError, ModelTimeout, ModelUnavailable
from chat_grpc.llm import Ending, Prompt
from chat_grpc.llm.sse import LineTooLong, SSEDecoder
from chat_grpc.llm.watchdog import TimeLimits, Watchdog
from chat_grpc.settings import Secret

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 5.0
POOL_SIZE = 1000
"""Open upstream connections; also the most answers that are written at once."""
PING_SECONDS = 1.5
LINGER_SECONDS = 0.1

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost: float | None = None  # OpenRouter's, in US dollars


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class OpenAIWire:
    """A provider at one base URL.

    Args:
        name: the first half of its models' full names.
        base_url: where ``/chat/completions`` is found, such as https://host/v1.
        api_key: sent as a bearer token; empty sends none.
        key_setting: the setting that a person changes when the key is refused.
        default_model: the model that answers when a request names none.
        models: further models that a request may name.
        limits: how long to wait.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str,
        api_key: Secret,
        key_setting: str,
        default_model: str,
        models: frozenset[str],
        limits: TimeLimits,
    ) -> None:
        self.name = name
        self.default_model = default_model
        self.models = models | {default_model}
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._key_setting = key_setting
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Get ready for the first answer, off the way to the first SERVING.

        Importing aiohttp takes 0.35 s; it happens on a thread, so that the
        server answers health checks meanwhile.
        """
        async with self._opening:
            if self._session is not None:
                return
            aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
            headers = {"accept": "text/event-stream", "user-agent": "chat-grpc"}
            if self._api_key:
                headers["authorization"] = f"Bearer {self._api_key.reveal()}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=POOL_SIZE, keepalive_timeout=60, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                headers=headers,
                auto_decompress=True,
                json_serialize=lambda body: msgspec.json.encode(body).decode(),
            )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def ping(self) -> None:
        """Ask for the list of models, which every such server has.

        Raises:
            ModelUnavailable: it did not answer.
        """
        try:
            async with asyncio.timeout(PING_SECONDS):
                async with await self._request("GET", "/models") as response:
                    await response.read()
        except TimeoutError:
            raise self._unreachable("ping") from None

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Ending, None]:
        """Yield the answer as it arrives; see llm.Provider."""
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._limits.first_token):
                response = await self._request("POST", "/chat/completions", json=_body(prompt))
        except TimeoutError:
            raise self._timeout("first_token") from None
        try:
            answer = _Answer()
            with Watchdog(self._limits, response.close, started=started) as watchdog:
                read = response.content.readany
                while True:
                    watchdog.waiting()
                    try:
                        chunk = await read()
                    except _client_error() as error:
                        if watchdog.expired:
                            raise self._timeout(watchdog.expired) from None
                        raise self._broke("closed the connection in the middle of the answer", "MODEL_CUT") from error
                    if not chunk:
                        if watchdog.expired:
                            raise self._timeout(watchdog.expired)
                        break
                    text = self._take(answer, chunk)
                    if answer.alive:
                        answer.alive = False
                        watchdog.arrived()
                    if text:
                        yield text
                    if answer.failure is not None:
                        raise answer.failure
                    if answer.done:
                        break
            yield self._ending(answer)
            await _read_to_end(response)
        finally:
            # Before the end of the body this closes the connection, which is
            # what tells the upstream to stop writing; after it, the connection
            # goes back to the pool.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    def _take(self, answer: _Answer, chunk: bytes) -> str:
        """Return the text that a read brought, and note in ``answer`` what else it said."""
        text = ""
        try:
            for event in answer.decoder.feed(chunk):
                if event == b"[DONE]":
                    answer.done = True
                    break
                message = _decode(event)
                if message.error is not None:
                    answer.failure = self._broke("reported an error in the middle of the answer", "MODEL_ERROR")
                    break
                if message.usage is not None:
                    answer.usage = message.usage
                if message.choices:
                    choice = message.choices[0]
                    if choice.finish_reason is not None:
                        answer.finish_reason = choice.finish_reason
                    if (delta := choice.delta) is not None:
                        if delta.content:
                            text += delta.content
                        elif delta.reasoning or delta.reasoning_content:
                            answer.alive = True
        except (LineTooLong, msgspec.DecodeError):
            # Not raised here: the text that came before it is the reader's.
            answer.failure = self._broke("sent what is not the OpenAI wire format", "MODEL_PROTOCOL")
        if text:
            answer.alive = answer.has_text = True
        return text

    def _ending(self, answer: _Answer) -> Ending:
        reason = answer.finish_reason
        if reason is None:
            raise self._broke("ended the answer without a finish reason", "MODEL_CUT")
        if reason == "error":
            raise self._broke("reported an error in the middle of the answer", "MODEL_ERROR")
        if not answer.has_text and reason != "content_filter":
            raise self._broke("sent an empty answer", "MODEL_EMPTY")
        usage = None
        if (counts := answer.usage) is not None:
            total = counts.total_tokens or counts.prompt_tokens + counts.completion_tokens
            usage = Usage(counts.prompt_tokens, counts.completion_tokens, total, counts.cost)
        # Reasons beyond OpenAI's three are other servers' words for a natural end.
        return Ending(FINISH_REASONS.get(reason, FinishReason.STOP), usage)

    async def _request(self, method: str, path: str, **kwargs: Any) -> aiohttp.ClientResponse:
        """Send a request and return its response if it is a success.

        Raises:
            ModelUnavailable: it could not be sent, or was refused.
        """
        if self._session is None:
            await self.open()
        assert self._session is not None  # noqa: S101 (open() has set it; this tells mypy)
        try:
            response = await self._session.request(method, self._base_url + path, allow_redirects=False, **kwargs)
        except _client_error():
            raise self._unreachable("connect") from None
        if response.status == 200:
            return response
        retry_after = _seconds(response.headers.get("retry-after", ""))
        response.close()
        raise self._refused(response.status, retry_after)

    def _refused(self, status: int, retry_after: float | None) -> ModelUnavailable:
        reason, text = {
            401: ("MODEL_AUTH", f"refused the key; check {self._key_setting}"),
            403: ("MODEL_AUTH", f"refused the key; check {self._key_setting}"),
            402: ("MODEL_CREDIT", "wants the account to be paid up"),
            404: ("MODEL_UNKNOWN", "does not know the model or the path; check CHAT_LLM_MODEL and CHAT_LLM_BASE_URL"),
            429: ("MODEL_RATE_LIMITED", "has had too many requests"),
        }.get(status, ("MODEL_UNAVAILABLE", f"answered with HTTP status {status}"))
        return ModelUnavailable(
            f"the model provider {self.name} {text}",
            provider=self.name,
            stage="connect",
            reason=reason,
            retry_after=retry_after,
        )

    def _unreachable(self, stage: str) -> ModelError:
        return ModelUnavailable(
            f"the model provider {self.name} could not be reached", provider=self.name, stage=stage
        )

    def _broke(self, what: str, reason: str) -> ModelError:
        return ModelBroke(f"the model provider {self.name} {what}", provider=self.name, stage="stream", reason=reason)

    def _timeout(self, limit: str) -> ModelError:
        words = {"first_token": "did not begin to answer", "idle": "stopped answering", "total": "took too long"}
        return ModelTimeout(
            f"the model provider {self.name} {words[limit]} within the time limit", provider=self.name, stage=limit
        )


class _Answer:
    """What has been learnt of an answer while it is read."""

    __slots__ = ("alive", "decoder", "done", "failure", "finish_reason", "has_text", "usage")

    def __init__(self) -> None:
        self.decoder = SSEDecoder()
        self.alive = False
        self.has_text = False
        self.done = False
        self.failure: ModelError | None = None
        self.finish_reason: str | None = None
        self.usage: _Usage | None = None


def _body(prompt: Prompt) -> dict[str, Any]:
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


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """Read what follows [DONE], so that the connection can be used again; don't wait long for it."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while not response.content.at_eof():
                await response.content.readany()
    except _client_error():  # TimeoutError is an OSError
        return


def _client_error() -> tuple[type[Exception], ...]:
    """Return what aiohttp raises for a broken connection; it is imported by now."""
    aiohttp = importlib.import_module("aiohttp")
    return (aiohttp.ClientError, OSError, asyncio.IncompleteReadError)


def _seconds(retry_after: str) -> float | None:
    """Read a Retry-After header; only its form in seconds is in use (RFC 9110, 10.2.3)."""
    try:
        return min(max(float(retry_after), 0.0), 3600.0)
    except ValueError:
        return None
