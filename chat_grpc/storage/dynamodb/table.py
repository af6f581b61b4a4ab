"""Making the table."""

from __future__ import annotations

from botocore.exceptions import ClientError, WaiterError

from chat_grpc.errors import StorageUnavailable
from chat_grpc.storage.dynamodb.address import Address
from chat_grpc.storage.dynamodb.client import FAULTS, Client, cause_of, code_of, connect

EXPIRES = "expires"
"""The attribute by which DynamoDB deletes items of itself: seconds since 1970."""
_POLL = {"Delay": 1, "MaxAttempts": 60}
"""Seconds between two looks at a table that is being made, and how many of them."""


async def create_table(address: Address) -> bool:
    """Make the table unless it is there; return whether it was made.

    Raises:
        StorageUnavailable: it can't be made, or does not become ready within a minute.
    """
    try:
        async with connect(address) as client:
            return await ensure_table(client, address.table)
    except FAULTS as error:
        raise unreachable(error) from error


async def ensure_table(client: Client, table: str) -> bool:
    """Make the table, billed by request, and have it forget what expires; return whether it was made."""
    made = await _create(client, table)
    try:
        await client.get_waiter("table_exists").wait(TableName=table, WaiterConfig=_POLL)
    except WaiterError as error:
        raise StorageUnavailable(
            f"the table {table} does not become ready; look at it in Amazon's console", metadata={"store": "dynamodb"}
        ) from error
    await _forget_expired(client, table)
    return made


async def _create(client: Client, table: str) -> bool:
    try:
        await client.create_table(
            TableName=table,
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            BillingMode="PAY_PER_REQUEST",
        )
    except ClientError as error:
        if code_of(error) != "ResourceInUseException":  # it exists, or another server is making it
            raise
        return False
    return True


async def _forget_expired(client: Client, table: str) -> None:
    state = await client.describe_time_to_live(TableName=table)
    if state["TimeToLiveDescription"]["TimeToLiveStatus"] in {"ENABLED", "ENABLING"}:
        return
    try:
        await client.update_time_to_live(
            TableName=table, TimeToLiveSpecification={"Enabled": True, "AttributeName": EXPIRES}
        )
    except ClientError as error:
        if code_of(error) != "ValidationException":  # another server has just done it
            raise


def missing(address: Address) -> StorageUnavailable:
    """Return what to say when the table is not there and may not be made."""
    return StorageUnavailable(
        f"the DynamoDB table {address.table} does not exist; make it with `chat-grpc admin create-table`, "
        "or allow the server to by create=true in CHAT_DATABASE_URL",
        metadata={"store": "dynamodb"},
    )


def unreachable(error: Exception) -> StorageUnavailable:
    """Return what to say when the table can't be used at the start."""
    return StorageUnavailable(
        f"the DynamoDB table can't be used ({cause_of(error)}); check CHAT_DATABASE_URL, the credentials and the region",
        metadata={"store": "dynamodb"},
    )
