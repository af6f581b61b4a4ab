"""Authentication through a real Envoy in front of the real server: both REST APIs, OpenAI's routes, and pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import openai
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc
from chat_grpc.auth import keys
from tests.gateway.edges import Edge, running_edge
from tests.support.fixtures import StartService
from tests.support.service import failure_of
from tests.support.tokens import JWT, altered, bearer, token, unsigned

pytestmark = pytest.mark.e2e

ADA, BOB, ADMIN = ({"authorization": f"Bearer {token(*who)}"} for who in (("ada",), ("bob",), ("root", "chat:admin")))
SESSION = "7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10"
Client = aiohttp.ClientSession

PROTECTED: dict[str, tuple[str, str, Any]] = {
    "API B": ("POST", "/api/v1/chat", {"message": "How?"}),
    "API B, whole": ("POST", "/api/v1/chat", {"message": "How?", "stream": False}),
    "API A": ("POST", "/chat", {"user_id": "ada", "content": "How?"}),
    "history": ("GET", "/history/ada", None),
    "session": ("GET", f"/api/v1/sessions/{SESSION}/messages", None),
    "questions": ("GET", "/api/v1/suggested-questions", None),
    "metrics": ("GET", "/metrics", None),
    "OpenAI": ("POST", "/v1/chat/completions", {"model": "default", "messages": [{"role": "user", "content": "How?"}]}),
    "OpenAI, stream": (
        "POST",
        "/v1/chat/completions",
        {"model": "default", "stream": True, "messages": [{"role": "user", "content": "How?"}]},
    ),
    "models": ("GET", "/v1/models", None),
}
OPEN = ("/", "/assets/app.js", "/docs", "/redoc", "/openapi.json", "/health", "/api/v1/health")
ATTACKS = {
    "alg none": unsigned({"alg": "none"}, {"sub": "ada", "exp": 9_999_999_999}),
    "tampered": altered(token("bob"), sub="ada"),
    "expired": token(exp=1),
    "other secret": token(secret="another secret, which is long enough too"),  # noqa: S106 (it guards nothing)
    "long": "a" * 7_000,
    "nonsense": "nonsense",
}


@asynccontextmanager
async def at_the_edge(start: StartService, folder: Path, **settings: str) -> AsyncIterator[tuple[Client, Edge]]:
    """Start the server and an Envoy in front of it."""
    async with (
        start(**settings) as service,
        running_edge(int(service.address.rpartition(":")[2]), folder) as edge,
        aiohttp.ClientSession(edge.url, timeout=aiohttp.ClientTimeout(30)) as http,
    ):
        yield http, edge


@pytest.fixture
async def running(start: StartService, tmp_path: Path) -> AsyncIterator[tuple[Client, Edge]]:
    async with at_the_edge(start, tmp_path, **JWT) as both:
        yield both


@pytest.fixture
def http(running: tuple[Client, Edge]) -> Client:
    return running[0]


def told(route: str, body: dict[str, Any]) -> tuple[str, str]:
    """Return the reason and the kind of an error; both forms have all that they must have."""
    if route.startswith("/v1/"):
        error = body["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error["code"].upper(), error["type"]
    assert {"detail", "message", "error", "code", "request_id", "details"} <= set(body)
    assert body["detail"] == body["message"]
    return body["error"], str(body["code"])


@pytest.mark.parametrize("name", PROTECTED)
async def test_every_route_that_is_not_for_everybody_asks(http: Client, name: str) -> None:
    method, route, body = PROTECTED[name]
    async with http.request(method, route, json=body) as response:
        assert response.status == 401
        assert response.headers["www-authenticate"] == 'Bearer realm="chat-grpc"'
        kinds = ("authentication_error",) if route.startswith("/v1/") else ("16",)
        assert told(route, await response.json()) == ("UNAUTHENTICATED", *kinds)
    async with http.request(method, route, json=body, headers=ADMIN | {"x-request-id": "mine"}) as response:
        # The administrator speaks for nobody else, and that session is not there.
        assert response.status == {"API A": 403, "session": 404}.get(name, 200), await response.text()
        assert response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["API B", "history", "OpenAI, stream"])
async def test_attack(running: tuple[Client, Edge], name: str, attack: str) -> None:
    (http, edge), (method, route, body) = running, PROTECTED[name]
    credential = ATTACKS[attack]
    async with http.request(method, route, json=body, headers={"authorization": f"Bearer {credential}"}) as response:
        text = await response.text()
        assert response.status == 401, text
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
        assert credential not in text + str(response.headers)
    async with http.request(method, route, json=body, headers=ADA) as response:
        assert response.status == 200
        await response.read()
    lines = edge.requests(path=route, status=401)
    assert all(credential not in str(line) for line in lines)
    assert token("ada")[:20] not in edge.log.read_text()


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", ADA["authorization"]), ("authorization", BOB["authorization"])],
        [("authorization", f"{ADA['authorization']},{BOB['authorization']}")],
        [("authorization", f"{ADA['authorization']}\tx: y")],
        [("proxy-authorization", ADA["authorization"])],
        [("x-user-id", "ada"), ("x-forwarded-user", "ada"), ("x-envoy-auth", "ada")],
        [("cookie", f"token={token('ada')}")],
    ],
)
async def test_what_else_is_put_into_headers_shows_nobody(http: Client, headers: list[tuple[str, str]]) -> None:
    async with http.get("/history/ada", headers=headers) as response:
        assert response.status == 401


async def test_a_credential_in_the_address_is_not_looked_at(http: Client) -> None:
    for name in ("access_token", "token", "authorization"):
        async with http.get("/history/ada", params={name: token("ada")}) as response:
            assert response.status == 401


@pytest.mark.parametrize("route", OPEN)
async def test_what_is_for_everybody(http: Client, route: str) -> None:
    for headers in ({}, {"authorization": "Bearer nonsense"}):
        async with http.get(route, headers=headers) as response:
            assert response.status == 200


async def test_api_a_reaches_its_own_and_no_other_history(http: Client) -> None:
    async with http.post("/chat", json={"user_id": "ada", "content": "How?"}, headers=ADA) as response:
        assert response.status == 200
    async with http.get("/history/ada", headers=ADA) as response:
        assert [message["user_id"] for message in await response.json()] == ["ada"]
    async with http.get("/history/ada", headers=ADMIN) as response:
        assert len(await response.json()) == 1
    for request in (
        http.get("/history/ada", headers=BOB),
        http.post("/chat", json={"user_id": "ada", "content": "How?"}, headers=BOB),
    ):
        async with request as response:
            assert response.status == 403
            assert told("/", await response.json()) == ("ANOTHER_USER", "7")


async def test_api_b_keeps_a_conversation_for_its_user(http: Client) -> None:
    whole = {"message": "How?", "stream": False}
    async with http.post("/api/v1/chat", json=whole, headers=ADA) as response:
        session = (await response.json())["session_id"]
    messages = f"/api/v1/sessions/{session}/messages"
    async with http.get(messages, headers=ADA) as response:
        assert response.status == 200
        assert len((await response.json())["messages"]) == 1
    async with http.get("/history/ada", headers=ADA) as response:
        assert [message["session_id"] for message in await response.json()] == [session]
    for request in (
        http.get(messages, headers=BOB),
        http.post("/api/v1/chat", json=whole | {"session_id": session}, headers=BOB),
        http.post("/api/v1/chat", json={"message": "How?", "session_id": session}, headers=BOB),
    ):
        async with request as response:
            assert response.status == 403
            assert told("/", await response.json()) == ("SESSION_OF_ANOTHER_USER", "7")


async def test_metrics_need_a_scope(http: Client) -> None:
    async with http.get("/metrics", headers=ADA) as response:
        assert response.status == 403
        assert told("/", await response.json())[0] == "SCOPE_MISSING"


async def test_the_api_key_of_openais_sdk_is_the_credential(start: StartService, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    kept, key = keys.make("ada")
    keys.write(file, [kept])
    question: Any = [{"role": "user", "content": "How?"}]
    settings = JWT | {"CHAT_AUTH": "both", "CHAT_API_KEYS_FILE": str(file)}
    async with at_the_edge(start, tmp_path, **settings) as (http, edge):
        for credential in (key, token("ada")):
            async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=credential, max_retries=0) as client:
                answer = await client.chat.completions.create(model="default", messages=question)
                assert answer.choices[0].message.content == "Hello there."
                with pytest.raises(openai.PermissionDeniedError) as denied:
                    await client.chat.completions.create(model="default", messages=question, user="bob")
                assert denied.value.type == "permission_error"
        async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="sk-wrong", max_retries=0) as client:
            for stream in (False, True):
                with pytest.raises(openai.AuthenticationError) as refused:
                    await client.chat.completions.create(model="default", messages=question, stream=stream)
                assert (refused.value.type, refused.value.code) == ("authentication_error", "token_invalid")
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with http.get("/history/ada", headers={"authorization": f"Bearer {key}"}) as response:
            assert len(await response.json()) == 2


async def test_a_page_of_another_origin_may_send_a_token(start: StartService, tmp_path: Path) -> None:
    async with start(**JWT) as service:
        port = int(service.address.rpartition(":")[2])
        async with running_edge(port, tmp_path, cors_origins="https://chat.example.org") as edge:
            asked = {"origin": "https://chat.example.org", "access-control-request-method": "POST"}
            async with aiohttp.ClientSession(edge.url) as http:
                async with http.options("/api/v1/chat", headers=asked) as response:
                    assert response.status == 200
                    assert "authorization" in response.headers["access-control-allow-headers"]
                async with http.post("/api/v1/chat", json={"message": "How?"}, headers=ADA | asked) as response:
                    assert response.status == 200


async def test_native_clients_through_the_edge(running: tuple[Client, Edge]) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running[1].port}") as channel:
        stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
        request = chat_pb2.ChatRequest(message="How?")
        failure = await failure_of(stub.Chat(request))
        assert failure.code is grpc.StatusCode.UNAUTHENTICATED
        assert failure.trailers["www-authenticate"] == 'Bearer realm="chat-grpc"'
        events = [event async for event in stub.Chat(request, metadata=bearer(token()))]
        assert events[-1].HasField("completed")
