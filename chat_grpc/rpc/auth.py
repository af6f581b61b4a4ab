"""Authentication: no method is called for a caller who has not shown who it is, but for those that are for everybody."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from chat_grpc.auth.authenticator import Authenticator
from chat_grpc.conversation import access
from chat_grpc.domain import Identity
from chat_grpc.errors import Forbidden, Unauthenticated
from chat_grpc.rpc import channelz
from chat_grpc.rpc.interceptor import UNTOUCHED, Context, Handler
from chat_grpc.telemetry import context as telling

OPEN = frozenset(
    {
        "/chat.v1.HealthService/GetHealth",
        "/gateway.v1.GatewayService/GetHealth",
        "/gateway.v1.WebService/GetIndex",
        "/gateway.v1.WebService/GetAsset",
    }
)
"""The methods that need no credential: probes, and the files of the chat page. A new method needs one."""
OPEN_SERVICES = (*UNTOUCHED, "/gateway.v1.DocsService/")
"""Probes, reflection (where it is offered at all), and the documentation."""
SCOPES = {"/gateway.v1.MetricsService/GetMetrics": access.METRICS, **dict.fromkeys(channelz.METHODS, access.ADMIN)}
"""The scopes that methods need as a whole. What depends on whose messages are asked for is decided with these."""

HEADER = "authorization"
_SCHEME = "bearer"
_CREDENTIAL = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750, 2.1."""


def is_open(method: str) -> bool:
    """Tell whether a method, by its full name with a slash before it, needs no credential."""
    return method in OPEN or method.startswith(OPEN_SERVICES)


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Finds out who calls, and has the call answered for that one. Must be the last, so that others tell of its refusals.

    Args:
        authenticator: what knows credentials.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, or one that refuses the call."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or is_open(method):
            return handler  # type: ignore[no-any-return]  # the stubs type handlers for grpc's threaded servers
        kind = "unary_unary" if handler.unary_unary is not None else "unary_stream"
        try:
            identity = await self._identity(handler_call_details)
            _check_scope(identity, method)
        except Exception as error:  # noqa: BLE001 (raised again where errors become statuses; grpc would send its text)
            behaviour = _refusing(error)
        else:
            behaviour = _answering(identity, getattr(handler, kind))
        return handler._replace(**{kind: behaviour})  # type: ignore[no-any-return]  # (as above)

    async def _identity(self, details: grpc.HandlerCallDetails) -> Identity:
        return await self._authenticator.authenticate(
            credential([value for name, value in details.invocation_metadata or () if name == HEADER])
        )


def credential(values: list[Any]) -> str:
    """Return what the headers ``authorization`` hold: one credential, after the word Bearer.

    Raises:
        Unauthenticated: there is none, more than one, or something else.
    """
    if len(values) > 1:
        # Whoever is on the way may have looked at the other one.
        raise Unauthenticated("authorization is given more than once", fault="invalid_request")
    scheme, _, text = str(values[0] if values else "").partition(" ")
    if scheme.lower() != _SCHEME:
        raise Unauthenticated(
            "a token or an API key is needed: authorization: Bearer ..., or the api_key of an OpenAI SDK", fault=""
        )
    if not _CREDENTIAL.fullmatch(text := text.strip(" ")):
        raise Unauthenticated("authorization holds no token or API key", fault="invalid_request")
    return text


def _check_scope(identity: Identity, method: str) -> None:
    scope = SCOPES.get(method)
    if scope is not None and not access.has(identity, scope):
        raise Forbidden(f"the scope {scope} is needed for this", reason="SCOPE_MISSING", metadata={"scope": scope})


def _answering(identity: Identity, inner: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
    # No coroutine or generator of its own, which would be on the way of every token.
    def behaviour(request: Any, context: Context) -> Any:
        access.enter(identity)
        telling.call().user_id = identity.user_id
        return inner(request, context)

    return behaviour


def _refusing(error: Exception) -> Callable[[Any, Context], Any]:
    def behaviour(_: Any, __: Context) -> Any:
        raise error

    return behaviour
