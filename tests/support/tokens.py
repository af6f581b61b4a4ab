"""Tokens and keys for tests: signed here as an identity provider would, and as attackers do."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

SECRET = "a secret of tests, and of nothing else at all"  # noqa: S105 (it guards nothing)
ISSUER = "https://login.example.org"
AUDIENCE = "chat-grpc"
Metadata = tuple[tuple[str, str], ...]


def claims(user: str = "ada", scope: str = "", **more: Any) -> dict[str, Any]:
    """Return claims that are good for an hour; a claim that is None is left out."""
    now = int(time.time())
    made = {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 3600, "scope": scope} | more
    return {name: value for name, value in made.items() if value is not None}


def token(user: str = "ada", scope: str = "", *, secret: str = SECRET, **more: Any) -> str:
    """Return a token that a server with the settings ``JWT`` takes."""
    return jwt.encode(claims(user, scope, **more), secret, algorithm="HS256")


def bearer(credential: str) -> Metadata:
    """Return the metadata that shows it."""
    return (("authorization", f"Bearer {credential}"),)


JWT = {
    "CHAT_AUTH": "jwt",
    "CHAT_JWT_SECRET": SECRET,
    "CHAT_JWT_ISSUER": ISSUER,
    "CHAT_JWT_AUDIENCE": AUDIENCE,
}
"""Settings."""


@dataclass(frozen=True)
class SigningKey:
    """A private key, and the name that tokens call it by."""

    kid: str
    algorithm: str
    private: Any

    def token(self, user: str = "ada", headers: dict[str, Any] | None = None, **more: Any) -> str:
        """Return a token that is signed with it; a header that is None is left out."""
        told = {name: value for name, value in ({"kid": self.kid} | (headers or {})).items() if value is not None}
        return jwt.encode(claims(user, **more), self.private, algorithm=self.algorithm, headers=told)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half, as a set holds it."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        public: dict[str, Any] = algorithm.to_jwk(self.private.public_key(), as_dict=True)
        return public | {"kid": self.kid, "use": "sig", "alg": self.algorithm}


@cache
def rsa_key(kid: str = "rsa-1", bits: int = 2048) -> SigningKey:
    """Make an RSA key."""
    return SigningKey(kid, "RS256", rsa.generate_private_key(public_exponent=65537, key_size=bits))


@cache
def ec_key(kid: str = "ec-1") -> SigningKey:
    """Make a key on P-256."""
    return SigningKey(kid, "ES256", ec.generate_private_key(ec.SECP256R1()))


def jwks(*keys: SigningKey) -> str:
    """Return a JWK set of the public halves."""
    return json.dumps({"keys": [key.jwk for key in keys]})


def unsigned(header: dict[str, Any], payload: dict[str, Any], signature: str = "") -> str:
    """Put a token together by hand."""
    return ".".join((_part(header), _part(payload), signature))


def altered(good: str, **more: Any) -> str:
    """Change the claims of a token, and leave its signature."""
    header, payload, signature = good.split(".")
    told = json.loads(base64.urlsafe_b64decode(payload + "==="))
    return ".".join((header, _part(told | more), signature))


def _part(fields: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()


class Provider:
    """An identity provider's address of keys."""

    def __init__(self) -> None:
        self.url = ""
        self.body = ""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.fetched = 0

    async def serve(self, _: web.Request) -> web.Response:
        """Answer the set."""
        self.fetched += 1
        return web.Response(text=self.body, status=self.status, content_type="application/json", headers=self.headers)


@asynccontextmanager
async def provider(*keys: SigningKey) -> AsyncIterator[Provider]:
    """Run one that publishes these keys."""
    running = Provider()
    running.body = jwks(*keys)
    app = web.Application()
    app.router.add_get("/{path:.*}", running.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server: Any = site._server
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
    try:
        yield running
    finally:
        await runner.cleanup()
