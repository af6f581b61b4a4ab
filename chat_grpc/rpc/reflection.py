"""Server reflection under both of its names."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = reflection.SERVICE_NAME
SERVICE_NAMES = (V1, V1ALPHA)


def add_reflection(server: grpc.aio.Server, service_names: Iterable[str]) -> None:
    """Let clients list and describe the services named, and reflection itself.

    grpcio ships v1alpha only; v1 has the same messages on the wire, so the same
    servicer answers under that name too, for clients that ask for v1 first.
    """
    servicer = reflection.aio.ReflectionServicer([*service_names, *SERVICE_NAMES])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in SERVICE_NAMES)
    )
