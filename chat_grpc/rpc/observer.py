"""What is told of every call: a count, a line in the log, a span."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc

from chat_grpc.errors import TooManyRequests
from chat_grpc.rpc.errors import CODES
from chat_grpc.rpc.interceptor import UNTOUCHED, Context, Handler, Wrapped
from chat_grpc.telemetry import context as telling
from chat_grpc.telemetry import logs
from chat_grpc.telemetry.metrics import OTHER, Metrics
from chat_grpc.telemetry.traces import NoTracer, Span, Tracer

log = logs.get(__name__)

QUIET = frozenset(
    {
        "chat.v1.HealthService/GetHealth",
        "gateway.v1.GatewayService/GetHealth",
        "gateway.v1.MetricsService/GetMetrics",
    }
)
"""What machines ask every few seconds: logged only at DEBUG when all is well, and never traced."""

NUMBERS: dict[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}
OK = "OK"
UNTRACED = NoTracer()
FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The codes that are the server's fault, and fail a span; the others are the caller's."""


class ObservingInterceptor(grpc.aio.ServerInterceptor):
    """Counts, logs and traces calls. Must be the first one, so that it sees how a call really ended.

    Health checks and reflection pass by untouched.

    Args:
        metrics: where calls are counted.
        tracer: what makes their spans.
        log_content: whether the log holds messages and answers.
    """

    def __init__(self, metrics: Metrics, tracer: Tracer, *, log_content: bool = False) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._log_content = log_content
        self._wrapped = Wrapped(self._wrap)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, observed."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(UNTOUCHED):
            return handler
        return self._wrapped.of(handler_call_details.method, handler)

    def _wrap(self, name: str, handler: Any) -> Handler:
        method = name[1:]
        # Streams too are plain coroutines by now: ErrorInterceptor writes them itself.
        kind = "unary_unary" if handler.unary_unary is not None else "unary_stream"
        behaviour = getattr(handler, kind)

        # A function of the class and no method: grpc.aio sees through a partial of one only.
        observed = partial(ObservingInterceptor._observe, self, method, behaviour)
        return handler._replace(**{kind: observed})  # type: ignore[no-any-return]  # the stubs type handlers for grpc's threaded servers

    async def _observe(
        self,
        method: str,
        behaviour: Callable[[Any, Context], Awaitable[Any]],
        request: Any,
        context: Context,
    ) -> Any:
        began = time.perf_counter()
        call = telling.begin_call()
        code = OK
        tracer = UNTRACED if method in QUIET else self._tracer
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        if "traceparent" in metadata:  # the task is this call's, and so is what is set here
            telling.set_trace(telling.read_trace(metadata["traceparent"], metadata.get("tracestate", "")))
        span = tracer.begin(method, "server")
        with tracer.enter(span):
            try:
                return await behaviour(request, context)
            except BaseException as error:
                code = _code(context, error, call)
                raise
            finally:
                self._count(method, code, time.perf_counter() - began, call)
                self._log(method, code, time.perf_counter() - began, call)
                if tracer.active:
                    _tell(span, method, code, call)
                span.end()

    def _count(self, method: str, code: str, seconds: float, call: telling.Call) -> None:
        self._metrics.call_ended(method, code, seconds)
        if isinstance(call.error, TooManyRequests):
            self._metrics.refused(call.error.metadata.get("limit", OTHER))

    def _log(self, method: str, code: str, seconds: float, call: telling.Call) -> None:
        """Write the one line that every call leaves."""
        message = call.message
        fields = {
            "method": method,
            "code": code,
            "reason": call.error.reason if call.error is not None else None,
            "seconds": round(seconds, 6),
            "user_id": call.user_id or None,
            "session_id": (message.session_id if message is not None else call.session_id) or None,
        }
        if message is not None:
            fields["message_id"] = message.id
            fields["model"] = message.model
            if (usage := message.usage) is not None:
                fields["prompt_tokens"] = usage.prompt_tokens
                fields["completion_tokens"] = usage.completion_tokens
                fields["cost_usd"] = usage.cost_usd
            fields["cached"] = message.cached
            if self._log_content:
                fields["message"], fields["answer"] = message.message, message.answer
        log.log(logging.DEBUG if code == OK and method in QUIET else logging.INFO, "call", fields)


def _tell(span: Span, method: str, code: str, call: telling.Call) -> None:
    service, _, name = method.rpartition("/")
    span.set("rpc.system", "grpc")
    span.set("rpc.service", service)
    span.set("rpc.method", name)
    span.set("rpc.grpc.status_code", NUMBERS[code])
    span.set("chat.request_id", telling.request_id())
    if call.message is not None:
        span.set("chat.message_id", call.message.id)
        span.set("gen_ai.conversation.id", call.message.session_id)
    if code in FAULTS:
        span.fail(call.error.reason if call.error is not None else code)


def _code(context: Context, error: BaseException, call: telling.Call) -> str:
    """Return the name of the status that a call ended with."""
    if call.error is not None:
        return CODES[type(call.error)].name
    if isinstance(error, asyncio.CancelledError):
        # grpc.aio says the same of a client that left and of one whose time was over.
        remaining: float | None = context.time_remaining()  # type: ignore[assignment,unused-ignore]  # None without deadline
        return "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
    return "UNKNOWN"
