"""The composition root: builds every part from Settings, and owns start and drain."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from chat_grpc import __version__
from chat_grpc._gen.chat.v1 import chat_pb2_grpc, history_pb2_grpc
from chat_grpc._gen.chat.v1 import health_pb2_grpc as chat_health_pb2_grpc
from chat_grpc._gen.gateway.v1 import docs_pb2_grpc, gateway_pb2_grpc, metrics_pb2_grpc, openai_pb2_grpc, web_pb2_grpc
from chat_grpc.auth import authenticator, exposure
from chat_grpc.cache.memory import MemoryCache
from chat_grpc.conversation.admission import Admission
from chat_grpc.conversation.flight import TENANT
from chat_grpc.conversation.guardrails.table import chosen as chosen_rules
from chat_grpc.conversation.health import HealthReporter
from chat_grpc.conversation.history import History
from chat_grpc.conversation.limits import MemoryTokenBuckets, Rate
from chat_grpc.conversation.page_tokens import PAGE_TOKENS, PageTokens
from chat_grpc.conversation.pipeline import Conversation
from chat_grpc.conversation.retention import Retention
from chat_grpc.conversation.sessions import Sessions
from chat_grpc.conversation.system_prompt import SystemPrompt
from chat_grpc.errors import ChatError, Unavailable
from chat_grpc.llm import Models
from chat_grpc.llm.catalog import Catalog
from chat_grpc.llm.contexts import Contexts
from chat_grpc.llm.factory import choose
from chat_grpc.llm.lineup import lineup
from chat_grpc.llm.prices import Prices
from chat_grpc.llm.tokens import TokenCounter
from chat_grpc.retrieval.memvid import MemvidRetriever
from chat_grpc.rpc.auth import AuthInterceptor
from chat_grpc.rpc.channelz import add_channelz
from chat_grpc.rpc.generic import GenericServices
from chat_grpc.rpc.interceptor import ErrorInterceptor
from chat_grpc.rpc.lifecycle import InFlight, serve_until_signalled
from chat_grpc.rpc.observer import ObservingInterceptor
from chat_grpc.rpc.reflection import add_reflection
from chat_grpc.rpc.servicers import ChatServicer, HealthServicer, HistoryServicer
from chat_grpc.rpc.tls import ServerTLS
from chat_grpc.settings import Settings, secrets
from chat_grpc.shared import SharedState
from chat_grpc.storage.opening import open_storage
from chat_grpc.telemetry import logs
from chat_grpc.telemetry.measured import MeasuredCache, MeasuredRetriever, MeasuredStorage, TracedModels
from chat_grpc.telemetry.metrics import Metrics
from chat_grpc.telemetry.traces import Tracer, open_tracer
from gateway.docs import DocsServicer
from gateway.errors import rest_body
from gateway.metrics import MetricsServicer
from gateway.openai_errors import openai_body
from gateway.openai_servicer import OpenAIServicer
from gateway.servicer import GatewayServicer
from gateway.web import WebServicer

if TYPE_CHECKING:
    from chat_grpc.conversation.guardrails.guard import Guardrails
    from chat_grpc.workers import Place

log = logs.get(__name__)

SERVICES = (
    "chat.v1.ChatService",
    "chat.v1.HistoryService",
    "chat.v1.HealthService",
    "gateway.v1.GatewayService",
    "gateway.v1.MetricsService",
    "gateway.v1.WebService",
    "gateway.v1.OpenAIService",
    "gateway.v1.DocsService",
)
BODIES = {"/gateway.v1.": rest_body, "/gateway.v1.OpenAIService/": openai_body}
"""What HTTP clients are told of errors, by the beginning of the method's name; the longest that fits counts."""
READINESS_SECONDS = 2.0
GC_THRESHOLD = 10_000
"""New objects after which the collector looks at them; Python's own 700 come every few dozen tokens."""
MAX_REQUEST_BYTES = (1024 + 16) * 1024
"""The largest body that Envoy lets through (1 MiB, to OpenAI's route), and what gRPC puts around it."""

SERVER_OPTIONS = (
    # The longest message is 10,000 characters of at most 4 bytes; OpenAI's clients send whole conversations.
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # A client that vanished is noticed, and its answer cancelled, within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping too, every 10 s and between calls.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that the servicers call, built and open."""

    settings: Settings
    warm_up: tuple[Callable[[], Coroutine[Any, Any, object]], ...]
    """What makes the first answer as fast as the others; to be run once the server serves."""
    conversation: Conversation
    history: History
    reporter: HealthReporter
    models: Models
    metrics: Metrics
    metrics_servicer: MetricsServicer
    tracer: Tracer
    authenticator: authenticator.Authenticator | None
    tls: ServerTLS | None


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Parts]:
    """Build all parts; what was opened is closed in reverse order.

    Raises:
        StorageUnavailable: the database can't be opened.
        Unavailable: a file that callers are to be known by can't be read.
    """
    async with AsyncExitStack() as stack:
        # First: what is wrong here is told before anything is opened.
        callers = authenticator.choose(settings)
        tls = ServerTLS.of(settings)
        tracer = open_tracer(settings)
        stack.push_async_callback(tracer.close)
        metrics = Metrics(place.provider for place in lineup(settings))
        store = await open_storage(settings)
        stack.push_async_callback(store.close)
        page_token_secret = settings.page_token_secret.reveal().encode() or await store.secret(PAGE_TOKENS)
        storage = MeasuredStorage(store, metrics, tracer)
        memvid = MemvidRetriever(settings.memvid_grpc_url, timeout=settings.memvid_timeout)
        stack.push_async_callback(memvid.close)
        retriever = MeasuredRetriever(memvid, metrics, tracer)
        chain = choose(settings)
        stack.push_async_callback(chain.close)
        models: Models = TracedModels(chain, tracer) if tracer.active else chain
        catalog = Catalog()
        prices, tokens = Prices(catalog), TokenCounter()
        system_prompt = SystemPrompt(settings.system_prompt, retriever)
        stack.push_async_callback(system_prompt.close)
        memory = MemoryCache(ttl=settings.cache_seconds, max_bytes=settings.cache_megabytes * 1_000_000)
        stack.push_async_callback(memory.close)
        sessions = Sessions(
            storage, ttl=settings.session_ttl, turns=settings.session_turns, alone=settings.workers == 1
        )
        buckets = MemoryTokenBuckets()
        shared = await _open_shared(settings, buckets, metrics)
        if shared is not None:
            stack.push_async_callback(shared.close)
        admission = _admission(settings, buckets, shared=shared is not None)
        guardrails = _guardrails(settings)
        conversation = Conversation(
            models=models,
            retriever=retriever,
            storage=storage,
            sessions=sessions,
            cache=MeasuredCache(memory, metrics),
            admission=admission,
            guardrails=guardrails,
            system_prompt=system_prompt,
            contexts=Contexts(catalog, configured=settings.llm_context),
            tokens=tokens,
            prices=prices,
            max_tokens=settings.llm_max_tokens,
            metrics=metrics,
            shared=shared,
        )
        stack.push_async_callback(conversation.close)
        if shared is not None:
            stack.push_async_callback(shared.leave)  # else an answer whose readers are elsewhere would hold it up
        if settings.retention_days:
            retention = Retention(storage, sessions, days=settings.retention_days, metrics=metrics, shared=shared)
            stack.push_async_callback(retention.close)
            retention.start()
        metrics.breakers(chain.states)
        metrics.gauge("chat_grpc_streams_open", "Messages that are being answered.", lambda: admission.streams)
        metrics.gauge("chat_grpc_streams_waiting", "Messages that wait for their turn.", lambda: admission.waiting)
        metrics.gauge("chat_grpc_sessions_active", "Conversations that have not ended.", lambda: len(sessions))
        steps: list[Callable[[], Coroutine[Any, Any, object]]] = []
        if callers is not None:
            stack.push_async_callback(callers.close)
            steps.append(callers.open)
        yield Parts(
            settings,
            (*steps, models.open, prices.preload, system_prompt.text, *([guardrails.open] if guardrails else [])),
            conversation,
            History(storage, sessions, PageTokens(page_token_secret), shared),
            HealthReporter(retriever=retriever, models=models, storage=storage, sessions=sessions, shared=shared),
            models,
            metrics,
            MetricsServicer(metrics),
            tracer,
            callers,
            tls,
        )


async def _open_shared(settings: Settings, buckets: MemoryTokenBuckets, metrics: Metrics) -> SharedState | None:
    """Open what several servers share, if there are several.

    Raises:
        Unavailable: the package for it is not installed, or the address can't be read.
    """
    if not settings.redis_url:
        return None
    from chat_grpc.shared.redis import RedisState

    try:
        state = RedisState(
            settings.redis_url.reveal(),
            tenant=TENANT,
            known=buckets,
            answer_seconds=settings.cache_seconds,
            session_seconds=settings.session_ttl,
            session_turns=settings.session_turns,
            outage=metrics.redis_lost,
        )
    except ModuleNotFoundError:
        raise Unavailable(
            "CHAT_REDIS_URL is set, but the package redis is not installed; install chat-grpc[redis]"
        ) from None
    except ValueError:  # without its text, which may quote a password
        raise Unavailable("CHAT_REDIS_URL can't be read; it has the form redis://name:password@host:6379/0") from None
    await state.open_link()
    return state


def _admission(settings: Settings, buckets: MemoryTokenBuckets, *, shared: bool) -> Admission:
    return Admission(
        user_limit=Rate.parse(settings.rate_limit),
        address_limit=Rate.parse(settings.address_rate_limit),
        rest_limit=Rate.parse(settings.rest_rate_limit),
        streams_per_user=settings.max_streams_per_user,
        streams_total=settings.max_streams,
        queue_length=settings.queue_length,
        queue_seconds=settings.queue_seconds,
        buckets=buckets,
        shared=shared,
    )


def _guardrails(settings: Settings) -> Guardrails | None:
    rules = chosen_rules(settings.guardrails, settings.guardrails_skip)
    if not rules:
        return None
    from chat_grpc.conversation.guardrails.guard import Guardrails

    return Guardrails(rules, secrets(settings))


def bind(
    parts: Parts, address: str, in_flight: InFlight, *, share_port: bool = False
) -> tuple[grpc.aio.Server, health.aio.HealthServicer, int]:
    """Make a server with every service on it, bound to an address.

    Args:
        parts: what the services call.
        address: host:port; port 0 is a free one.
        in_flight: what counts the calls that are being answered.
        share_port: whether other processes may listen on the same port, as workers do.

    Returns:
        The server, not yet started; its health servicer; the port it is bound to.

    Raises:
        RuntimeError: the address is taken, or not one of this machine.
    """
    trusted = parts.settings.trusted_proxies
    observer = ObservingInterceptor(parts.metrics, parts.tracer, log_content=parts.settings.log_content)
    interceptors: list[grpc.aio.ServerInterceptor] = [observer, ErrorInterceptor(in_flight, BODIES)]
    if parts.authenticator is not None:
        interceptors.append(AuthInterceptor(parts.authenticator))
    # By default a second server on the same port would silently share it.
    options = (*SERVER_OPTIONS, ("grpc.so_reuseport", int(share_port)))
    server = grpc.aio.server(interceptors=interceptors, options=options)
    services: Any = GenericServices(server)  # the stubs take servers only
    chat_pb2_grpc.add_ChatServiceServicer_to_server(ChatServicer(parts.conversation, trusted), services)
    history_pb2_grpc.add_HistoryServiceServicer_to_server(HistoryServicer(parts.history), services)
    chat_health_pb2_grpc.add_HealthServiceServicer_to_server(HealthServicer(parts.reporter), services)
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(
        GatewayServicer(parts.conversation, parts.history, parts.reporter, trusted), services
    )
    openai_pb2_grpc.add_OpenAIServiceServicer_to_server(
        OpenAIServicer(parts.conversation, parts.models, trusted), services
    )
    metrics_pb2_grpc.add_MetricsServiceServicer_to_server(parts.metrics_servicer, services)
    web_pb2_grpc.add_WebServiceServicer_to_server(WebServicer(parts.history, parts.reporter), services)
    docs_pb2_grpc.add_DocsServiceServicer_to_server(DocsServicer(), services)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, services)
    if exposure.offers_reflection(parts.settings, "grpc_host"):
        add_reflection(server, (*SERVICES, health.SERVICE_NAME))
    if parts.settings.channelz:
        add_channelz(services)
    if parts.tls is None:
        return server, health_servicer, server.add_insecure_port(address)
    return server, health_servicer, server.add_secure_port(address, parts.tls.credentials)


async def serve(settings: Settings, place: Place | None = None) -> int:
    """Serve until a signal; return the exit code.

    Args:
        settings: those of this process.
        place: this process's among the workers that share a port, None if it has the port for itself.

    Raises:
        ChatError: a part can't be opened.
        RuntimeError: the address is taken.
    """
    address = f"{settings.grpc_host}:{settings.grpc_port}"
    in_flight = InFlight()
    async with build(settings) as parts:
        server, health_servicer, port = bind(parts, address, in_flight, share_port=place is not None)
        tasks = [asyncio.ensure_future(_watch_readiness(parts.reporter, health_servicer))]

        def ready() -> None:
            log.info("serving", address=f"{settings.grpc_host}:{port}", version=__version__, model=parts.reporter.model)
            if place is not None:
                place.say_ready()
            tasks.append(asyncio.ensure_future(_warm_up(parts)))

        siblings = await parts.metrics_servicer.join(place.folder, place.number) if place is not None else None
        try:
            return await serve_until_signalled(
                server,
                health_servicer,
                service_names=SERVICES,
                drain_seconds=settings.drain_seconds,
                ready=ready,
                in_flight=in_flight,
            )
        finally:
            for task in tasks:
                task.cancel()
            if siblings is not None:
                await siblings.close()


def run(settings: Settings, place: Place | None = None) -> int:
    """Serve in this process until a signal; return the exit code, 2 if the settings would open it to strangers.

    Args:
        settings: those of this process.
        place: see ``serve``.
    """
    if why := exposure.refusal(settings, setting="grpc_host"):
        sys.stderr.write(f"chat-grpc: {why}\n")
        return 2
    try:
        return uvloop.run(serve(settings, place))
    except ChatError as error:
        sys.stderr.write(f"chat-grpc: {error.message}\n")
    except RuntimeError:
        from chat_grpc import ports

        sys.stderr.write(f"chat-grpc: {ports.cannot_listen(settings.grpc_host, settings.grpc_port)}\n")
    return 1


async def _warm_up(parts: Parts) -> None:
    """Load what takes long, one after the other, so that health checks are answered meanwhile."""
    for step in parts.warm_up:
        await step()
    # What is here now stays: the collector need not look at it again and again.
    # A token makes few objects that outlive it, so looking less often is enough.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


async def _watch_readiness(reporter: HealthReporter, health_servicer: health.aio.HealthServicer) -> None:
    """Keep the services' readiness true: SERVING while messages can be kept. Liveness ("") is not touched."""
    ready = True
    while True:
        await asyncio.sleep(READINESS_SECONDS)
        if (now := await reporter.can_answer()) != ready:
            ready = now
            log.warning("readiness changed", ready=ready)
            status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in SERVICES:
                await health_servicer.set(name, status)
