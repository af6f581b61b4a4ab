"""Which servers are alive: each says so every few seconds, and is believed a little longer.

A pending message names the server that answers it. Once that server is not
alive any more, whoever reads the message knows that nobody is going to finish
it. So no server has to look for the messages of a dead one, none marks those of
a living one, and a message costs no further write.
"""

from __future__ import annotations

import secrets
import time

from chat_grpc.storage.dynamodb.client import Client
from chat_grpc.storage.dynamodb.table import EXPIRES

BEAT_SECONDS = 5.0
LEASE_SECONDS = 20.0
"""How long a server is believed to be alive; the clocks of two servers may differ by what is left of it after a beat."""
_FORGET_SECONDS = 86_400


class Servers:
    """This server among the others that use the table."""

    def __init__(self, client: Client, table: str) -> None:
        self.id = secrets.token_hex(8)
        self._client = client
        self._table = table
        self._until: dict[str, float] = {}
        self._beat_at = float("-inf")

    async def beat(self, *, at_least_every: float = 0.0) -> None:
        """Say that this server is alive, unless it did within the last ``at_least_every`` seconds.

        Raises:
            BotoCoreError, ClientError: it could not be said.
        """
        if time.monotonic() - self._beat_at < at_least_every:
            return
        now = time.time()
        await self._client.put_item(
            TableName=self._table,
            Item={
                **_key(self.id),
                "until": {"N": f"{now + LEASE_SECONDS:.3f}"},
                EXPIRES: {"N": str(int(now + _FORGET_SECONDS))},
            },
        )
        self._beat_at = time.monotonic()

    async def leave(self) -> None:
        """Say that this server is not alive any more."""
        await self._client.delete_item(TableName=self._table, Key=_key(self.id))

    async def alive(self, server: str) -> bool:
        """Tell whether a server is alive; one that has not said so for a while is not."""
        if server == self.id or self._until.get(server, 0.0) > time.time():
            return True
        found = await self._client.get_item(TableName=self._table, Key=_key(server), ConsistentRead=True)
        until = float(found["Item"]["until"]["N"]) if "Item" in found else 0.0
        if until <= time.time():
            self._until.pop(server, None)
            return False
        self._until[server] = until
        return True


def _key(server: str) -> dict[str, dict[str, str]]:
    return {"pk": {"S": f"V#{server}"}, "sk": {"S": "V"}}
