"""Adding services to a server in the way that costs a call the least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc


class GenericServices:
    """What generated code adds its services to, in place of the server: it is told of the services, not of each method.

    For each method that it is told of, grpc.aio keeps a task that waits for the
    method's next call, and with each call of any of them it begins to wait for
    all of these tasks anew (``AioServer._server_main_loop``), which short calls
    feel. Without, one task waits for calls, and a handler is found by its name.

    Args:
        server: the server.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """See grpc.aio.Server."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Do nothing: the same handlers have been added as generic ones."""
