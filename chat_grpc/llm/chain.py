"""All providers as one: who is asked first, who is asked next, and when to give one a rest.

Everything here happens before the first piece of text. From then on the caller
reads the provider's own stream, and no layer stands between.

The retrying is our own: what to do after a failure depends on the caller's
deadline, on the breaker, and on whether somebody else could be asked. tenacity
(stamina rests on it) retries one function, so all of that would go into its
hooks, which are longer than the loop below, and importing it takes 20 ms.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from chat_grpc.errors import ModelBroke, ModelError, ModelTimeout, ModelUnavailable
from chat_grpc.llm import Ending, Opened, Prompt, Provider, Sink
from chat_grpc.llm.breaker import OPEN, Attempt, Breaker
from chat_grpc.llm.refusals import ASK_TO_WAIT, BRIEF_FAULTS, LASTING, REQUEST_FAULTS
from chat_grpc.telemetry import logs

log = logs.get(__name__)

BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 2.0
MAX_WAIT_SECONDS = 5.0
"""A provider that asks for a longer wait is not asked again; the next one is."""
MIN_RETRY_AFTER = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """A provider, and the model of it that answers in this place."""

    provider: Provider
    model: str
    full_name: str = field(init=False)
    """provider/model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "full_name", f"{self.provider.name}/{self.model}")


class Chain:
    """Asks one provider after the other until one begins to answer; see llm.Models.

    Args:
        links: who is asked, in this order. Links of one provider share its breaker.
        retries: how often a link is asked again before the next one is.
        breaker_failures: consecutive failures after which a provider is left alone.
        breaker_seconds: how long it is left alone.
    """

    def __init__(self, links: Sequence[Link], *, retries: int, breaker_failures: int, breaker_seconds: float) -> None:
        first = links[0].provider
        self.name = first.name
        self.default_model = links[0].model
        self._retries = retries
        self._providers = tuple({link.provider.name: link.provider for link in links}.values())
        self._breakers = {
            provider.name: Breaker(limit=breaker_failures, seconds=breaker_seconds, clock=time.monotonic)
            for provider in self._providers
        }
        self._routes = _routes(tuple(links))
        self.models = frozenset(self._routes) - {""}

    def full_name(self, model: str) -> str:
        """Return provider/model for one of ``models``, or for "", the default."""
        return self._routes[model][0].full_name

    def states(self) -> dict[str, str]:
        """Return each provider's breaker: closed, open or half_open."""
        return {name: breaker.state for name, breaker in self._breakers.items()}

    async def begin(self, prompt: Prompt) -> Opened:
        """Have an answer begun; see llm.Models.

        ``prompt.model`` is one of ``models``, or "". The error is that of the
        first one asked; its metadata ``tried`` names all who were.
        """
        failures: list[tuple[str, ModelError]] = []
        route = self._routes[prompt.model]
        for link in route:
            for retry in range(self._retries + 1):
                if _is_over(prompt.deadline):
                    raise _sum_up(failures, route[0])
                attempt = self._breakers[link.provider.name].admit()
                if attempt is None:
                    failures.append(("", self._resting(link)))
                    break
                try:
                    first, rest = await _begin(link, prompt, attempt)
                except ModelError as error:
                    failures.append((link.full_name, error))
                    log.warning("a model failed", model=link.full_name, reason=error.reason, retry=retry)
                    pause = _pause(error, retry)
                    if retry == self._retries or pause is None or _is_over(prompt.deadline, pause):
                        break
                    await asyncio.sleep(pause)
                else:
                    fallback = link is not route[0]
                    return Opened(link.full_name, fallback, first, rest, partial(_count, attempt), attempt.succeeded)
        raise _sum_up(failures, route[0])

    def _resting(self, link: Link) -> ModelError:
        name = link.provider.name
        return ModelUnavailable(
            f"the model provider {name} has failed again and again and is left alone for a moment",
            provider=name,
            stage="connect",
            reason="MODEL_CIRCUIT_OPEN",
            retry_after=max(self._breakers[name].wait, MIN_RETRY_AFTER),
        )

    async def open(self) -> None:
        """Get all providers ready, the first one first; one that can't be made ready is only logged."""
        for provider in self._providers:
            try:
                await provider.open()
            except ModelError as error:
                log.warning("a model provider is not ready", provider=provider.name, reason=error.reason)

    async def ping(self) -> None:
        """Return as soon as one provider says that it could be asked; see llm.Models."""
        asking = [asyncio.ensure_future(self._ping(provider)) for provider in self._providers]
        try:
            for next_answer in asyncio.as_completed(asking):
                try:
                    await next_answer
                except ModelError:
                    continue
                return
            await asking[0]
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ping(self, provider: Provider) -> None:
        if self._breakers[provider.name].state == OPEN:
            raise self._resting(Link(provider, ""))
        await provider.ping()

    async def close(self) -> None:
        """Let go of all connections."""
        await asyncio.gather(*(provider.close() for provider in self._providers))


async def _begin(
    link: Link, prompt: Prompt, attempt: Attempt
) -> tuple[str | Ending, AsyncGenerator[str | Ending, Sink | None]]:
    """Return the first piece of a link's answer, and what gives the others; tell the breaker.

    Raises:
        ModelError: there is no first piece. The upstream request has ended.
    """
    stream = link.provider.stream(replace(prompt, model=link.model))
    try:
        first = await anext(stream)
    except ModelError as error:
        _count(attempt, error)
        raise
    except StopAsyncIteration:
        attempt.failed()
        name = link.provider.name
        raise ModelBroke(
            f"the model provider {name} sent no answer", provider=name, stage="stream", reason="MODEL_EMPTY"
        ) from None
    except BaseException:
        attempt.left()
        raise
    attempt.answered()
    return first, stream


def _count(attempt: Attempt, error: ModelError) -> None:
    """Tell the breaker of a failure; a request that a healthy provider refuses is none."""
    if error.reason in REQUEST_FAULTS:
        attempt.answered()
    else:
        attempt.failed()


def _routes(links: tuple[Link, ...]) -> dict[str, tuple[Link, ...]]:
    """Return who is asked, by each name that a request may use for a model."""
    routes: dict[str, tuple[Link, ...]] = {"": links}
    first, *others = links
    for model in first.provider.models:
        named = Link(first.provider, model)
        # Whoever is named under another link too is not asked twice.
        route = (named, *(link for link in others if link.full_name != named.full_name))
        routes[model] = routes[named.full_name] = route if model != first.model else links
    for place, link in enumerate(links):
        routes.setdefault(link.full_name, links[place:])
    return routes


def _is_over(deadline: float | None, pause: float = 0.0) -> bool:
    """Tell whether nothing can be begun any more, after a pause, before the caller's deadline."""
    return deadline is not None and asyncio.get_running_loop().time() + pause >= deadline


def _pause(error: ModelError, retry: int) -> float | None:
    """Return the seconds until the same link is worth asking again; None if the next one should be.

    Exponential backoff with full jitter; what the provider itself asked for goes before.
    """
    if error.reason not in BRIEF_FAULTS:
        return None
    jitter = random.random()  # noqa: S311 (it keeps callers from coming back all at once; it is no secret)
    if error.reason in ASK_TO_WAIT and error.retry_after is not None:
        asked = error.retry_after + BACKOFF_SECONDS * jitter
        return asked if error.retry_after <= MAX_WAIT_SECONDS else None
    return min(BACKOFF_SECONDS * 2.0**retry, MAX_BACKOFF_SECONDS) * jitter


def _sum_up(failures: Sequence[tuple[str, ModelError]], first: Link) -> ModelError:
    """Return the error that tells of all failures: the first one's, with the names of all who were asked.

    ``retry_after`` is the shortest wait after which one of them may answer.
    """
    tried = list(dict.fromkeys(name for name, _ in failures if name))
    errors = [error for name, error in failures if name] or [error for _, error in failures]
    if not errors:
        name = first.provider.name
        return ModelTimeout(
            "the caller's deadline passed before a model could be asked", provider=name, stage="deadline"
        )
    told = errors[0]
    # Of the waits of one provider the last one holds.
    latest = {error.metadata["provider"]: error for _, error in failures}.values()
    waits = [error.retry_after for error in latest if error.retry_after is not None and error.reason not in LASTING]
    told.retry_after = min(waits, default=told.retry_after)
    if tried:
        told.metadata["tried"] = ",".join(tried)
    return told
