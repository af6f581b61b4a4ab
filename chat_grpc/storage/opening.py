"""Which storage a URL names."""

from __future__ import annotations

from pathlib import Path

from chat_grpc.errors import StorageUnavailable
from chat_grpc.settings import Settings
from chat_grpc.storage import Storage
from chat_grpc.storage.sqlite import SQLiteStorage


async def open_storage(settings: Settings, *, serving: bool = True, create: bool = True) -> Storage:
    """Open the storage that ``database_url`` names.

    Args:
        settings: where it is, and what it promises.
        serving: whether this is the server; an admin command leaves alone what a server is working on.
        create: whether it is made if it is missing.

    Raises:
        StorageUnavailable: it can't be opened.
    """
    if settings.database_url.startswith("dynamodb://"):
        return await _open_dynamodb(settings, serving=serving)
    return await SQLiteStorage.open(
        sqlite_path(settings.database_url), synchronous=settings.sqlite_synchronous, serving=serving, create=create
    )


def sqlite_path(url: str) -> Path:
    """Return the file that a sqlite URL names."""
    return Path(url.partition("///")[2])


async def _open_dynamodb(settings: Settings, *, serving: bool) -> Storage:
    try:
        # Amazon's packages take a while to import, and are not installed everywhere.
        from chat_grpc.storage.dynamodb.storage import DynamoDBStorage
    except ImportError as error:
        raise StorageUnavailable(
            "DynamoDB needs further packages; install them with pip install 'chat-grpc[dynamodb]'"
        ) from error
    from chat_grpc.storage.dynamodb.address import Address

    try:
        address = Address.parse(settings.database_url)
    except ValueError as error:  # settings were checked; an admin command's --database was not
        raise StorageUnavailable(f"the database can't be opened: {error}") from None
    return await DynamoDBStorage.open(address, retention_days=settings.retention_days, serving=serving)
