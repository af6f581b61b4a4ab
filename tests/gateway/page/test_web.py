"""The routes behind the chat page, as any HTTP client finds them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path

import aiohttp
import pytest

from gateway.files import Files
from gateway.web import PAGE
from tests.gateway.page.conftest import Site

pytestmark = pytest.mark.e2e

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture
async def http(site: Site) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(site.url, timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/plain, */*", "image/png"])
async def test_clients_get_json_at_the_root(http: aiohttp.ClientSession, accept: str) -> None:
    async with http.get("/", headers={"accept": accept}) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert response.headers["vary"] == "accept"
        body = await response.json()
    assert body.keys() >= {"name", "version", "status", "docs"}
    assert (body["name"], body["status"], body["docs"]) == ("chat-grpc", "healthy", "/docs")


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "TEXT/HTML;q=0.5"])
async def test_browsers_get_the_page(http: aiohttp.ClientSession, accept: str) -> None:
    async with http.get("/", headers={"accept": accept}) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["vary"].lower().replace(" ", "") == "accept,accept-encoding"
        assert await response.read() == (PAGE / "index.html").read_bytes()
        policy = {rule.split()[0]: rule.split()[1:] for rule in response.headers["content-security-policy"].split(";")}
        assert response.cookies == SimpleCookie()
    assert policy == {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "connect-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


@pytest.mark.parametrize("name", sorted(path.name for path in PAGE.iterdir() if path.name != "index.html"))
async def test_every_file_is_served_and_not_sent_twice(http: aiohttp.ClientSession, name: str) -> None:
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    async with http.get(f"/assets/{name}") as response:
        assert response.status == 200
        assert response.headers["content-type"] == kinds[Path(name).suffix]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-cache"
        assert await response.read() == (PAGE / name).read_bytes()
        etag = response.headers["etag"]
    for known in (etag, etag.removeprefix("W/"), f'"other", {etag}'):
        async with http.get(f"/assets/{name}", headers={"if-none-match": known}) as response:
            assert response.status == 304
            assert response.headers["etag"] == etag
            assert await response.read() == b""
    async with http.get(f"/assets/{name}", headers={"if-none-match": '"other"'}) as response:
        assert response.status == 200


@pytest.mark.parametrize("name", ["nope.js", "web.py", "%2e%2e%2fweb.py", "..%2f..%2fpyproject.toml", "%00"])
async def test_nothing_else_is_served(http: aiohttp.ClientSession, name: str) -> None:
    async with http.get(f"/assets/{name}") as response:
        assert response.status in (400, 404)
        assert response.content_type == "application/json"


async def test_other_methods_are_refused(http: aiohttp.ClientSession) -> None:
    for path in ("/", "/assets/app.js", f"/api/v1/sessions/{uuid.uuid4()}/messages"):
        async with http.post(path, json={}) as response:
            assert response.status == 405
            assert "GET" in response.headers["allow"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "app.js"
    path.write_text("1")
    (tmp_path / "secret.txt").write_text("x")
    files = Files(tmp_path)
    first = files.get("app.js")
    assert first is not None
    assert files.get("app.js") is first
    path.write_text("2")
    second = files.get("app.js")
    assert second is not None
    assert (second.data, second.etag == first.etag) == (b"2", False)
    path.unlink()
    assert files.get("app.js") is second
    assert files.get("secret.txt") is None
    assert files.get("../app.js") is None


async def test_the_messages_of_a_session(http: aiohttp.ClientSession) -> None:
    session = ""
    for number in range(3):
        body = {"message": f"Question {number}", "stream": False} | ({"session_id": session} if session else {})
        async with http.post("/api/v1/chat", json=body) as response:
            session = (await response.json())["session_id"]
    path = f"/api/v1/sessions/{session}/messages"
    async with http.get(path, params={"limit": "2"}) as response:
        assert response.status == 200
        assert response.headers["cache-control"] == "no-store"
        page = await response.json()
    assert [message["message"] for message in page["messages"]] == ["Question 2", "Question 1"]
    newest = page["messages"][0]
    assert newest["id"].startswith("msg_")
    assert newest["answer"] == "Hello there."
    assert (newest["status"], newest["finish_reason"], newest["error_reason"]) == ("completed", "stop", "")
    assert (newest["model"], newest["tokens_used"]) == ("local/test-model", 10)
    assert (newest["cached"], newest["degraded"]) == (False, [])
    assert newest["created_at"] <= newest["completed_at"]
    assert [(found["title"], round(found["score"], 2)) for found in newest["passages"]] == [
        ("Storage › DynamoDB", 0.9),
        ("Storage › SQLite", 0.8),
    ]
    async with http.get(path, params={"limit": "2", "page_token": page["next_page_token"]}) as response:
        last = await response.json()
    assert [message["message"] for message in last["messages"]] == ["Question 0"]
    assert last["next_page_token"] == ""


async def test_what_a_session_does_not_tell(http: aiohttp.ClientSession, site: Site) -> None:
    started, *_ = await site.service.ask("Mine", user_id="ada")
    named = started.started.session_id
    cases = [
        (f"{named}/messages", 403, "SESSION_OF_ANOTHER_USER"),
        (f"{uuid.uuid4()}/messages", 404, "SESSION_NOT_FOUND"),
        ("nonsense/messages", 400, "INVALID_REQUEST"),
        (f"{named}/messages?limit=-1", 400, "INVALID_REQUEST"),
        (f"{named}/messages?page_token=x", 400, "INVALID_REQUEST"),
    ]
    for path, status, reason in cases:
        async with http.get(f"/api/v1/sessions/{path}") as response:
            body = await response.json()
            assert (response.status, body["error"]) == (status, reason), path
            assert "Mine" not in str(body)


async def test_every_rule_that_a_request_breaks_is_named(http: aiohttp.ClientSession) -> None:
    async with http.get("/api/v1/sessions/nonsense/messages?limit=-1") as response:
        body = await response.json()
    assert response.status == 400
    assert body["message"] == "session_id: must be a UUID; limit: must be at least 0"
