"""``chat-grpc admin create-table``: make the DynamoDB table that CHAT_DATABASE_URL names."""

from __future__ import annotations

import asyncio

from chat_grpc.settings import Settings
from chat_grpc.storage.dynamodb.address import SCHEME, Address
from chat_grpc.terminal.admin.running import CommandError, say


def run(settings: Settings) -> None:
    """Make the table unless it is there.

    Raises:
        CommandError: the URL names no table.
        StorageUnavailable: the table can't be made.
    """
    if not settings.database_url.startswith(f"{SCHEME}://"):
        raise CommandError("CHAT_DATABASE_URL names no table; set it to dynamodb://TABLE?region=REGION")
    try:
        address = Address.parse(settings.database_url)
    except ValueError as error:
        raise CommandError(f"--database: {error}") from None
    try:
        from chat_grpc.storage.dynamodb.table import create_table
    except ImportError:
        raise CommandError("DynamoDB needs further packages; pip install 'chat-grpc[dynamodb]'") from None
    made = asyncio.run(create_table(address))
    say(f"{address.table}: {'made' if made else 'is there already'}")
