"""Choosing the storage that CHAT_DATABASE_URL names."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from chat_grpc.errors import StorageUnavailable
from chat_grpc.settings import Settings
from chat_grpc.storage import Storage

PAGE_TOKENS = "page-tokens"
"""The name of the secret that page tokens are signed with."""


@dataclass(frozen=True, slots=True)
class OpenedStorage:
    """A storage that is open, and what page tokens over it are signed with."""

    storage: Storage
    page_token_secret: bytes


async def open_storage(settings: Settings) -> OpenedStorage:
    """Open the storage, and find what page tokens are signed with: what the settings say, else what it keeps itself.

    Raises:
        StorageUnavailable: it can't be opened.
    """
    given = settings.page_token_secret.reveal().encode()
    if settings.database_url.startswith("dynamodb://"):
        return await _open_dynamodb(settings, given)
    from chat_grpc.storage.secret_file import read_or_make
    from chat_grpc.storage.sqlite import SQLiteStorage

    path = Path(settings.database_url.partition("///")[2])
    sqlite = await SQLiteStorage.open(path)
    try:
        return OpenedStorage(sqlite, given or await asyncio.to_thread(read_or_make, Path(f"{path}-{PAGE_TOKENS}")))
    except BaseException:
        await sqlite.close()
        raise


async def _open_dynamodb(settings: Settings, given: bytes) -> OpenedStorage:
    try:
        # Amazon's packages take half a second to import, and are not installed everywhere.
        from chat_grpc.storage.dynamodb.storage import DynamoDBStorage
    except ImportError as error:
        raise StorageUnavailable(
            "DynamoDB needs further packages; install them with pip install 'chat-grpc[dynamodb]'"
        ) from error
    from chat_grpc.storage.dynamodb.address import Address

    address = Address.parse(settings.database_url)
    dynamodb = await DynamoDBStorage.open(address, retention_days=settings.retention_days)
    try:
        return OpenedStorage(dynamodb, given or await dynamodb.secret(PAGE_TOKENS))
    except BaseException:
        await dynamodb.close()
        raise
