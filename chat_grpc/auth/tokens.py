"""JSON Web Tokens: who signed one, for whom, until when, and what its bearer may do."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from cachetools import LRUCache

from chat_grpc.conversation.rules import is_user_id
from chat_grpc.domain import Identity
from chat_grpc.errors import Unauthenticated
from chat_grpc.settings import Secret

LEEWAY = 30
"""Seconds by which clocks may differ."""
MAX_LENGTH = 6_000
"""Characters. Longer ones are refused unread; above 8 KiB in all, grpc refuses a call's metadata itself."""
REMEMBERED = 10_000
"""Tokens that have been checked."""


class Keys(Protocol):
    """What signatures are checked with. ``algorithms`` are those that these keys are for, and no other's."""

    @property
    def algorithms(self) -> frozenset[str]:
        """The algorithms."""

    def generation(self) -> int:
        """Return a number that changes when the keys do."""

    async def find(self, kid: str, algorithm: str) -> Any:
        """Return the key of an id, None if there is none."""

    async def open(self) -> None:
        """Make ready."""

    async def close(self) -> None:
        """Let go."""


class SecretKey:
    """One secret for all tokens, whatever key they name."""

    algorithms = frozenset({"HS256"})

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    def generation(self) -> int:
        """Return 0: it stays the same."""
        return 0

    async def find(self, kid: str, algorithm: str) -> bytes:  # noqa: ARG002 (there is one key)
        """Return the secret."""
        return self._secret.reveal().encode()

    async def open(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _Checked:
    """The tokens that were found good under one generation of keys, by the digest of their text, with their ends."""

    generation: int = -1
    tokens: LRUCache[bytes, tuple[Identity, float]] = field(default_factory=lambda: LRUCache(REMEMBERED))


class Tokens:
    """Checks tokens. What was checked once is remembered until it ends, or until the keys change.

    An algorithm leads to the one kind of key that is for it, never the other
    way round, so that a public key can't be passed off as a secret. What a
    token's header says of where its key may be found is not read.

    Args:
        keys: what signatures are checked with, each for algorithms of its own.
        issuer: whose tokens count; "" takes those of every issuer who has the key.
        audience: whom they must be meant for; "" takes those that name nobody.
        user_claim: the claim that is the user's id.
    """

    def __init__(self, keys: Sequence[Keys], *, issuer: str, audience: str, user_claim: str) -> None:
        self._keys: Mapping[str, Keys] = {algorithm: each for each in keys for algorithm in each.algorithms}
        self._issuer = issuer
        self._audience = audience
        self._user_claim = user_claim
        self._checked = {algorithm: _Checked() for algorithm in self._keys}

    async def verify(self, token: str) -> Identity:
        """Return whose token it is.

        Raises:
            Unauthenticated: it is not good, or not any more.
            Unavailable: that can't be told now.
        """
        if len(token) > MAX_LENGTH:
            raise Unauthenticated(f"the token is longer than {MAX_LENGTH:,} characters", reason="TOKEN_INVALID")
        digest = hashlib.sha256(token.encode()).digest()
        for algorithm, checked in self._checked.items():
            generation = self._keys[algorithm].generation()
            if generation != checked.generation:
                checked.tokens.clear()
                checked.generation = generation
            elif known := checked.tokens.get(digest):
                if time.time() < known[1]:
                    return known[0]
                del checked.tokens[digest]
        algorithm, claims = await self._claims(token)
        identity = self._identity(claims)
        self._checked[algorithm].tokens[digest] = (identity, float(claims["exp"]) + LEEWAY)
        return identity

    async def open(self) -> None:
        """Have the library loaded and the keys read, so that no request waits for them."""
        await asyncio.to_thread(importlib.import_module, "jwt")
        for keys in set(self._keys.values()):
            await keys.open()

    async def close(self) -> None:
        """Let go of the keys."""
        for keys in set(self._keys.values()):
            await keys.close()

    async def _claims(self, token: str) -> tuple[str, dict[str, Any]]:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid", "")
            # "crit" names what must be understood (RFC 7515, 4.1.11), and nothing of that kind is here.
            if (
                not isinstance(algorithm, str)
                or algorithm not in self._keys
                or not isinstance(kid, str)
                or "crit" in header
            ):
                raise _invalid()
            key = await self._keys[algorithm].find(kid, algorithm)
            if key is None:
                raise Unauthenticated("the token is signed with a key that is not known", reason="TOKEN_KEY_UNKNOWN")
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer or None,
                audience=self._audience or None,
                leeway=timedelta(seconds=LEEWAY),
                options={"require": ["exp", self._user_claim]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired; get a new one", reason="TOKEN_EXPIRED") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("the token is not valid yet", reason="TOKEN_NOT_YET_VALID") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated("the token is meant for another service", reason="TOKEN_WRONG_AUDIENCE") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated("the token is of another issuer", reason="TOKEN_WRONG_ISSUER") from None
        # Whatever a stranger may send: JSON that is nested by the thousand, numbers that are none.
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise _invalid() from None
        return algorithm, claims

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        user_id = claims[self._user_claim]
        if not isinstance(user_id, str) or not is_user_id(user_id):
            raise Unauthenticated(
                f"the token's {self._user_claim} can't be a user_id, which is 3 to 100 characters of A-Z a-z 0-9 . _ @ : -",
                reason="TOKEN_USER_UNFIT",
            )
        return Identity(user_id, _scopes(claims))


def sign(claims: Mapping[str, Any], secret: Secret) -> str:
    """Return a token, signed with a secret (HS256)."""
    import jwt

    return jwt.encode(dict(claims), secret.reveal(), algorithm="HS256")


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return what the bearer may do: words in ``scope`` (RFC 8693), or in ``scp``, as some issuers have it."""
    given = claims.get("scope", claims.get("scp", ""))
    words = given.split() if isinstance(given, str) else given
    return frozenset(word for word in words if isinstance(word, str)) if isinstance(words, list) else frozenset()


def _invalid() -> Unauthenticated:
    return Unauthenticated("the token is not one of this service's, or was changed", reason="TOKEN_INVALID")
