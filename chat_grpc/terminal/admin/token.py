"""``chat-grpc admin token``: a token for development, as an identity provider would sign one."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from chat_grpc.auth import tokens
from chat_grpc.conversation.rules import check_user_id
from chat_grpc.settings import Settings

USAGE = 2


def run(settings: Settings, user: str, scopes: Sequence[str], seconds: int) -> int:
    """Print a token that is good for so many seconds, and return the exit code."""
    if not settings.jwt_secret:
        return _fail("CHAT_JWT_SECRET is not set; tokens that are checked with CHAT_JWT_JWKS come from their issuer")
    for fault in check_user_id(user):
        return _fail(f"--user {fault.description}")
    now = int(time.time())
    claims: dict[str, Any] = {settings.jwt_user_claim: user, "iat": now, "exp": now + seconds, "jti": uuid.uuid4().hex}
    if scopes:
        claims["scope"] = " ".join(scopes)
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    print(tokens.sign(claims, settings.jwt_secret))
    return 0


def _fail(why: str) -> int:
    print(f"chat-grpc: {why}", file=sys.stderr)
    return USAGE
