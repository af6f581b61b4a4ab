"""Writes that hang together: all of them are done, or none."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from chat_grpc.domain import Message
from chat_grpc.storage.dynamodb.client import Client
from chat_grpc.storage.dynamodb.items import SETTLED, Item, message_key, request_key, settled
from chat_grpc.storage.dynamodb.table import EXPIRES

CONDITION_FAILED = "ConditionalCheckFailed"
_PASSING = frozenset({"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"})
"""Why a transaction may be cancelled that is worth trying again."""
_TRIES = 5
FIRST_PAUSE = 0.02
"""Seconds before the first new try; each further one comes twice as late."""
_BATCH = 25
"""How many items one BatchWriteItem takes."""


async def together(client: Client, writes: list[Item]) -> list[Item] | None:
    """Do all the writes or none.

    What comes in the way of other transactions is tried again, a little later each time.

    Returns:
        None if they were done; else, for each write, why it was not: ``Code``,
        and ``Item`` where a condition failed that asked for it.

    Raises:
        BotoCoreError, ClientError: DynamoDB can't be reached, or is too busy.
    """
    for attempt in range(_TRIES):
        try:
            await client.transact_write_items(TransactItems=writes)
        except ClientError as error:
            reasons: list[Item] = error.response.get("CancellationReasons", [])
            if any(reason.get("Code") == CONDITION_FAILED for reason in reasons):
                return reasons
            passing = any(reason.get("Code") in _PASSING for reason in reasons)
            if not passing or attempt == _TRIES - 1:
                raise
        else:
            return None
        await asyncio.sleep(_spread(FIRST_PAUSE * 2**attempt))
    raise AssertionError  # the last try returns or raises


def failed(reason: Mapping[str, Any]) -> bool:
    """Tell whether a write's condition failed."""
    return bool(reason.get("Code") == CONDITION_FAILED)


def settling(table: str, message: Message, *, only_pending: bool = False) -> Item:
    """Return the update that keeps how a message ended, if it is still there (and pending, where that is asked for)."""
    values = settled(message)
    gone = [name for name in SETTLED if name not in values]
    gone.append("server")
    if message.request_key == "":
        gone.append("request_key")
    condition = "attribute_exists(pk)"
    marks = {f":{name}": value for name, value in values.items()}
    if only_pending:
        condition = "#status = :pending"
        marks[":pending"] = {"S": "pending"}
    return {
        "TableName": table,
        "Key": message_key(message),
        "UpdateExpression": f"SET {', '.join(f'#{name} = :{name}' for name in values)} "
        f"REMOVE {', '.join(f'#{name}' for name in gone)}",
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {f"#{name}": name for name in (*values, *gone)},
        "ExpressionAttributeValues": marks,
    }


def letting_go(table: str, key: str, place: str) -> Item:
    """Return the deletion of a request's pointer, unless it points elsewhere than to ``place`` by now."""
    return {
        "TableName": table,
        "Key": request_key(key),
        "ConditionExpression": "attribute_not_exists(pk) OR #place = :place",
        "ExpressionAttributeNames": {"#place": "place"},
        "ExpressionAttributeValues": {":place": {"S": place}},
    }


def put_if_free(table: str, item: Item) -> Item:
    """Return the writing of an item whose key is free, or held by what has expired; it tells who holds it."""
    return {
        "TableName": table,
        "Item": item,
        "ConditionExpression": "attribute_not_exists(pk) OR #expires < :now",
        "ExpressionAttributeNames": {"#expires": EXPIRES},
        "ExpressionAttributeValues": {":now": {"N": str(int(time.time()))}},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


async def delete_batch(client: Client, table: str, keys: Iterable[Item]) -> None:
    """Delete items by their keys, whether they are there or not."""
    waiting = [{"DeleteRequest": {"Key": key}} for key in keys]
    pause = FIRST_PAUSE
    while waiting:
        answer = await client.batch_write_item(RequestItems={table: waiting[:_BATCH]})
        left = answer.get("UnprocessedItems", {}).get(table, [])
        waiting = left + waiting[_BATCH:]
        if left:
            pause = await slow_down(pause)


async def slow_down(pause: float) -> float:
    """Wait before a batch's rest is asked for again, and return how long to wait the next time.

    Raises:
        TimeoutError: that has been long enough.
    """
    longest = 1.0
    if pause > longest:
        raise TimeoutError
    await asyncio.sleep(_spread(pause))
    return pause * 2


def _spread(pause: float) -> float:
    """Return a pause of another length for everybody, so that those who met don't meet again."""
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 (nothing secret)
