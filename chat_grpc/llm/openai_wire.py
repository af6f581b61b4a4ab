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

from chat_grpc.errors import ModelBroke, ModelError, ModelTimeout, ModelUnavailable
from chat_grpc.llm import Ending, Prompt
from chat_grpc.llm.refusals import refused, seconds
from chat_grpc.llm.watchdog import TimeLimits, Watchdog
from chat_grpc.llm.wire import WireAnswer, request_body
from chat_grpc.settings import Secret

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 5.0
POOL_SIZE = 0
"""Open upstream connections have no bound of their own: admission bounds the answers that are written at once."""
PING_SECONDS = 1.5
LINGER_SECONDS = 0.1

HTTP_OK = 200
CLOSED = ("MODEL_CUT", "closed the connection in the middle of the answer")


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
                response = await self._request("POST", "/chat/completions", json=request_body(prompt))
        except TimeoutError:
            raise self._timeout("first_token") from None
        try:
            answer = WireAnswer()
            with Watchdog(self._limits, response.close, started=started) as watchdog:
                while not answer.done:
                    watchdog.waiting()
                    try:
                        chunk = await response.content.readany()
                    except _client_error():
                        chunk = b""
                        answer.failure = CLOSED
                    if watchdog.expired:
                        raise self._timeout(watchdog.expired)
                    text = answer.feed(chunk)
                    if answer.alive:
                        answer.alive = False
                        watchdog.arrived()
                    if text:
                        yield text
                    if answer.failure is not None:
                        raise self._broke(*answer.failure)
                    if not chunk:
                        break
            ending = answer.ending()
            if not isinstance(ending, Ending):
                raise self._broke(*ending)
            yield ending
            await _read_to_end(response)
        finally:
            _let_go(response)

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
        if response.status == HTTP_OK:
            return response
        wait = seconds(response.headers.get("retry-after", ""))
        response.close()
        raise refused(self.name, response.status, retry_after=wait, key_setting=self._key_setting)

    def _unreachable(self, stage: str) -> ModelError:
        return ModelUnavailable(f"the model provider {self.name} could not be reached", provider=self.name, stage=stage)

    def _broke(self, reason: str, what: str) -> ModelError:
        return ModelBroke(f"the model provider {self.name} {what}", provider=self.name, stage="stream", reason=reason)

    def _timeout(self, limit: str) -> ModelError:
        words = {"first_token": "did not begin to answer", "idle": "stopped answering", "total": "took too long"}
        return ModelTimeout(
            f"the model provider {self.name} {words[limit]} within the time limit", provider=self.name, stage=limit
        )


def _let_go(response: aiohttp.ClientResponse) -> None:
    """Give the connection back to the pool, or close it: that tells an upstream which still writes to stop."""
    if response.content.at_eof():
        response.release()
    else:
        response.close()


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
