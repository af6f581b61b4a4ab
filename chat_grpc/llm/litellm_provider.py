"""Every provider that litellm knows and that has no faster way here: Anthropic, Bedrock, Vertex AI, ...

litellm takes seconds and 200 MB to import, so that happens only when such a
provider is named, on a thread, once the server serves. What it does not do
well is put right here, each by a test:

- It says that an answer stopped well when its upstream just ended. ``_Tap``
  looks at what litellm itself was told.
- Closing its stream leaves some upstreams open (Anthropic's). The HTTP response
  below it is looked up and closed too.
- It waits up to 6000 s. The three limits of every provider hold here.
- Where an upstream counted no tokens it counts them itself, on a thread, and
  reports them as the upstream's. Its stream is left before it does so.
- Its errors and its log quote what upstreams say. Neither is passed on.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import contextmanager, suppress
from types import AsyncGeneratorType
from typing import Any, Self, TypeVar

from chat_grpc.domain import FinishReason, Usage
from chat_grpc.errors import ModelBroke, ModelError, ModelTimeout, ModelUnavailable
from chat_grpc.llm import Ending, Prompt, Sink
from chat_grpc.llm.refusals import refused, seconds
from chat_grpc.llm.watchdog import TimeLimits
from chat_grpc.llm.wire import CUT, EMPTY, ERROR, FINISH_REASONS, PROTOCOL
from chat_grpc.settings import Secret
from chat_grpc.telemetry.context import trace_headers

T = TypeVar("T")

CLOSE_SECONDS = 1.0
DRAIN_SECONDS = 2.0
"""How long an upstream that has given its finish reason may take to report usage and end."""
MAX_DEPTH = 6
"""How far below litellm's stream its HTTP response is looked for; it lies at 2 to 4."""
KEYS = "CHAT_LLM_API_KEY, or the variable that litellm reads for this provider"
SIGNED = ("bedrock", "sagemaker", "vertex_ai", "oci")
"""The clouds whose requests are signed with their headers, or go through an SDK; how their providers' names begin."""
HEADERS_IN_BODY = frozenset({"aiohttp_openai", "azure_ai"})
"""The providers for which litellm (1.106) writes the headers it is given into the body, too."""

_importing = threading.Lock()


def load() -> Any:
    """Import litellm, quiet and without fetching prices over the network; this blocks for seconds.

    Raises:
        ImportError: it is not installed, or a part of it is not.
    """
    with _importing:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        litellm: Any = importlib.import_module("litellm")
        litellm.suppress_debug_info = True
        litellm.turn_off_message_logging = True
        for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
            logger = logging.getLogger(name)
            logger.handlers = [logging.NullHandler()]
            logger.propagate = False
        return litellm


class LiteLLM:
    """One of litellm's providers.

    Args:
        name: litellm's name for it, the first half of its models' full names.
        base_url: where it is found; "" leaves that to litellm.
        api_key: its key; empty leaves that to litellm, which reads ANTHROPIC_API_KEY and the like.
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
        default_model: str,
        models: frozenset[str],
        limits: TimeLimits,
    ) -> None:
        self.name = name
        self.default_model = default_model
        self.models = models | {default_model}
        self._base_url = base_url
        self._api_key = api_key
        self._limits = limits
        self._passes_headers = not name.startswith(SIGNED) and name not in HEADERS_IN_BODY
        self._litellm: Any = None
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Import litellm, on a thread.

        Raises:
            ModelUnavailable: it can't be imported.
        """
        if self._litellm is not None:
            return
        try:
            self._litellm = await asyncio.to_thread(load)
        except ImportError:
            raise ModelUnavailable(
                f"the model provider {self.name} needs litellm, which can't be imported; "
                "pip install 'chat-grpc[litellm]'",
                provider=self.name,
                stage="connect",
                reason="MODEL_NOT_INSTALLED",
            ) from None

    async def ping(self) -> None:
        """Return if litellm can be imported: there is nothing to ask that every such provider answers for free.

        Raises:
            ModelUnavailable: it can't be.
        """
        await self.open()

    async def close(self) -> None:
        """Close the connections that litellm keeps."""
        if self._closing:
            await asyncio.wait(self._closing)
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Ending, Sink | None]:
        """Yield the answer as it arrives; see llm.Provider."""
        await self.open()
        await prompt.may_be_sent()
        waits = _Waits(self._limits)
        with self._told("connect", waits):
            stream = await waits.bounded(self._request(prompt))
        responses: list[Any] = []
        try:
            with self._told("connect", waits):
                await waits.bounded(stream.fetch_stream())
            responses = list(_responses(stream.completion_stream))
            tap = _Tap.into(stream)
            has_text = False
            while True:
                with self._told("stream", waits):
                    chunk = await waits.bounded(anext(stream, None))
                if chunk is None:
                    break
                choice = chunk.choices[0] if chunk.choices else None
                if choice is None:
                    continue
                text = choice.delta.content
                if text or getattr(choice.delta, "reasoning_content", None):
                    waits.begun = True
                if text:
                    has_text = True
                    yield text
                if choice.finish_reason is not None:
                    break
            await tap.drain()
            yield self._ending(tap, stream, has_text=has_text)
        finally:
            closing = asyncio.ensure_future(_close(stream, responses))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            # litellm swallows a cancellation that reaches it here; a task of its own keeps ours from it.
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)

    async def _request(self, prompt: Prompt) -> Any:
        wanted = {
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.temperature,
            "api_base": self._base_url or None,
            "api_key": self._api_key.reveal() or None,
            "extra_headers": (self._passes_headers and trace_headers()) or None,
        }
        return await self._litellm.acompletion(
            model=f"{self.name}/{prompt.model}",
            messages=[{"role": turn.role, "content": turn.content} for turn in prompt.turns],
            stream=True,
            stream_options={"include_usage": True},
            timeout=self._limits.total,
            # Who is asked again, and when, is the chain's to say.
            max_retries=0,
            num_retries=0,
            # A model without a temperature still answers.
            drop_params=True,
            **{name: value for name, value in wanted.items() if value is not None},
        )

    def _ending(self, tap: _Tap, stream: Any, *, has_text: bool) -> Ending:
        reason = tap.finish_reason
        if reason is None and not tap.typed:
            reason = stream.received_finish_reason
        if reason is None:
            raise self._broke(CUT)
        if reason == "error":
            raise self._broke(ERROR)
        if not has_text and reason != "content_filter":
            raise self._broke(EMPTY)
        return Ending(FINISH_REASONS.get(reason, FinishReason.STOP), tap.usage)

    @contextmanager
    def _told(self, stage: str, waits: _Waits) -> Iterator[None]:
        """Turn what a block raises into what callers may be told; a cancellation passes."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (litellm raises whatever its many SDKs do)
            told = self._error(error, stage, waits)
        else:
            return
        raise told

    def _error(self, error: Exception, stage: str, waits: _Waits) -> ModelError:
        if waits.expired:
            return self._timeout(waits.expired)
        causes = list(_causes(error))
        if any(isinstance(cause, self._litellm.Timeout | TimeoutError) for cause in causes):
            return self._timeout("idle" if waits.begun else "first_token")
        return self._broke(_how_it_broke(causes)) if stage == "stream" else self._refusal(error)

    def _refusal(self, error: Exception) -> ModelError:
        status = getattr(error, "status_code", None)
        reason, text = "MODEL_UNAVAILABLE", "could not be asked"
        if isinstance(error, self._litellm.ContextWindowExceededError):
            reason, text = "MODEL_TOO_LONG", "finds the message too long"
        elif isinstance(error, self._litellm.ContentPolicyViolationError):
            reason, text = "MODEL_CONTENT_POLICY", "has a policy that forbids to answer"
        elif isinstance(error, self._litellm.APIConnectionError):
            text = "could not be reached"
        elif isinstance(status, int):
            return refused(self.name, status, retry_after=_retry_after(error), key_setting=KEYS)
        return ModelUnavailable(
            f"the model provider {self.name} {text}", provider=self.name, stage="connect", reason=reason
        )

    def _broke(self, how: tuple[str, str]) -> ModelError:
        reason, what = how
        return ModelBroke(f"the model provider {self.name} {what}", provider=self.name, stage="stream", reason=reason)

    def _timeout(self, limit: str) -> ModelError:
        words = {"first_token": "did not begin to answer", "idle": "stopped answering", "total": "took too long"}
        return ModelTimeout(
            f"the model provider {self.name} {words[limit]} within the time limit", provider=self.name, stage=limit
        )


class _Waits:
    """Keeps each wait for the upstream within the three limits.

    Attributes:
        begun: text, or a model's thoughts, have arrived.
        expired: which limit passed; "" while none has.
    """

    __slots__ = ("_limits", "_loop", "_started", "begun", "expired")

    def __init__(self, limits: TimeLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self.begun = False
        self.expired = ""

    async def bounded(self, work: Awaitable[T]) -> T:
        """Wait for something, but no longer than a limit allows."""
        limit, due = ("first_token", self._started + self._limits.first_token)
        if self.begun:
            limit, due = "idle", self._loop.time() + self._limits.idle
        total = self._started + self._limits.total
        timer = asyncio.timeout_at(min(due, total))
        try:
            async with timer:
                return await work
        finally:
            if timer.expired():
                self.expired = limit if due < total else "total"


class _Tap:
    """Stands between an upstream's chunks and litellm's stream, and remembers what they say of the answer's end.

    Attributes:
        finish_reason: the upstream's own; None while it gave none.
        typed: chunks came in OpenAI's form. Then a generic one that ends the
            answer is litellm's reading of a bare [DONE], and no finish reason.
        usage: what the upstream counted; None if it did not.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._chunks = source.__aiter__()
        self.finish_reason: str | None = None
        self.typed = False
        self.usage: Usage | None = None

    @classmethod
    def into(cls, stream: Any) -> Self:
        """Put a tap into litellm's stream, if its upstream can be read in an event loop."""
        source = stream.completion_stream
        if hasattr(source, "__aiter__"):
            stream.completion_stream = tap = cls(source)
            return tap
        return cls(_nothing())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        chunk = await anext(self._chunks)
        if isinstance(chunk, dict):
            if chunk.get("is_finished") and not self.typed:
                self.finish_reason = chunk.get("finish_reason")
            self._count(chunk.get("usage"))
        elif choices := getattr(chunk, "choices", None):
            self.typed = True
            self.finish_reason = getattr(choices[0], "finish_reason", None) or self.finish_reason
        self._count(getattr(chunk, "usage", None))
        return chunk

    def _count(self, usage: Any) -> None:
        """Take a report of usage. Of several, each field's largest holds: some count on, some report a part each."""
        if usage is None:
            return
        before = self.usage or Usage(0, 0, 0, None)
        sent = max(_number(usage, "prompt_tokens"), before.prompt_tokens)
        written = max(_number(usage, "completion_tokens"), before.completion_tokens)
        self.usage = Usage(sent, written, max(_number(usage, "total_tokens"), sent + written), None)

    async def drain(self) -> None:
        """Read what follows the finish reason, past litellm's stream; what goes wrong there changes nothing."""
        with suppress(Exception):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in self:
                    pass

    async def aclose(self) -> None:
        """Close the upstream's chunks."""
        close = getattr(self._source, "aclose", None) or getattr(self._source, "close", None)
        if close is not None and inspect.isawaitable(closing := close()):
            await closing


def _number(usage: Any, name: str) -> int:
    """Return a field of a report of usage, which is a dict or an object."""
    value = usage.get(name) if isinstance(usage, dict) else getattr(usage, name, None)
    return int(value or 0)


async def _nothing() -> AsyncGenerator[Any, None]:
    return
    yield


async def _close(stream: Any, responses: list[Any]) -> None:
    for response in responses:
        with suppress(Exception):
            await response.aclose()
    with suppress(Exception):
        await stream.aclose()


def _responses(source: Any) -> Iterator[Any]:
    """Yield the HTTP responses that feed litellm's stream.

    Not every one of its iterators can be closed, nor closes what it reads
    from. They are objects of litellm and the openai package, and generators
    over one another; at the bottom stands an httpx.Response.
    """
    httpx: Any = importlib.import_module("httpx")
    seen: set[int] = set()
    queue = deque([(source, 0)])
    while queue:
        thing, depth = queue.popleft()
        if id(thing) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(thing))
        inner: Any = ()
        if isinstance(thing, httpx.Response):
            yield thing
        elif isinstance(thing, AsyncGeneratorType):
            inner = thing.ag_frame.f_locals.values() if thing.ag_frame else ()
        elif type(thing).__module__.partition(".")[0] in ("litellm", "openai"):
            inner = getattr(thing, "__dict__", {}).values()
        queue.extend((item, depth + 1) for item in inner)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and those it came from."""
    queue: deque[BaseException | None] = deque([error])
    seen: set[int] = set()
    while queue:
        cause = queue.popleft()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        original = getattr(cause, "original_exception", None)
        queue += [cause.__cause__, cause.__context__, original if isinstance(original, BaseException) else None]


def _how_it_broke(causes: list[BaseException]) -> tuple[str, str]:
    httpx: Any = importlib.import_module("httpx")
    if any(isinstance(cause, httpx.TransportError | OSError) for cause in causes):
        return CUT[0], "closed the connection in the middle of the answer"
    if any(isinstance(cause, json.JSONDecodeError | UnicodeDecodeError) for cause in causes):
        return PROTOCOL[0], "sent what litellm can't read"
    return ERROR


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    for headers in (getattr(error, "litellm_response_headers", None), getattr(response, "headers", None)):
        if headers and (text := headers.get("retry-after")):
            return seconds(text)
    return None
