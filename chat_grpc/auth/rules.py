"""What settings of authentication and of TLS must go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from chat_grpc.auth.exposure import is_safe_url

if TYPE_CHECKING:
    from chat_grpc.settings import Settings

EXAMPLE_SECRET = "replace-this-by-what-openssl-rand-base64-32-prints"  # noqa: S105 (refused where it matters)
MIN_SECRET_BYTES = 32
"""What HS256 asks for (RFC 7518, 3.2); less can be guessed from a single token."""


def faults(settings: Settings) -> Iterator[str]:
    """Yield what is wrong, in words; no secret is repeated."""
    if settings.auth in ("jwt", "both") and not settings.jwt_secret and not settings.jwt_jwks:
        yield (
            f"CHAT_AUTH={settings.auth}: needs a key to check tokens with: CHAT_JWT_SECRET, which has no default, "
            "or CHAT_JWT_JWKS, for example CHAT_JWT_JWKS=https://login.example.org/.well-known/jwks.json"
        )
    if settings.auth in ("keys", "both") and not settings.api_keys_file:
        yield (
            f"CHAT_AUTH={settings.auth}: needs a file of API keys, for example CHAT_API_KEYS_FILE=./data/api-keys.jsonl"
        )
    if settings.jwt_secret and len(settings.jwt_secret.reveal().encode()) < MIN_SECRET_BYTES:
        yield (
            f"CHAT_JWT_SECRET: must have at least {MIN_SECRET_BYTES} bytes, for less can be guessed from a token; "
            "`openssl rand -base64 32` prints one"
        )
    if "://" in settings.jwt_jwks and not is_safe_url(settings.jwt_jwks):
        yield (
            "CHAT_JWT_JWKS: must be a file, an https address, or an http address of this machine, "
            "for example CHAT_JWT_JWKS=https://login.example.org/.well-known/jwks.json"
        )
    if settings.jwt_jwks and not (settings.jwt_issuer and settings.jwt_audience):
        yield (
            "CHAT_JWT_JWKS: needs CHAT_JWT_ISSUER and CHAT_JWT_AUDIENCE, for whoever has these keys signs tokens for "
            "other services too, for example CHAT_JWT_ISSUER=https://login.example.org CHAT_JWT_AUDIENCE=chat-grpc"
        )
    if bool(settings.tls_cert_file) != bool(settings.tls_key_file):
        yield (
            "CHAT_TLS_CERT_FILE and CHAT_TLS_KEY_FILE: must both be set, or neither, "
            "for example CHAT_TLS_CERT_FILE=./certs/server.pem CHAT_TLS_KEY_FILE=./certs/server.key"
        )
    if settings.tls_client_ca_file and not settings.tls_cert_file:
        yield "CHAT_TLS_CLIENT_CA_FILE: needs CHAT_TLS_CERT_FILE and CHAT_TLS_KEY_FILE, for without TLS nobody is asked"
