"""Pages of other origins, and gRPC-Web, through a real Envoy."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import grpc
import pytest

from chat_grpc import errors
from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc
from chat_grpc.settings import SettingsError, load
from tests.gateway.edges import running_edge
from tests.gateway.scripted import Gateway
from tests.support.service import failure_of

pytestmark = pytest.mark.e2e

CHAT = "/api/v1/chat"
OURS, OTHER = "http://localhost:5173", "https://evil.example"
EXPOSED = {"grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id", "retry-after"}
METHOD = "/chat.v1.ChatService/Chat"
WEB = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}


@pytest.fixture
async def site(gateway: Gateway, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an edge whose answers two origins may read."""
    async with (
        running_edge(gateway.grpc_port, tmp_path, cors_origins=f"https://chat.example.org, {OURS}") as edge,
        aiohttp.ClientSession(edge.url, timeout=aiohttp.ClientTimeout(20)) as session,
    ):
        yield session


def preflight(origin: str) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-grpc-web,authorization",
    }


def names(text: str) -> set[str]:
    return {name.strip().lower() for name in text.split(",")}


@pytest.mark.parametrize("path", [CHAT, "/chat", "/v1/chat/completions", METHOD, "/health"])
async def test_a_browser_may_send_for_pages_of_a_listed_origin(site: aiohttp.ClientSession, path: str) -> None:
    async with site.options(path, headers=preflight(OURS)) as response:
        assert response.status == 200
        assert response.headers["access-control-allow-origin"] == OURS
        assert {"GET", "POST"} <= {name.upper() for name in names(response.headers["access-control-allow-methods"])}
        assert names(response.headers["access-control-allow-headers"]) == {"*", "authorization"}
        assert int(response.headers["access-control-max-age"]) > 0
        assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("origin", [OTHER, "null", "http://localhost:5174", f"{OURS}.evil.example", "http://LOCALHOST"])
async def test_no_other_origin_may(gateway: Gateway, site: aiohttp.ClientSession, origin: str) -> None:
    async with site.options(CHAT, headers=preflight(origin)) as response:
        assert "access-control-allow-origin" not in response.headers
    async with site.get("/health", headers={"origin": origin}) as response:
        assert "access-control-allow-origin" not in response.headers
    assert gateway.conversation.requests == []


async def test_no_origin_is_listed_by_default(http: aiohttp.ClientSession) -> None:
    async with http.options(CHAT, headers=preflight(OURS)) as response:
        assert "access-control-allow-origin" not in response.headers


async def test_answers_and_errors_can_be_read_with_their_headers(gateway: Gateway, site: aiohttp.ClientSession) -> None:
    gateway.conversation.script = [errors.TooManyRequests("slow down", retry_after=3)]
    for send in (site.get("/health", headers={"origin": OURS}), site.post(CHAT, json={}, headers={"origin": OURS})):
        async with send as response:
            assert response.headers["access-control-allow-origin"] == OURS
            assert names(response.headers["access-control-expose-headers"]) == EXPOSED


@pytest.mark.parametrize("text", ["*", "localhost:5173", "https://chat.example.org/", "https://a b", "https://*.org"])
def test_what_is_no_list_of_origins_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="CHAT_CORS_ORIGINS"):
        load({"CHAT_CORS_ORIGINS": text})


# gRPC-Web


def frame(message: bytes) -> bytes:
    return bytes([0]) + len(message).to_bytes(4, "big") + message


def frames(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while raw:
        size = int.from_bytes(raw[1:5], "big")
        yield raw[0], raw[5 : 5 + size]
        raw = raw[5 + size :]


def trailers_of(raw: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in raw.decode().replace(": ", ":").split("\r\n") if line)


ASK = chat_pb2.ChatRequest(message="How?").SerializeToString()


async def test_a_stream_over_grpc_web_ends_with_its_trailers_in_the_body(
    gateway: Gateway, site: aiohttp.ClientSession
) -> None:
    gateway.conversation.script = ["They", " stay"]
    async with site.post(METHOD, data=frame(ASK), headers=WEB | {"origin": OURS}) as response:
        *messages, (flag, last) = frames(await response.read())

    assert (response.status, response.content_type) == (200, "application/grpc-web+proto")
    assert response.headers["access-control-allow-origin"] == OURS
    assert names(response.headers["access-control-expose-headers"]) == EXPOSED
    assert [chat_pb2.ChatResponse.FromString(message).delta.text for _, message in messages] == ["They", " stay"]
    assert flag == 0x80
    assert trailers_of(last)["grpc-status"] == "0"


async def test_grpc_web_in_base64(gateway: Gateway, site: aiohttp.ClientSession) -> None:
    gateway.conversation.script = ["They", " stay"]
    headers = {"content-type": "application/grpc-web-text+proto", "accept": "application/grpc-web-text+proto"}
    async with site.post(METHOD, data=base64.b64encode(frame(ASK)), headers=headers | {"origin": OURS}) as response:
        raw = await response.read()

    *messages, (_, last) = frames(b"".join(base64.b64decode(part + b"=") for part in _parts(raw)))
    assert [chat_pb2.ChatResponse.FromString(message).delta.text for _, message in messages] == ["They", " stay"]
    assert trailers_of(last)["grpc-status"] == "0"


def _parts(raw: bytes) -> Iterator[bytes]:
    """Split base64 that was encoded piece by piece, after each padding."""
    yield from (raw[number : number + 4].rstrip(b"=").ljust(3, b"=") for number in range(0, len(raw), 4))


@pytest.mark.parametrize("before", [[], ["They"]], ids=["at once", "after a message"])
async def test_errors_keep_their_grpc_status(gateway: Gateway, site: aiohttp.ClientSession, before: list[str]) -> None:
    """What HTTP clients are told of an error is not told to gRPC's, and takes nothing from them."""
    gateway.conversation.script = [*before, errors.TooManyRequests("slow down", retry_after=3)]
    async with site.post(METHOD, data=frame(ASK), headers=WEB | {"origin": OURS}) as response:
        raw = await response.read()

    assert response.status == 200
    told = trailers_of(list(frames(raw))[-1][1]) if before else dict(response.headers)
    told = {name.lower(): value for name, value in told.items()}
    assert (told["grpc-status"], told["grpc-message"], told["retry-after"]) == ("8", "slow down", "3")
    assert told["grpc-status-details-bin"]
    assert not {"x-http-status", "x-error-body"} & set(told)

    async with grpc.aio.insecure_channel(site._base_url.authority) as channel:  # type: ignore[union-attr]
        failure = await failure_of(chat_pb2_grpc.ChatServiceStub(channel).Chat(chat_pb2.ChatRequest(message="How?")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert not {"x-http-status", "x-error-body"} & set(failure.trailers)
