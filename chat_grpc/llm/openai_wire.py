"""Providers that speak the OpenAI wire format: OpenAI, OpenRouter, Gemini, vLLM, llama.cpp, Ollama.

This is the token path: pooled connections whose bytes go straight to an
incremental decoder, and one piece of text for all that one read of the socket
brought.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from msgspec.json import encode as _encode

from chat_grpc.errors import ModelBroke, ModelError, ModelTimeout, ModelUnavailable
from chat_grpc.llm import Ending, Prompt, Sink
from chat_grpc.llm.http1 import Connection, HTTPError, Origin, Response
from chat_grpc.llm.refusals import refused, seconds
from chat_grpc.llm.watchdog import TimeLimits, Watchdog
from chat_grpc.llm.wire import WireAnswer, request_body
from chat_grpc.settings import Secret
from chat_grpc.telemetry.context import trace_headers

CONNECT_SECONDS = 5.0
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
        self._key_setting = key_setting
        self._limits = limits
        headers = {"accept": "text/event-stream", "content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key.reveal()}"
        self._origin = Origin(base_url, headers, connect_seconds=min(CONNECT_SECONDS, limits.first_token))

    async def open(self) -> None:
        """Get ready for the first answer."""
        await self._origin.open()

    async def close(self) -> None:
        """Close the connections."""
        await self._origin.close()

    async def ping(self) -> None:
        """Ask for the list of models, which every such server has.

        Raises:
            ModelUnavailable: it did not answer.
        """
        try:
            async with asyncio.timeout(PING_SECONDS):
                await _read_to_end(await self._response(await self._send("GET", "/models")))
        except (TimeoutError, HTTPError):
            raise self._unreachable("ping") from None

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Ending, Sink | None]:
        """Yield the answer as it arrives; see llm.Provider."""
        started = time.monotonic()
        body = _encode(request_body(prompt))
        asked = await self._send("POST", "/chat/completions", body, prompt.may_be_sent)
        answer = WireAnswer()  # here, while the provider is at work
        with Watchdog(self._limits, asked.close, started=started) as watchdog:
            response = await self._begun(asked, watchdog)
            try:
                take, feed = response.take, answer.feed
                sink: Sink | None = None
                while not answer.done:
                    chunk = take()
                    if not chunk:
                        if response.ended:
                            break
                        watchdog.waiting()
                        if sink is None:
                            await response.more()
                            continue
                        pouring = _Pouring(answer, watchdog, sink)
                        await response.push(pouring.take)
                        await pouring.end()
                    else:
                        text = feed(chunk)
                        if text or answer.thinking:
                            watchdog.arrived()
                        if text and sink is None:
                            sink = yield text
                        elif text and sink is not None and (taking := sink(text)) is not None:
                            await taking
                    if answer.failure is not None:
                        raise self._broke(*answer.failure)
                yield self._ending(answer, response, watchdog.expired)
                await _linger(response)
            finally:
                response.release()

    async def _begun(self, asked: Connection, watchdog: Watchdog) -> Response:
        """Return the response to what was sent, if it comes in time and is a success.

        Raises:
            ModelTimeout: it did not come in time.
            ModelUnavailable: there is none, or the request was refused.
        """
        try:
            return await self._response(asked)
        except ModelUnavailable:
            if watchdog.expired:  # it is what closed the connection
                raise self._timeout(watchdog.expired) from None
            raise

    def _ending(self, answer: WireAnswer, response: Response, expired: str) -> Ending:
        """Return how the answer ended; raise what was wrong with its end."""
        if expired:  # it is what closed the connection
            raise self._timeout(expired)
        if response.broken and not answer.done:
            raise self._broke(*CLOSED)
        ending = answer.ending()
        if not isinstance(ending, Ending):
            raise self._broke(*ending)
        return ending

    async def _send(
        self, method: str, path: str, body: bytes = b"", ready: Callable[[], Awaitable[None]] | None = None
    ) -> Connection:
        """Send a request.

        Raises:
            ModelUnavailable: it could not be sent.
        """
        try:
            return await self._origin.send(method, path, body=body, headers=trace_headers(), ready=ready)
        except HTTPError:
            raise self._unreachable("connect") from None

    async def _response(self, asked: Connection) -> Response:
        """Return the response to what was sent, if it is a success.

        Raises:
            ModelUnavailable: there is none, or the request was refused.
        """
        try:
            response = await asked.response()
        except HTTPError:
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


class _Pouring:
    """Gives a sink the text that arrives, where it arrives, for as long as it takes it at once."""

    __slots__ = ("_answer", "_fault", "_sink", "_taking", "_watchdog")

    def __init__(self, answer: WireAnswer, watchdog: Watchdog, sink: Sink) -> None:
        self._answer = answer
        self._watchdog = watchdog
        self._sink = sink
        self._taking: Awaitable[None] | None = None
        self._fault: BaseException | None = None

    def take(self, chunk: bytes) -> bool:
        """Take what has arrived; return whether more can be taken so."""
        answer = self._answer
        text = answer.feed(chunk)
        if text:
            self._watchdog.passed()
            try:
                taking = self._sink(text)
            except BaseException as error:  # noqa: BLE001 (whatever it is, it is for whoever reads the answer)
                self._fault = error
                return False
            if taking is not None:
                self._taking = taking
                self._watchdog.arrived()
                return False
        elif answer.thinking:
            self._watchdog.passed()
        return not answer.over

    async def end(self) -> None:
        """Wait until the sink has taken what it was given last; raise what it raised."""
        if self._fault is not None:
            raise self._fault
        if self._taking is not None:
            await self._taking


async def _linger(response: Response) -> None:
    """Read what follows [DONE], so that the connection can be used again; don't wait long for it."""
    if response.ended:
        return
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            await _read_to_end(response)
    except (TimeoutError, HTTPError):
        return


async def _read_to_end(response: Response) -> None:
    """Read what is left of a body, and give its connection back."""
    try:
        while await response.read():
            pass
    finally:
        response.release()
