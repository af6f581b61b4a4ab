"""What every call shares: its id, its decoding, and the form of its errors."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from types import CoroutineType, MappingProxyType
from typing import Any, TypeAlias, TypeVar

import grpc

from chat_grpc import errors
from chat_grpc.entropy import random_hex
from chat_grpc.rpc.decoding import Undecodable, tolerant
from chat_grpc.rpc.errors import ErrorBody, to_status
from chat_grpc.rpc.lifecycle import InFlight
from chat_grpc.telemetry import context as call
from chat_grpc.telemetry import logs

log = logs.get(__name__)

# In quotes, because these classes take parameters only in their type stubs.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

T = TypeVar("T")

MAX_REQUEST_ID = 128
UNTOUCHED = ("/grpc.health.", "/grpc.reflection.")
"""The methods that pass by all interceptors: they may last for hours, and machines ask them every second."""


class Wrapped:
    """Handlers with something around them, each made once: making them is a good part of what a short call costs.

    A method's handler is the same object for every call, unless an interceptor behind makes one for each.

    Args:
        wrap: makes it of a method's name ("/package.Service/Method") and handler.
    """

    __slots__ = ("_made", "_wrap")

    def __init__(self, wrap: Callable[[str, Handler], Handler]) -> None:
        self._wrap = wrap
        self._made: dict[str, tuple[Handler, Handler]] = {}

    def of(self, method: str, handler: Handler) -> Handler:
        """Return a method's handler, wrapped."""
        of, made = self._made.get(method, (None, handler))
        if of is not handler:
            made = self._wrap(method, handler)
            self._made[method] = handler, made
        return made


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns errors into statuses, and lets nothing else of an exception out.

    ChatError becomes the status of rpc/errors.py. Anything unexpected is logged
    with the request id, and the client gets INTERNAL with that id and nothing
    of the exception. Calls are counted in ``in_flight``; health and reflection
    pass by untouched, so that a drain does not wait for them.

    A method that writes its stream itself gives ``context.write`` the bytes of a
    message: grpc.aio would call a serializer for each, and a token's are made by hand.

    Args:
        in_flight: where calls are counted.
        bodies: what HTTP clients are told, by the beginning of the method's name
            ("/gateway.v1."); the longest that fits counts.
    """

    def __init__(self, in_flight: InFlight, bodies: Mapping[str, ErrorBody] = MappingProxyType({})) -> None:
        self._in_flight = in_flight
        self._wrapped = Wrapped(self._wrap)
        self._bodies = sorted(bodies.items(), key=lambda item: len(item[0]), reverse=True)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(UNTOUCHED):
            return handler
        return self._wrapped.of(handler_call_details.method, handler)

    def _wrap(self, name: str, handler: Handler) -> Handler:
        http = self._body_of(name)
        # The stubs type these for grpc's threaded servers.
        method: Any = handler
        decode = tolerant(method.request_deserializer)
        if method.unary_unary is not None:
            return _handler(
                grpc.unary_unary_rpc_method_handler,
                self._guard(method.unary_unary, http),
                decode,
                method.response_serializer,
            )
        return _handler(
            grpc.unary_stream_rpc_method_handler,
            self._guard(_writing(method.unary_stream), http),
            decode,
            None,  # what is written here are bytes
        )

    def _body_of(self, method: str) -> ErrorBody | None:
        return next((body for prefix, body in self._bodies if method.startswith(prefix)), None)

    def _guard(
        self, method: Callable[[Any, Context], Awaitable[T]], http: ErrorBody | None
    ) -> Callable[[Any, Context], Awaitable[T]]:
        # A function of the class and no method: grpc.aio sees through a partial of one only.
        return partial(ErrorInterceptor._guarded, self, method, http)

    async def _guarded(
        self,
        method: Callable[[Any, Context], Awaitable[T]],
        http: ErrorBody | None,
        request: Any,
        context: Context,
    ) -> T:
        task = self._in_flight.enter()
        try:
            request_id = _begin(context)
            try:
                self._in_flight.admit()
                _check(request)
                return await method(request, context)
            except BaseException as error:  # noqa: BLE001 (every end is decided in one place)
                failure = _failure(error)
                call.call().error = failure
            # The id may have been replaced by one that the request holds.
            status = to_status(failure, call.request_id() or request_id, http)
            await context.abort(status.code, status.message, status.trailers)
        finally:
            self._in_flight.leave(task)


def _writing(method: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Awaitable[None]]:
    """Return what writes a stream: the method itself if it does, as it may with grpc.aio, too. It writes bytes, then.

    Writing here, rather than yielding to grpc.aio, spares a generator on the way of every message.
    """
    if inspect.iscoroutinefunction(method):
        return method

    async def write(request: Any, context: Context) -> None:
        stream = method(request, context)
        if isinstance(stream, CoroutineType):  # there was something around a method that writes by itself
            await stream
            return
        async with aclosing(stream):
            async for response in stream:
                await context.write(response.SerializeToString())

    return write


def _handler(kind: Any, *parts: Any) -> Handler:
    handler: Handler = kind(*parts)
    return handler


def _begin(context: Context) -> str:
    """Name the call: by the caller's x-request-id if it is fit to be logged, else anew."""
    given = ""
    for name, value in context.invocation_metadata() or ():
        if name == "x-request-id":
            given = str(value)
            break
    by_caller = is_request_id(given)
    request_id = given if by_caller else random_hex(16)
    call.set_request_id(request_id, by_caller=by_caller)
    return request_id


def is_request_id(text: str) -> bool:
    """Tell whether a text is 1 to 128 visible ASCII characters."""
    return 0 < len(text) <= MAX_REQUEST_ID and text.isascii() and text.isprintable() and " " not in text


def _check(request: Any) -> None:
    if isinstance(request, Undecodable):
        raise errors.InvalidRequest(request.violations)


def _failure(error: BaseException) -> errors.ChatError:
    """Return what the client is told of an exception; raise it again if nobody is there to be told."""
    if isinstance(error, errors.ChatError):
        if isinstance(error, errors.Unavailable):
            log.warning("call failed", reason=error.reason, metadata=error.metadata)
        return error
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if errors.Draining.ended(error):
            return errors.Draining()
        if task is None or task.cancelling():
            raise error
        # Raised inside the handler while the client still waits: grpc.aio
        # would leave it waiting until its deadline.
    elif not isinstance(error, Exception):
        raise error
    log.fault("unexpected exception", error)
    return errors.ChatError("internal error; the server's log says more under this request id")
