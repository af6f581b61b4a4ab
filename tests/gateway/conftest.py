"""A real server and a real Envoy around a scripted conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chat_grpc._gen.chat.v1 import chat_pb2_grpc
from chat_grpc._gen.gateway.v1 import gateway_pb2_grpc
from chat_grpc.app import BODIES
from chat_grpc.rpc.interceptor import ErrorInterceptor
from chat_grpc.rpc.lifecycle import InFlight
from chat_grpc.settings import Networks
from gateway.servicer import GatewayServicer
from tests.gateway.edges import Edge, running_edge
from tests.gateway.scripted import Conversation, Gateway, Health, NativeChat


@pytest.fixture
async def gateway(request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    """A real server. Parametrized indirectly, it says a comment after so many seconds of silence."""
    conversation, reporter, in_flight = Conversation(), Health(), InFlight()
    server = grpc.aio.server(interceptors=[ErrorInterceptor(in_flight, BODIES)])
    doubles: tuple[Any, Any, Any] = (conversation, None, reporter)  # the history is not asked for
    servicer = GatewayServicer(*doubles, Networks("127.0.0.0/8"), keep_alive=getattr(request, "param", 15.0))
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, server)
    chat_pb2_grpc.add_ChatServiceServicer_to_server(NativeChat(conversation), server)  # type: ignore[abstract]  # one method is played
    standard = health.aio.HealthServicer()
    await standard.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(standard, server)
    reflection.enable_server_reflection(("gateway.v1.GatewayService", reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Gateway(conversation, reporter, server, port, in_flight)
    await server.stop(None)


@pytest.fixture
async def running(gateway: Gateway, tmp_path: Path) -> AsyncIterator[Edge]:
    """A real Envoy in front of ``gateway``."""
    async with running_edge(gateway.grpc_port, tmp_path) as edge:
        yield edge


@pytest.fixture
def edge_port(running: Edge) -> int:
    """Its port."""
    return running.port


@pytest.fixture
async def http(edge_port: int) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP/1.1 client of the edge."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{edge_port}", timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


@pytest.fixture
async def stub(gateway: Gateway) -> AsyncIterator[gateway_pb2_grpc.GatewayServiceStub]:
    """A gRPC client of the server itself."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield gateway_pb2_grpc.GatewayServiceStub(channel)


@pytest.fixture
async def edge_channel(edge_port: int) -> AsyncIterator[grpc.aio.Channel]:
    """A plain gRPC channel through the edge."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge_port}") as channel:
        yield channel
