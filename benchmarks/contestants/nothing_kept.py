"""This server with a storage that keeps nothing: what is left when keeping messages is taken away.

python benchmarks/contestants/nothing_kept.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

from chat_grpc import app, cli
from chat_grpc.domain import Message
from chat_grpc.storage import Batch, Cursor, Expired, Scope, Storage


class NullStorage:
    """Says that it has done what it was asked for; see Storage."""

    async def add(self, message: Message) -> bool:  # noqa: ARG002 (the protocol's signature, as below)
        """Keep nothing."""
        return True

    async def find_request(self, request_key: str) -> Message | None:  # noqa: ARG002
        """Find nothing."""
        return None

    async def settle(self, message: Message) -> None:
        """Keep nothing."""

    async def list_messages(self, scope: Scope, *, limit: int, before: Cursor | None = None) -> list[Message]:  # noqa: ARG002
        """Find nothing."""
        return []

    async def delete_messages(self, scope: Scope) -> int:  # noqa: ARG002
        """Find nothing."""
        return 0

    async def expire(self, before: datetime, *, limit: int) -> Expired:  # noqa: ARG002
        """Find nothing."""
        return Expired()

    async def count(self) -> int:
        """Find nothing."""
        return 0

    async def scan(self, after: str = "", *, limit: int) -> Batch:  # noqa: ARG002
        """Find nothing."""
        return Batch([], "")

    async def put(self, messages: Sequence[Message]) -> int:
        """Keep nothing."""
        return len(messages)

    async def secret(self, name: str) -> bytes:
        """See Storage."""
        return name.encode()

    async def ping(self) -> None:
        """Be well."""

    async def close(self) -> None:
        """Have nothing to close."""


async def open_storage(*_: object, **__: object) -> Storage:
    """Open what keeps nothing."""
    return NullStorage()


if __name__ == "__main__":
    # The server has no setting for this, and is to have none.
    app.open_storage = open_storage
    sys.exit(cli.main(["serve"]))
