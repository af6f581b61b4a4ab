"""What a server counts: one method for each thing that happens, and what to read when somebody asks.

Everything is called in the thread of the event loop. Labels come from bounded
sets: gRPC methods and codes, configured providers, the words written in this
program. Users, sessions, models and request ids are never labels.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from chat_grpc import __version__
from chat_grpc.conversation.guardrails import Side
from chat_grpc.conversation.guardrails.table import RULES
from chat_grpc.domain import Status, Usage
from chat_grpc.telemetry.series import Counter, Family, Histogram, Kind
from chat_grpc.telemetry.tokens import GAP_BOUNDS, TokenGaps

CALL_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
FIRST_TOKEN_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PART_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""For parts that answer at once when they are well."""

OTHER = "other"
"""Stands for a provider that is not configured; so that no foreign name becomes a label."""
BREAKER_STATES = ("closed", "open", "half_open")
ENDINGS = ("completed", "failed", "cancelled")
LIMITS = ("user", "address", "rest", "streams_user", "streams_total")
TOKEN_KINDS = ("prompt", "completion")


class Metrics:
    """The counts of one server.

    Args:
        providers: the names of the model providers that may be asked.
    """

    def __init__(self, providers: Iterable[str] = ()) -> None:
        self._providers = frozenset(providers)
        each = [(name,) for name in sorted(self._providers)]
        self._calls = Counter("chat_grpc_requests_total", "gRPC calls that have ended.", ("method", "code"))
        self._call_seconds = Histogram(
            "chat_grpc_request_duration_seconds",
            "Time from a gRPC call's arrival to its end.",
            CALL_BOUNDS,
            ("method",),
        )
        self._messages = Counter(
            "chat_grpc_messages_total",
            "Messages by how they ended.",
            ("status",),
            [(status,) for status in (Status.COMPLETED, Status.PARTIAL, Status.CANCELLED, Status.FAILED)],
        )
        self._first_token = Histogram(
            "chat_grpc_time_to_first_token_seconds",
            "Time from asking for an answer to its first piece of text.",
            FIRST_TOKEN_BOUNDS,
            ("provider",),
            each,
        )
        self._gaps = Histogram(
            "chat_grpc_inter_token_seconds", "Time between two pieces of an answer's text.", GAP_BOUNDS
        )
        self._answers = Counter(
            "chat_grpc_answers_total",
            "Answers that a model wrote, or began or was asked to write, by how that ended.",
            ("outcome", "provider"),
            [(ending, *name) for ending in ENDINGS for name in each],
        )
        self._tokens = Counter(
            "chat_grpc_tokens_total",
            "Tokens sent to (prompt) and written by (completion) models.",
            ("kind", "provider"),
            [(kind, *name) for kind in TOKEN_KINDS for name in each],
        )
        self._cost = Counter(
            "chat_grpc_cost_usd_total",
            "What answers cost in US dollars, where the price is known.",
            ("provider",),
            each,
        )
        self._cache = Counter(
            "chat_grpc_cache_lookups_total", "Answers looked for in the cache.", ("result",), [("hit",), ("miss",)]
        )
        self._followers = Counter(
            "chat_grpc_single_flight_followers_total",
            "Messages that were given the answer being written for an equal one.",
        )
        self._fallbacks = Counter(
            "chat_grpc_fallbacks_total",
            "Answers that another than the provider asked for had to write.",
            ("from_provider",),
            each,
        )
        self._refusals = Counter(
            "chat_grpc_limit_refusals_total",
            "Messages refused because a limit was reached.",
            ("limit",),
            [(limit,) for limit in LIMITS],
        )
        self._guardrails = Counter(
            "chat_grpc_guardrail_refusals_total",
            "Messages refused (input), and answers whose rest was withheld (output), by the rule that did it.",
            ("rule", "side"),
            [(rule, side) for rule, (side, _) in RULES.items()],
        )
        self._outages = Counter("chat_grpc_redis_outages_total", "Times that Redis went out of reach.")
        self._unshared = Counter(
            "chat_grpc_unshared_messages_total",
            "Messages held to this server's own limits, because Redis was out of reach.",
        )
        self._memvid = Histogram(
            "chat_grpc_memvid_request_duration_seconds",
            "Time of the calls to memvid.",
            PART_BOUNDS,
            ("operation", "outcome"),
        )
        self._storage = Histogram(
            "chat_grpc_storage_operation_duration_seconds",
            "Time that keeping and reading messages takes.",
            PART_BOUNDS,
            ("operation", "outcome"),
        )
        self._expired = Counter("chat_grpc_messages_expired_total", "Messages that were deleted for their age.")
        self._counted = (
            self._calls,
            self._call_seconds,
            self._messages,
            self._first_token,
            self._gaps,
            self._answers,
            self._tokens,
            self._cost,
            self._cache,
            self._followers,
            self._fallbacks,
            self._refusals,
            self._guardrails,
            self._outages,
            self._unshared,
            self._memvid,
            self._storage,
            self._expired,
        )
        self._gauges: list[Callable[[], Family]] = [_build_info]

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call of ``method`` (package.Service/Method) ended with a gRPC status, by its name."""
        self._calls.add(method, code)
        self._call_seconds.observe(seconds, method)

    def message_ended(self, status: Status) -> None:
        """A message was settled."""
        self._messages.add(status)

    def first_token(self, provider: str, seconds: float) -> None:
        """The first piece of an answer came, so long after it was asked for."""
        self._first_token.observe(seconds, self._known(provider))

    def merge_gaps(self, gaps: TokenGaps) -> None:
        """An answer ended whose pieces came with these gaps."""
        self._gaps.merge(gaps.counts(), gaps.sum)

    def answer_ended(self, outcome: str, provider: str, usage: Usage | None, cost: float | None = None) -> None:
        """A model will write no more of an answer.

        Call it once for every answer that a model was asked for, however it
        ended; not for one that the cache or another's flight gave.

        Args:
            outcome: completed, failed or cancelled.
            provider: who wrote it; where nobody could, who was asked first.
            usage: what it took; None if nothing was sent.
            cost: in US dollars; None takes ``usage.cost_usd``.
        """
        known = self._known(provider)
        self._answers.add(outcome, known)
        if usage is None:
            return
        self._tokens.add("prompt", known, by=usage.prompt_tokens)
        self._tokens.add("completion", known, by=usage.completion_tokens)
        cost = usage.cost_usd if cost is None else cost
        if cost is not None:
            self._cost.add(known, by=cost)

    def fallback(self, from_provider: str) -> None:
        """Another than the provider asked for began to answer."""
        self._fallbacks.add(self._known(from_provider))

    def cache(self, *, hit: bool) -> None:
        """An answer was looked for in the cache."""
        self._cache.add("hit" if hit else "miss")

    def followed(self) -> None:
        """A message follows the answer that is being written for an equal one."""
        self._followers.add()

    def refused(self, limit: str) -> None:
        """A message was refused, by the name of the limit that was reached."""
        self._refusals.add(limit)

    def guardrail(self, rule: str, side: Side) -> None:
        """A guardrail refused a message, or withheld the rest of an answer."""
        self._guardrails.add(rule, side)

    def redis_lost(self) -> None:
        """Redis went out of reach."""
        self._outages.add()

    def unshared(self) -> None:
        """A message was held to this server's own limits, because Redis was out of reach."""
        self._unshared.add()

    def memvid(self, operation: str, seconds: float, outcome: str) -> None:
        """A call to memvid ended: ok, timeout, unavailable or cancelled."""
        self._memvid.observe(seconds, operation, outcome)

    def storage(self, operation: str, seconds: float, outcome: str) -> None:
        """The storage did something, or could not: ok, failed or cancelled."""
        self._storage.observe(seconds, operation, outcome)

    def expired(self, count: int) -> None:
        """Messages were deleted for their age."""
        self._expired.add(by=count)

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:  # noqa: A002 (Prometheus's word)
        """Have a value read whenever the metrics are."""
        self._gauges.append(lambda: Family(name, Kind.GAUGE, help, (), (((), read()),)))

    def breakers(self, read: Callable[[], Mapping[str, str]]) -> None:
        """Have the state of each provider's circuit breaker read whenever the metrics are."""
        self._gauges.append(lambda: _breaker_states(read()))

    def families(self) -> list[Family]:
        """Return all values as they are now."""
        return [*(counted.family() for counted in self._counted), *(gauge() for gauge in self._gauges)]

    def _known(self, provider: str) -> str:
        return provider if provider in self._providers else OTHER


def _breaker_states(states: Mapping[str, str]) -> Family:
    series: list[tuple[tuple[str, ...], Any]] = [
        ((provider, state), float(state == now)) for provider, now in states.items() for state in BREAKER_STATES
    ]
    return Family(
        "chat_grpc_breaker_state",
        Kind.GAUGE,
        "1 for the state that a provider's circuit breaker is in, 0 for the others.",
        ("provider", "state"),
        tuple(series),
    )


def _build_info() -> Family:
    series = (((__version__, platform.python_version()), 1.0),)
    return Family("chat_grpc_build_info", Kind.GAUGE, "Always 1; what is running.", ("version", "python"), series)
