"""Who is let in: tokens, API keys, and what attackers make of them, through a real channel."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from chat_grpc import app
from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc, health_pb2, history_pb2
from chat_grpc._gen.gateway.v1 import docs_pb2, docs_pb2_grpc, metrics_pb2, metrics_pb2_grpc, web_pb2, web_pb2_grpc
from chat_grpc.auth import keys
from chat_grpc.auth.tokens import LEEWAY
from chat_grpc.errors import Unavailable
from chat_grpc.rpc import channelz
from chat_grpc.rpc.auth import OPEN, OPEN_SERVICES, SCOPES
from chat_grpc.settings import load
from tests.support.fixtures import StartService
from tests.support.service import Failure, Service, failure_of, text_of
from tests.support.tokens import (
    AUDIENCE,
    ISSUER,
    JWT,
    SECRET,
    Metadata,
    altered,
    bearer,
    claims,
    ec_key,
    jwks,
    provider,
    rsa_key,
    token,
    unsigned,
)

JWKS = {"CHAT_AUTH": "jwt", "CHAT_JWT_ISSUER": ISSUER, "CHAT_JWT_AUDIENCE": AUDIENCE}


async def listed(service: Service, metadata: Metadata, **scope: Any) -> list[history_pb2.Message]:
    request = history_pb2.ListMessagesRequest(**scope)
    return list((await service.history.ListMessages(request, metadata=metadata)).messages)


async def refused(service: Service, metadata: Metadata, **scope: Any) -> Failure:
    return await failure_of(service.history.ListMessages(history_pb2.ListMessagesRequest(**scope), metadata=metadata))


async def ask(service: Service, metadata: Metadata, **fields: Any) -> list[chat_pb2.ChatResponse]:
    call = service.chat.Chat(chat_pb2.ChatRequest(message="How?", **fields), metadata=metadata)
    return [event async for event in call]


# What a token is good for.


async def test_a_token_names_its_user(start: StartService) -> None:
    async with start(**JWT) as service:
        events = await ask(service, bearer(token("ada")))
        assert text_of(events) == "Hello there."
        assert [message.user_id for message in await listed(service, bearer(token("ada")))] == ["ada"]
        assert await listed(service, bearer(token("bob"))) == []


async def test_the_user_may_be_another_claim_than_sub(start: StartService) -> None:
    async with start(**JWT, CHAT_JWT_USER_CLAIM="email") as service:
        shown = bearer(token("auth0|123", email="ada@example.org"))
        await ask(service, shown)
        assert [message.user_id for message in await listed(service, shown)] == ["ada@example.org"]
        assert (await refused(service, bearer(token("ada")))).reason == "TOKEN_INVALID"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_word_bearer_is_taken_in_any_case(start: StartService, scheme: str) -> None:
    async with start(**JWT) as service:
        assert await listed(service, (("authorization", f"{scheme} {token()}"),)) == []


@pytest.mark.parametrize("audience", [AUDIENCE, ["other", AUDIENCE]])
async def test_a_token_may_be_meant_for_several(start: StartService, audience: Any) -> None:
    async with start(**JWT) as service:
        assert await listed(service, bearer(token(aud=audience))) == []


async def test_clocks_may_differ_a_little(start: StartService) -> None:
    now = int(time.time())
    async with start(**JWT) as service:
        assert await listed(service, bearer(token(nbf=now + 10, iat=now + 10))) == []
        assert await listed(service, bearer(token(exp=now - 10))) == []


@pytest.mark.parametrize("make", [rsa_key, ec_key])
async def test_tokens_of_an_identity_provider(start: StartService, tmp_path: Path, make: Callable[..., Any]) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(jwks(rsa_key(), ec_key()))
    async with start(**JWKS, CHAT_JWT_JWKS=str(file)) as service:
        assert await listed(service, bearer(make().token())) == []
        # The only key of its kind needs no name.
        assert await listed(service, bearer(make().token(headers={"kid": None}))) == []


async def test_a_secret_and_a_set_of_keys_may_both_be_taken(start: StartService, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(jwks(rsa_key()))
    async with start(**JWT, CHAT_JWT_JWKS=str(file)) as service:
        for good in (token(), rsa_key().token()):
            assert await listed(service, bearer(good)) == []


# What is refused.

GOOD = claims()
CONFUSED = {"alg": "HS256", "typ": "JWT", "kid": "rsa-1"}


def public_pem() -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return str(rsa_key().private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def signed_by_hand(key: bytes, header: dict[str, Any]) -> str:
    """Sign with HMAC whatever the header says; libraries would not take a public key for a secret."""
    import hashlib
    import hmac

    head = unsigned(header, claims()).rpartition(".")[0]
    signature = base64.urlsafe_b64encode(hmac.new(key, head.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    return f"{head}.{signature}"


ATTACKS: dict[str, tuple[Callable[[], str], str]] = {
    "alg none": (lambda: unsigned({"alg": "none"}, claims()), "TOKEN_INVALID"),
    "alg None": (lambda: unsigned({"alg": "None"}, claims()), "TOKEN_INVALID"),
    "alg NONE with a signature": (lambda: unsigned({"alg": "NONE"}, claims(), "AAAA"), "TOKEN_INVALID"),
    "no alg": (lambda: unsigned({}, claims()), "TOKEN_INVALID"),
    "alg of another type": (lambda: unsigned({"alg": ["HS256"]}, claims(), "AAAA"), "TOKEN_INVALID"),
    "public key as secret": (lambda: signed_by_hand(public_pem().encode(), CONFUSED), "TOKEN_INVALID"),
    "public key as secret, without a kid": (
        lambda: signed_by_hand(public_pem().encode(), {"alg": "HS256"}),
        "TOKEN_INVALID",
    ),
    "JWK as secret": (lambda: signed_by_hand(json.dumps(rsa_key().jwk).encode(), CONFUSED), "TOKEN_INVALID"),
    "an algorithm that is not taken": (
        lambda: _encode(SECRET * 2, "HS512"),
        "TOKEN_INVALID",
    ),
    "another key of the same name": (lambda: _other_rsa().token(), "TOKEN_INVALID"),
    "an EC key's name on an RSA token": (lambda: rsa_key().token(headers={"kid": "ec-1"}), "TOKEN_KEY_UNKNOWN"),
    "a key that is not there": (lambda: rsa_key().token(headers={"kid": "x"}), "TOKEN_KEY_UNKNOWN"),
    "a kid that is a path": (lambda: rsa_key().token(headers={"kid": "../../dev/null"}), "TOKEN_KEY_UNKNOWN"),
    "expired": (lambda: rsa_key().token(exp=int(time.time()) - 60), "TOKEN_EXPIRED"),
    "without an end": (lambda: rsa_key().token(exp=None), "TOKEN_INVALID"),
    "an end that is no number": (lambda: rsa_key().token(exp="never"), "TOKEN_INVALID"),
    "not valid yet": (lambda: rsa_key().token(nbf=int(time.time()) + 600), "TOKEN_NOT_YET_VALID"),
    "issued in the future": (lambda: rsa_key().token(iat=int(time.time()) + 600), "TOKEN_NOT_YET_VALID"),
    "for another service": (lambda: rsa_key().token(aud="mail"), "TOKEN_WRONG_AUDIENCE"),
    "for nobody": (lambda: rsa_key().token(aud=None), "TOKEN_INVALID"),
    "of another issuer": (lambda: rsa_key().token(iss="https://evil.example"), "TOKEN_WRONG_ISSUER"),
    "of no issuer": (lambda: rsa_key().token(iss=None), "TOKEN_INVALID"),
    "no user": (lambda: rsa_key().token(sub=None), "TOKEN_INVALID"),
    "a user that is none": (lambda: rsa_key().token("a b"), "TOKEN_USER_UNFIT"),
    "a user that is a number": (lambda: rsa_key().token(sub=7), "TOKEN_INVALID"),
    "changed claims": (lambda: altered(rsa_key().token(), sub="root"), "TOKEN_INVALID"),
    "added scope": (lambda: altered(rsa_key().token(), scope="chat:admin"), "TOKEN_INVALID"),
    "cut": (lambda: rsa_key().token()[:-8], "TOKEN_INVALID"),
    "without its signature": (lambda: rsa_key().token().rpartition(".")[0] + ".", "TOKEN_INVALID"),
    "too long": (lambda: rsa_key().token(more="x" * 4300), "TOKEN_INVALID"),
    "what must be understood": (lambda: rsa_key().token(headers={"crit": ["x"], "x": 1}), "TOKEN_INVALID"),
    "no token at all": (lambda: "abc", "TOKEN_INVALID"),
    "dots": (lambda: "..", "TOKEN_INVALID"),
    "five parts": (lambda: "a.b.c.d.e", "TOKEN_INVALID"),
    "nested by the thousand": (
        lambda: base64.urlsafe_b64encode(b"[" * 4000).decode().rstrip("=") + ".e30.AA",
        "TOKEN_INVALID",
    ),
    "an API key that is none": (lambda: f"{keys.PREFIX}abc_def", "API_KEY_INVALID"),
}


def _encode(secret: str, algorithm: str) -> str:
    import jwt

    return jwt.encode(claims(), secret, algorithm=algorithm)


def _other_rsa() -> Any:
    from dataclasses import replace

    return replace(rsa_key("rsa-other"), kid="rsa-1")


@pytest.mark.parametrize("attack", ATTACKS)
async def test_attack(start: StartService, tmp_path: Path, attack: str, caplog: pytest.LogCaptureFixture) -> None:
    make, reason = ATTACKS[attack]
    file = tmp_path / "jwks.json"
    file.write_text(jwks(rsa_key(), ec_key()))
    credential = make()
    async with start(**JWKS, CHAT_JWT_JWKS=str(file)) as service:
        failure = await refused(service, bearer(credential))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert failure.trailers["www-authenticate"].startswith('Bearer realm="chat-grpc", error="invalid_token"')
    assert credential not in caplog.text + str(failure.trailers) + failure.message


@pytest.mark.parametrize("attack", ["jku", "x5u", "jwk", "x5c"])
async def test_where_a_token_says_its_key_is_found_is_not_read(
    start: StartService, tmp_path: Path, attack: str
) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(jwks(rsa_key()))
    other = rsa_key("theirs")
    async with provider(other) as evil, start(**JWKS, CHAT_JWT_JWKS=str(file)) as service:
        headers: dict[str, dict[str, Any]] = {
            "jku": {"jku": evil.url},
            "x5u": {"x5u": evil.url},
            "jwk": {"jwk": other.jwk},
            "x5c": {"x5c": ["AAAA"]},
        }
        header = headers[attack]
        for kid in ("theirs", "rsa-1", None):
            failure = await refused(service, bearer(other.token(headers=header | {"kid": kid})))
            assert failure.code is grpc.StatusCode.UNAUTHENTICATED
        assert evil.fetched == 0


SHOWN: dict[str, tuple[Metadata, str]] = {
    "nothing": ((), ""),
    "another scheme": ((("authorization", "Basic YWRhOng="),), ""),
    "only the scheme": ((("authorization", "Bearer"),), "invalid_request"),
    "only the scheme, and spaces": ((("authorization", "Bearer   "),), "invalid_request"),
    "two headers": (bearer(token()) + bearer(token("bob")), "invalid_request"),
    "the same twice": (bearer(token()) * 2, "invalid_request"),
    "two in one": ((("authorization", f"Bearer {token()}, Bearer {token('bob')}"),), "invalid_request"),
    "two words": ((("authorization", f"Bearer {token()} {token('bob')}"),), "invalid_request"),
    "quotes": ((("authorization", f'Bearer "{token()}"'),), "invalid_request"),
    "another header": ((("x-authorization", f"Bearer {token()}"), ("token", token())), ""),
    "a cookie": ((("cookie", f"access_token={token()}"),), ""),
}


@pytest.mark.parametrize("shown", SHOWN)
async def test_what_is_no_credential(start: StartService, shown: str) -> None:
    metadata, fault = SHOWN[shown]
    async with start(**JWT) as service:
        failure = await refused(service, metadata)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    challenge = failure.trailers["www-authenticate"]
    assert challenge == 'Bearer realm="chat-grpc"' if not fault else f'error="{fault}"' in challenge


async def test_a_refused_message_is_not_kept_and_no_model_is_asked(start: StartService, model: Any) -> None:
    async with start(**JWT) as service:
        failure = await failure_of(service.chat.Chat(chat_pb2.ChatRequest(message="How?"), metadata=bearer("x.y.z")))
        assert (failure.code, failure.events) == (grpc.StatusCode.UNAUTHENTICATED, [])
        assert model.chats == []
        assert await listed(service, bearer(token("root", "chat:admin")), user_id="ada") == []


async def test_a_token_that_was_taken_ends_all_the_same(start: StartService) -> None:
    shown = bearer(token(exp=int(time.time()) - LEEWAY + 2))
    async with start(**JWT) as service:
        await listed(service, shown)
        async with asyncio.timeout(20):
            while True:
                try:
                    await listed(service, shown)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017 (when it comes is not known)
                    break
                await asyncio.sleep(0.1)


# Which methods need one.


async def test_probes_pages_and_documentation_are_for_everybody(start: StartService) -> None:
    async with start(**JWT) as service:
        for metadata in ((), bearer("nonsense")):
            answer = await service.health.GetHealth(health_pb2.GetHealthRequest(), metadata=metadata)
            assert answer.status == health_pb2.GetHealthResponse.STATUS_HEALTHY
            await web_pb2_grpc.WebServiceStub(service.channel).GetIndex(web_pb2.GetIndexRequest(), metadata=metadata)
            docs = docs_pb2_grpc.DocsServiceStub(service.channel)
            await docs.GetOpenApi(docs_pb2.GetOpenApiRequest(), metadata=metadata)
        from grpc_health.v1 import health_pb2 as standard

        probe = health_pb2_grpc.HealthStub(service.channel)
        assert (await failure_of(probe.Check(standard.HealthCheckRequest(service="x")))).code is (
            grpc.StatusCode.NOT_FOUND
        )


def test_all_other_methods_need_a_credential() -> None:
    """Every method that there is, so that a new one is looked at."""
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.Default()
    methods = {f"/{name}/{method.name}" for name in app.SERVICES for method in pool.FindServiceByName(name).methods}
    needing = {method for method in methods if method not in OPEN and not method.startswith(OPEN_SERVICES)}
    assert methods >= OPEN
    assert needing >= SCOPES.keys() - channelz.METHODS
    assert needing == {
        "/chat.v1.ChatService/Chat",
        "/chat.v1.ChatService/ListSuggestedQuestions",
        "/chat.v1.HistoryService/DeleteMessages",
        "/chat.v1.HistoryService/ListMessages",
        "/gateway.v1.GatewayService/Chat",
        "/gateway.v1.GatewayService/ListHistory",
        "/gateway.v1.GatewayService/ListSuggestedQuestions",
        "/gateway.v1.GatewayService/SendMessage",
        "/gateway.v1.MetricsService/GetMetrics",
        "/gateway.v1.OpenAIService/CreateChatCompletion",
        "/gateway.v1.OpenAIService/GetModel",
        "/gateway.v1.OpenAIService/ListModels",
        "/gateway.v1.WebService/ListSessionMessages",
    }


async def test_metrics_need_a_scope(start: StartService) -> None:
    async with start(**JWT) as service:
        metrics = metrics_pb2_grpc.MetricsServiceStub(service.channel)
        failure = await failure_of(metrics.GetMetrics(metrics_pb2.GetMetricsRequest(), metadata=bearer(token())))
        assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        for scope in ("chat:metrics", "other chat:admin"):
            shown = bearer(token("prometheus", scope))
            assert (await metrics.GetMetrics(metrics_pb2.GetMetricsRequest(), metadata=shown)).data


# Identity providers that rotate their keys.


async def test_a_new_key_is_fetched_when_a_token_shows_it(start: StartService) -> None:
    async with provider(rsa_key()) as idp, start(**JWKS, CHAT_JWT_JWKS=idp.url) as service:
        assert await listed(service, bearer(rsa_key().token())) == []
        assert idp.fetched == 1
        idp.body = jwks(ec_key("new"))
        assert await listed(service, bearer(ec_key("new").token())) == []
        assert idp.fetched == 2
        # What the key that is gone has signed is not taken any more, although it was before.
        assert (await refused(service, bearer(rsa_key().token()))).reason == "TOKEN_KEY_UNKNOWN"
        # Whoever invents keys does not make the server ask each time.
        for number in range(20):
            await refused(service, bearer(rsa_key().token(headers={"kid": f"invented-{number}"})))
        assert idp.fetched == 2


async def test_a_set_that_can_not_be_fetched_is_an_outage_and_no_fault_of_the_token(start: StartService) -> None:
    async with provider(rsa_key()) as idp, start(**JWKS, CHAT_JWT_JWKS=idp.url) as service:
        idp.status = 500
        failure = await refused(service, bearer(rsa_key().token()))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "AUTH_UNAVAILABLE")
        assert failure.details["RetryInfo"].retry_delay.seconds == 5


@pytest.mark.parametrize("trouble", ["redirect", "huge", "no JSON", "no keys", "symmetric", "weak"])
async def test_a_set_that_is_not_one_is_not_used(start: StartService, trouble: str) -> None:
    async with provider(rsa_key()) as other, provider() as idp, start(**JWKS, CHAT_JWT_JWKS=idp.url) as service:
        match trouble:
            case "redirect":
                idp.status, idp.headers = 302, {"location": other.url}
            case "huge":
                idp.body = jwks(rsa_key()) + " " * 300_000
            case "no JSON":
                idp.body = "<html>"
            case "no keys":
                idp.body = "[]"
            case "symmetric":
                idp.body = json.dumps({"keys": [{"kty": "oct", "k": "AAAA", "kid": "rsa-1", "alg": "HS256"}]})
            case "weak":
                idp.body = jwks(rsa_key("rsa-1", 1024))
        assert (await refused(service, bearer(rsa_key().token()))).code is grpc.StatusCode.UNAVAILABLE
        assert (idp.fetched, other.fetched) == (1, 0)


async def test_what_is_known_stays_known_while_the_provider_is_away(start: StartService) -> None:
    async with provider(rsa_key()) as idp, start(**JWKS, CHAT_JWT_JWKS=idp.url) as service:
        assert await listed(service, bearer(rsa_key().token())) == []
        idp.status = 503
        assert (await refused(service, bearer(rsa_key("lost").token()))).reason == "TOKEN_KEY_UNKNOWN"
        assert await listed(service, bearer(rsa_key().token("bob"))) == []


# API keys.


async def test_api_keys(start: StartService, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    kept, key = keys.make("ada")
    admin, admin_key = keys.make("root", ["chat:admin"])
    keys.write(file, [kept, admin])
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    async with start(CHAT_AUTH="keys", CHAT_API_KEYS_FILE=str(file)) as service:
        await ask(service, bearer(key))
        assert [message.user_id for message in await listed(service, bearer(key))] == ["ada"]
        assert len(await listed(service, bearer(admin_key), user_id="ada")) == 1
        for wrong in (key[:-1], key + "x", key.replace("_", "", 1), f"cgk_{kept.id}_", f"cgk_{admin.id}{key[20:]}"):
            assert (await refused(service, bearer(wrong))).code is grpc.StatusCode.UNAUTHENTICATED
        assert (await refused(service, bearer(token()))).reason == "TOKEN_INVALID"


async def test_a_key_that_is_added_or_taken_back_counts_without_a_restart(tmp_path: Path) -> None:
    now = [100.0]
    file = tmp_path / "keys.jsonl"
    (first, one), (second, two) = keys.make("ada"), keys.make("bob")
    keys.write(file, [first])
    known = keys.KeyFile(file, clock=lambda: now[0])
    assert known.verify(one).user_id == "ada"
    keys.write(file, [second])
    now[0] += 1
    assert known.verify(two).user_id == "bob"
    from chat_grpc.errors import Unauthenticated

    with pytest.raises(Unauthenticated):
        known.verify(one)
    file.unlink()
    now[0] += 1
    with pytest.raises(Unauthenticated):
        known.verify(two)


async def test_a_line_that_is_damaged_costs_no_other_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    kept, key = keys.make("ada")
    keys.write(file, [kept])
    file.write_text('{"id":\n\nnonsense\n' + file.read_text())
    assert keys.KeyFile(file).verify(key).user_id == "ada"


async def test_both_may_be_taken(start: StartService, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    kept, key = keys.make("ada")
    keys.write(file, [kept])
    async with start(**(JWT | {"CHAT_AUTH": "both"}), CHAT_API_KEYS_FILE=str(file)) as service:
        for credential in (key, token()):
            assert await listed(service, bearer(credential)) == []


# Starting.


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"CHAT_AUTH": "keys", "CHAT_API_KEYS_FILE": "missing"}, "admin key add"),
        (JWKS | {"CHAT_JWT_JWKS": "missing"}, "CHAT_JWT_JWKS"),
        (
            {"CHAT_AUTH": "jwt", "CHAT_JWT_SECRET": "replace-this-by-what-openssl-rand-base64-32-prints"},
            "which everybody knows",
        ),
    ],
)
async def test_what_callers_are_to_be_known_by_must_be_there(settings: dict[str, str], told: str) -> None:
    with pytest.raises(Unavailable, match=told):
        async with app.build(load(settings)):
            pass


async def test_without_authentication_nothing_is_asked_for(chat_service: Service) -> None:
    for metadata in ((), bearer("whatever"), bearer(token())):
        stub: chat_pb2_grpc.ChatServiceStub = chat_service.chat
        call: Any = stub.Chat(chat_pb2.ChatRequest(message="How?", user_id="ada"), metadata=metadata)
        assert text_of([event async for event in call]) == "Hello there."
