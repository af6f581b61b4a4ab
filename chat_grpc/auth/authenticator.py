"""Telling who calls by the credential that was shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chat_grpc.auth import jwks, keys
from chat_grpc.auth.rules import EXAMPLE_SECRET
from chat_grpc.auth.tokens import Keys, SecretKey, Tokens
from chat_grpc.domain import Identity
from chat_grpc.errors import Unauthenticated, Unavailable
from chat_grpc.settings import Settings


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Takes API keys, tokens, or both; None where one of them is not taken."""

    tokens: Tokens | None
    api_keys: keys.KeyFile | None

    async def authenticate(self, credential: str) -> Identity:
        """Return who shows a credential.

        Raises:
            Unauthenticated: it is not good.
            Unavailable: that can't be told now.
        """
        if credential.startswith(keys.PREFIX):
            if self.api_keys is not None:
                return self.api_keys.verify(credential)
            raise Unauthenticated("API keys are not taken here; show a token", reason="API_KEY_INVALID")
        if self.tokens is not None:
            return await self.tokens.verify(credential)
        raise Unauthenticated("tokens are not taken here; show an API key", reason="TOKEN_INVALID")

    async def open(self) -> None:
        """Make ready what a first request would wait for."""
        if self.tokens is not None:
            await self.tokens.open()

    async def close(self) -> None:
        """Let go of what is open."""
        if self.tokens is not None:
            await self.tokens.close()


def choose(settings: Settings) -> Authenticator | None:
    """Return what the settings ask for; None where nobody has to say who calls.

    Raises:
        Unavailable: what it would check credentials with is missing.
    """
    if settings.auth == "off":
        return None
    return Authenticator(
        _tokens(settings) if settings.auth in ("jwt", "both") else None,
        _api_keys(settings) if settings.auth in ("keys", "both") else None,
    )


def _tokens(settings: Settings) -> Tokens:
    accepted: list[Keys] = []
    if settings.jwt_secret:
        if settings.jwt_secret.reveal() == EXAMPLE_SECRET:
            raise Unavailable("CHAT_JWT_SECRET is the example of the documentation, which everybody knows")
        accepted.append(SecretKey(settings.jwt_secret))
    if settings.jwt_jwks:
        source = jwks.source_of(settings.jwt_jwks)
        if isinstance(source, jwks.FileSource):
            try:
                jwks.parse(source.read())
            except (OSError, ValueError, RecursionError):
                raise Unavailable(
                    "the file that CHAT_JWT_JWKS names can't be read, or holds no key that is fit for RS256 or ES256"
                ) from None
        accepted.append(jwks.RotatingKeys(source))
    return Tokens(
        accepted, issuer=settings.jwt_issuer, audience=settings.jwt_audience, user_claim=settings.jwt_user_claim
    )


def _api_keys(settings: Settings) -> keys.KeyFile:
    path = Path(settings.api_keys_file)
    if not path.is_file():
        raise Unavailable(
            f"the file of API keys {path} does not exist; `chat-grpc admin key add NAME` makes it with a first key"
        )
    return keys.KeyFile(path)
