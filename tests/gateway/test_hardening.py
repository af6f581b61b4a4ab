"""What the edge refuses, and what it takes to bring it down."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway.edges import Edge, running_edge
from tests.gateway.scripted import Gateway

pytestmark = pytest.mark.e2e

CHAT = "/api/v1/chat"


async def raw(edge: Edge, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are, and return the status, headers and body of the answer; status 0 is none."""
    return await asyncio.to_thread(_raw, edge, request)


def _raw(edge: Edge, request: bytes) -> tuple[int, dict[str, str], bytes]:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < _length(answer):
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return 0, {}, b""
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


def _length(answer: bytes) -> int:
    for line in answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


REFUSED = {
    "too many headers": (b"".join(b"a%d: b\r\n" % number for number in range(65)), 431, "HEADERS_TOO_LARGE"),
    "headers too large": (b"a: " + b"x" * 33_000 + b"\r\n", 431, "HEADERS_TOO_LARGE"),
    "underscores": (b"x_request_id: mine\r\n", 400, "INVALID_REQUEST"),
    "two lengths": (b"content-length: 1\r\ncontent-length: 2\r\n", 400, "INVALID_REQUEST"),
    "length and chunks": (b"content-length: 1\r\ntransfer-encoding: chunked\r\n", 400, "INVALID_REQUEST"),
    "no name": (b": b\r\n", 400, "INVALID_REQUEST"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_before_it_is_a_request_has_the_same_form(
    gateway: Gateway, running: Edge, name: str
) -> None:
    lines, status, error = REFUSED[name]
    got, headers, body = await raw(running, b"POST /api/v1/chat HTTP/1.1\r\nhost: chat\r\n" + lines + b"\r\n")

    assert got == status
    fields = json.loads(body)
    assert (fields["error"], fields["details"]) == (error, [])
    assert fields["request_id"] == headers["x-request-id"]
    assert await asyncio.to_thread(running.requests, response_id=headers["x-request-id"])
    assert gateway.conversation.requests == []


async def test_64_headers_are_taken(running: Edge) -> None:
    lines = b"".join(b"a%d: b\r\n" % number for number in range(60))
    assert (await raw(running, b"GET /health HTTP/1.1\r\nhost: chat\r\n" + lines + b"\r\n"))[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/../v1/health", 200),
        ("/api//v1/health", 200),
        ("/api/%76%31/health", 200),
        ("/./health", 200),
        ("/api%2fv1%2fhealth", 307),
        ("/..%5c..%5chealth", 307),
        ("/health%00", 400),
        ("/../../etc/passwd", 404),
        ("/HEALTH", 404),
    ],
)
async def test_a_path_in_other_spellings_is_one_route_or_none(running: Edge, path: str, status: int) -> None:
    got, headers, _ = await raw(running, f"GET {path} HTTP/1.1\r\nhost: chat\r\n\r\n".encode())

    assert got == status
    if status == 307:
        assert headers["location"].endswith("/health")


async def test_a_websocket_is_refused(http: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await http.ws_connect(CHAT)
    assert caught.value.status in (403, 404, 405)


async def test_a_page_cannot_send_what_its_browser_would_not_ask_us_about(
    gateway: Gateway, http: aiohttp.ClientSession
) -> None:
    """A form of any page may send text to any server; JSON makes the browser ask first."""
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"origin": "https://evil.example", "content-type": content_type}
        async with http.post(CHAT, data=b'{"message":"How?"}', headers=headers) as response:
            body = await response.json()
        assert (response.status, body["error"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert body["request_id"] == response.headers["x-request-id"]
    assert gateway.conversation.requests == []


async def test_answers_are_not_to_be_sniffed(http: aiohttp.ClientSession) -> None:
    for path in ("/health", "/nope"):
        async with http.get(path) as response:
            assert response.headers["x-content-type-options"] == "nosniff"


async def test_an_error_of_grpc_itself_takes_the_same_form(http: aiohttp.ClientSession) -> None:
    """The server of these tests is "older" than the edge: it has no DocsService."""
    async with http.get("/docs", headers={"x-request-id": 'q"uote\\'}) as response:
        body = await response.json()

    assert (response.status, body["error"], body["code"], body["details"]) == (501, "REFUSED", 12, [])
    assert body["request_id"] == response.headers["x-request-id"] == 'q"uote\\'
    assert body["detail"] == body["message"] != ""


async def test_the_access_log_is_json_without_queries(running: Edge, http: aiohttp.ClientSession) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with http.get("/health?token=hidden", headers={"x-request-id": "logged", "traceparent": trace}) as response:
        body = await response.read()

    [line] = await asyncio.to_thread(running.requests, request_id="logged")
    expected = {
        "logger": "edge",
        "event": "request",
        "method": "GET",
        "path": "/health",
        "status": 200,
        "grpc_status": "0",
        "traceparent": trace,
        "address": "127.0.0.1",
        "protocol": "HTTP/1.1",
        "bytes_sent": len(body),
    }
    assert expected.items() <= line.items()
    assert "hidden" not in running.log.read_text()


async def test_the_access_log_is_text_for_people(gateway: Gateway, tmp_path: Path) -> None:
    async with running_edge(gateway.grpc_port, tmp_path, log_format="text") as edge:
        async with aiohttp.ClientSession(edge.url) as http, http.get("/nope"):
            pass
        async with asyncio.timeout(10):
            while " GET /nope 404 " not in edge.log.read_text():
                await asyncio.sleep(0.05)


async def test_an_edge_without_memory_says_so(gateway: Gateway, tmp_path: Path) -> None:
    def tiny(config: dict[str, Any]) -> None:
        _monitor(config, "fixed_heap")["max_heap_size_bytes"] = 1_000_000
        # New connections would not be taken any more, and nobody could be told.
        config["overload_manager"]["actions"] = [
            action for action in config["overload_manager"]["actions"] if "accepting" in action["name"]
        ]

    async with (
        running_edge(gateway.grpc_port, tmp_path, tiny) as edge,
        aiohttp.ClientSession(edge.url) as http,
        asyncio.timeout(20),
    ):
        while True:
            async with http.get("/health") as response:
                body = await response.json()
            if response.status != 200:
                break
            await asyncio.sleep(0.05)
    assert (response.status, body["error"], response.headers["retry-after"]) == (503, "OVERLOADED", "1")


async def test_connections_are_limited(gateway: Gateway, tmp_path: Path) -> None:
    def few(config: dict[str, Any]) -> None:
        _monitor(config, "downstream_max_connections")["max_active_downstream_connections"] = 2

    async with running_edge(gateway.grpc_port, tmp_path, few) as edge:

        def client() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(edge.url, timeout=aiohttp.ClientTimeout(20))

        async with client() as one, client() as two, client() as three:
            for http in (one, two):
                async with http.get("/health") as response:
                    assert response.status == 200
            with pytest.raises(aiohttp.ClientConnectionError):
                await three.get("/health")
            async with one.get("/health") as response:
                assert response.status == 200


def _monitor(config: dict[str, Any], name: str) -> dict[str, Any]:
    monitors = config["overload_manager"]["resource_monitors"]
    found: dict[str, Any] = next(item for item in monitors if name in item["name"])["typed_config"]
    return found


def test_there_is_no_admin_interface(running: Edge) -> None:
    import psutil

    ports = {
        connection.laddr.port
        for process in psutil.process_iter(["cmdline"])
        if any(f'"port_value": {running.port}' in part for part in process.info["cmdline"] or ())
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports == {running.port}
