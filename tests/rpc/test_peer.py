"""Whose call it is, asked by real calls over real sockets: what is believed of a proxy, and of whom else it is not."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from chat_grpc.rpc.peer import client_address
from chat_grpc.settings import Networks

LOOPBACK = Networks("127.0.0.0/8,::1")
NOBODY = Networks("none")
METHOD = "/test.Peer/Address"
Headers = list[tuple[str, str]]


@asynccontextmanager
async def answering(trusted: Networks, bind: str) -> AsyncIterator[grpc.aio.Channel]:
    """Run a server that answers each call with its client's address, and connect to it."""

    async def address(_: bytes, context: Any) -> bytes:
        return client_address(context, trusted).encode()

    handler: Any = grpc.unary_unary_rpc_method_handler(address)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peer", {"Address": handler}),))
    port = server.add_insecure_port(bind)
    await server.start()
    target = bind if bind.startswith("unix:") else f"{bind.rpartition(':')[0].replace('[::]', '127.0.0.1')}:{port}"
    async with grpc.aio.insecure_channel(target) as channel:
        yield channel
    await server.stop(None)


async def seen(trusted: Networks, headers: Headers | None = None, *, bind: str = "127.0.0.1:0") -> str:
    async with answering(trusted, bind) as channel:
        call: Any = channel.unary_unary(METHOD)
        answer: bytes = await call(b"", metadata=headers)
        return answer.decode()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


async def test_without_headers_it_is_the_peer() -> None:
    assert await seen(LOOPBACK) == "127.0.0.1"
    assert await seen(NOBODY) == "127.0.0.1"


@needs_ipv6
async def test_an_ipv6_peer_is_its_network() -> None:
    assert await seen(NOBODY, bind="[::1]:0") == "::/64"
    assert await seen(LOOPBACK, [("x-envoy-external-address", "192.0.2.7")], bind="[::1]:0") == "192.0.2.7"


@needs_ipv6
async def test_an_ipv4_peer_of_a_socket_for_both_is_an_ipv4_peer() -> None:
    assert await seen(NOBODY, bind="[::]:0") == "127.0.0.1"
    assert await seen(LOOPBACK, [("x-envoy-external-address", "192.0.2.7")], bind="[::]:0") == "192.0.2.7"


async def test_a_peer_on_a_unix_socket_is_this_machine(tmp_path: Path) -> None:
    headers = [("x-envoy-external-address", "192.0.2.7")]
    assert await seen(NOBODY, headers, bind=f"unix:{tmp_path}/a") == "127.0.0.1"
    assert await seen(LOOPBACK, headers, bind=f"unix:{tmp_path}/b") == "192.0.2.7"


@pytest.mark.parametrize("trusted", [NOBODY, Networks("10.0.0.0/8"), Networks("::1")], ids=str)
async def test_a_peer_that_is_no_proxy_is_not_believed(trusted: Networks) -> None:
    headers = [("x-envoy-external-address", "192.0.2.7"), ("x-forwarded-for", "192.0.2.8"), ("x-real-ip", "192.0.2.9")]
    assert await seen(trusted, headers) == "127.0.0.1"


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ([("x-envoy-external-address", "192.0.2.7")], "192.0.2.7"),
        # What Envoy says goes before a list that the client may have begun.
        ([("x-forwarded-for", "192.0.2.8"), ("x-envoy-external-address", "192.0.2.7")], "192.0.2.7"),
        ([("x-envoy-external-address", "2001:db8:1:2:3:4:5:6")], "2001:db8:1:2::/64"),
        ([("x-envoy-external-address", "::ffff:192.0.2.7")], "192.0.2.7"),
        ([("x-forwarded-for", "192.0.2.8")], "192.0.2.8"),
        ([("x-forwarded-for", "203.0.113.1, 192.0.2.8")], "192.0.2.8"),
        ([("x-forwarded-for", "203.0.113.1,192.0.2.8, 127.0.0.1,127.0.0.2")], "192.0.2.8"),
        ([("x-forwarded-for", "203.0.113.1"), ("x-forwarded-for", "192.0.2.8")], "192.0.2.8"),
        ([("x-forwarded-for", "192.0.2.8:4711")], "192.0.2.8"),
        ([("x-forwarded-for", "[2001:db8:1:2::9]:4711")], "2001:db8:1:2::/64"),
        ([("x-forwarded-for", "fe80::1%eth0")], "fe80::/64"),
        # All of them are proxies: the call began at the first.
        ([("x-forwarded-for", "127.0.0.3, 127.0.0.2")], "127.0.0.3"),
    ],
)
async def test_a_proxy_is_believed(headers: Headers, address: str) -> None:
    assert await seen(LOOPBACK, headers) == address


@pytest.mark.parametrize(
    "value", ["", "unknown", "not an address", "192.0.2.8, _hidden", "999.1.1.1", "1" * 1_000, "192.0.2.8," * 99]
)
async def test_what_is_no_address_is_passed_over(value: str) -> None:
    assert await seen(LOOPBACK, [("x-forwarded-for", value), ("x-envoy-external-address", value)]) == "127.0.0.1"


async def test_what_follows_a_broken_entry_still_counts() -> None:
    assert await seen(LOOPBACK, [("x-forwarded-for", "203.0.113.1, rubbish, 127.0.0.9")]) == "127.0.0.9"
