"""The storage over the table."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError
from msgspec.structs import replace

from chat_grpc.domain import Message, Status
from chat_grpc.errors import StorageUnavailable
from chat_grpc.storage import Batch, Cursor, Expired, Scope
from chat_grpc.storage.dynamodb import table as tables
from chat_grpc.storage.dynamodb import writes
from chat_grpc.storage.dynamodb.address import Address
from chat_grpc.storage.dynamodb.client import (
    FAULTS,
    Client,
    code_of,
    condition_failed,
    connect,
    guard,
    suppress_condition,
)
from chat_grpc.storage.dynamodb.items import (
    MAX_ITEM_BYTES,
    Item,
    message_item,
    message_key,
    message_of,
    request_key,
    secret_key,
    session_key,
    size_of,
    sort_key,
    time_text,
    user_key,
)
from chat_grpc.storage.dynamodb.servers import BEAT_SECONDS, Servers
from chat_grpc.storage.dynamodb.table import EXPIRES
from chat_grpc.telemetry import logs

log = logs.get(__name__)

SECRET_BYTES = 32
_READ_AT_ONCE = 100
"""How many items one BatchGetItem takes."""
_DELETED_AT_ONCE = 100
_PUT_AT_ONCE = 16
_PING_SECONDS = 1.0
"""A ping writes, but not more often than this."""
_MAX_DOUBTFUL = 10_000


class DynamoDBStorage:
    """A history in one table; ``open`` makes one of these.

    Any number of servers use the table at the same time. What a reader is told
    is what was written last, as every read is a consistent one.
    """

    def __init__(self, client: Client, address: Address, *, retention_days: float) -> None:
        self._client = client
        self._table = address.table
        self._retention = timedelta(days=retention_days)
        self._servers = Servers(client, address.table)
        self._doubtful: dict[str, Message] = {}
        self._stack = AsyncExitStack()
        self._beating: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, address: Address, *, retention_days: float = 0.0, serving: bool = True) -> DynamoDBStorage:
        """Connect, make the table if that is allowed, and tell other servers that this one is alive.

        Args:
            address: the table.
            retention_days: days after which a message is deleted; 0 keeps it for ever.
            serving: whether this is a server; another program does not count among those that are alive.

        Raises:
            StorageUnavailable: the table can't be used, or is missing.
        """
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(connect(address))
                storage = cls(client, address, retention_days=retention_days)
                await storage._begin(address, serving=serving)
            except FAULTS as error:
                raise tables.unreachable(error) from error
            if serving:
                storage._beating = asyncio.ensure_future(storage._keep_alive())
            storage._stack = stack.pop_all()
        return storage

    async def close(self) -> None:
        """Tell other servers that this one is gone, and close the connection."""
        async with self._stack:
            if self._beating is None:
                return
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
            with suppress(StorageUnavailable), guard("be left"):  # the others find out by themselves
                await self._end_doubtful()
                await self._servers.leave()

    async def add(self, message: Message) -> bool:
        """Put the message and what points to it; see Storage."""
        message = _fitting(message)
        try:
            with guard("keep a message"):
                return await self._put(message)
        except StorageUnavailable:
            self._doubt(message)
            raise

    async def find_request(self, request_key: str) -> Message | None:
        """Follow the pointer; see Storage."""
        with guard("read a message"):
            return await self._find(request_key)

    async def settle(self, message: Message) -> None:
        """Update the message, and free its request's key unless it was completed; see Storage."""
        message = _fitting(message)
        try:
            with guard("keep an answer"):
                await self._settle(message)
        except StorageUnavailable:
            self._doubt(message)
            raise

    async def list_messages(self, scope: Scope, *, limit: int, before: Cursor | None = None) -> list[Message]:
        """Read one page by the key of the session, or of the user and then of the messages; see Storage."""
        horizon = self._horizon()
        found: list[Item] = []
        with guard("read messages"):
            async for items in self._newest_first(scope, limit, before):
                # Their own way of forgetting takes days: what has expired may still be there.
                kept = [item for item in items if item["created_at"]["S"] >= horizon]
                found += kept
                if len(found) >= limit or len(kept) < len(items):
                    break
            return await self._truth(found[:limit])

    async def delete_messages(self, scope: Scope) -> int:
        """Delete one message after the other; see Storage.

        Unlike elsewhere, some may be gone when this fails: then it goes on where it stopped when it is called again.
        """
        deleted = 0
        own = user_key(scope.user_id) if scope.user_id else session_key(scope.session_id)
        with guard("delete messages"):
            async for items in self._query(own, page=_DELETED_AT_ONCE):
                deleted += await self._delete(items)
        return deleted

    async def expire(self, before: datetime, *, limit: int) -> Expired:  # noqa: ARG002 (the table does it by itself)
        """Delete none: DynamoDB does, by the time that each message was given; see Storage."""
        return Expired()

    async def count(self) -> int:
        """Return what DynamoDB last counted, some hours ago; see Storage."""
        with guard("count messages"):
            table = await self._client.describe_table(TableName=self._table)
        return int(table["Table"]["ItemCount"]) // 2  # beside most messages there is a pointer

    async def scan(self, after: str = "", *, limit: int) -> Batch:
        """Read the whole table, a part at a time; see Storage."""
        asked: dict[str, Any] = {
            "TableName": self._table,
            "Limit": limit,
            "ConsistentRead": True,
            "FilterExpression": "begins_with(pk, :session)",
            "ExpressionAttributeValues": {":session": {"S": session_key("")}},
        }
        if after:
            pk, sk = after.split("\n")
            asked["ExclusiveStartKey"] = {"pk": {"S": pk}, "sk": {"S": sk}}
        with guard("read messages"):
            answer = await self._client.scan(**asked)
        last = answer.get("LastEvaluatedKey")
        return Batch(list(map(message_of, answer["Items"])), f"{last['pk']['S']}\n{last['sk']['S']}" if last else "")

    async def put(self, messages: Sequence[Message]) -> int:
        """Put one message after the other; see Storage.

        Unlike elsewhere, some may be kept when this fails: then it goes on where it stopped when it is called again.
        """
        new = 0
        with guard("keep messages"):
            for start in range(0, len(messages), _PUT_AT_ONCE):
                part = map(_fitting, messages[start : start + _PUT_AT_ONCE])
                new += sum(await asyncio.gather(*map(self._put_new, part)))
        return new

    async def ping(self) -> None:
        """Say that this server is alive, which is a write; see Storage."""
        with guard("be written to"):
            await self._servers.beat(at_least_every=_PING_SECONDS)

    async def secret(self, name: str) -> bytes:
        """Return random bytes that all servers of the table share; see Storage."""
        key = secret_key(name)
        with guard("keep a secret"):
            found = await self._get(key)
            if found is None:
                found = key | {"secret": {"B": secrets.token_bytes(SECRET_BYTES)}}
                with suppress_condition():
                    await self._client.put_item(
                        TableName=self._table, Item=found, ConditionExpression="attribute_not_exists(pk)"
                    )
                found = await self._get(key)  # another server's, if it came first
            assert found is not None  # noqa: S101 (nothing deletes it)
            return bytes(found["secret"]["B"])

    # --- beginning, and what goes on beside the calls ---

    async def _begin(self, address: Address, *, serving: bool) -> None:
        try:
            await self._look(serving=serving)
        except ClientError as error:
            if code_of(error) != "ResourceNotFoundException":
                raise
            if not (address.create or address.is_local):
                raise tables.missing(address) from error
            await tables.ensure_table(self._client, self._table)
            log.info("the table was made", table=self._table)
            await self._look(serving=serving)

    async def _look(self, *, serving: bool) -> None:
        """Use the table for the first time."""
        if serving:
            await self._servers.beat()
        else:
            await self._get(secret_key("nothing"))

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            with suppress(StorageUnavailable), guard("be told that this server is alive"):  # a failure was logged
                await self._servers.beat()
                await self._end_doubtful()

    def _doubt(self, message: Message) -> None:
        """Remember a message that may or may not have been kept: the call that was to keep it was broken off.

        Its caller was told that it failed. If the table says otherwise it must not stay so.
        """
        if len(self._doubtful) < _MAX_DOUBTFUL:
            self._doubtful[message.id] = replace(
                message, status=Status.FAILED, error_reason=StorageUnavailable.default_reason, completed_at=_now()
            )

    async def _end_doubtful(self) -> None:
        for message in list(self._doubtful.values()):
            await self._end(message)
            self._doubtful.pop(message.id, None)

    # --- writing ---

    def _puts(self, message: Message) -> list[Item]:
        """Return the writing of a message and of what points to it; of its request's key, if it has one, last."""
        expiry = self._expiry(message)
        item = message_item(message) | expiry
        if message.status is Status.PENDING and self._beating is not None:
            item["server"] = {"S": self._servers.id}
        puts: list[Item] = [{"Put": {"TableName": self._table, "Item": item}}]
        if message.user_id:
            pointer = {"pk": {"S": user_key(message.user_id)}, "sk": {"S": sort_key(message)}}
            pointer["session_id"] = {"S": message.session_id}
            puts.append({"Put": {"TableName": self._table, "Item": pointer | expiry}})
        if message.request_key:
            pointer = request_key(message.request_key)
            pointer |= {"session_id": {"S": message.session_id}, "place": {"S": sort_key(message)}}
            puts.append({"Put": writes.put_if_free(self._table, pointer | expiry)})
        return puts

    async def _put(self, message: Message) -> bool:
        puts = self._puts(message)
        if len(puts) == 1:
            await self._client.put_item(**puts[0]["Put"])
            return True
        reasons = await writes.together(self._client, puts)
        if reasons is None:
            return True
        # A try whose answer was lost may have been done: then the key is this message's own.
        holder = reasons[-1].get("Item", {})
        return bool(holder.get("place", {}).get("S") == sort_key(message))

    async def _put_new(self, message: Message) -> bool:
        """Keep a message unless it is there; without its request's key, if that is another's."""
        puts = self._puts(message)
        puts[0]["Put"]["ConditionExpression"] = "attribute_not_exists(pk)"
        reasons = await writes.together(self._client, puts)
        if reasons is None or writes.failed(reasons[0]):
            return reasons is None
        return await self._put_new(replace(message, request_key=""))

    async def _settle(self, message: Message) -> None:
        """Keep how the message ended, if it is still there."""
        update = writes.settling(self._table, message)
        if message.request_key and message.status is not Status.COMPLETED:
            update = writes.settling(self._table, replace(message, request_key=""))
            release = writes.letting_go(self._table, message.request_key, sort_key(message))
            reasons = await writes.together(self._client, [{"Update": update}, {"Delete": release}])
            if reasons is None or writes.failed(reasons[0]):
                return
            # This server was taken for dead, and the key is another message's by now.
        await self._update(update)

    async def _end(self, message: Message) -> bool:
        """Keep how a message ended if it is still pending, and free its request's key; return whether it was."""
        update = writes.settling(self._table, replace(message, request_key=""), only_pending=True)
        if message.request_key:
            release = writes.letting_go(self._table, message.request_key, sort_key(message))
            reasons = await writes.together(self._client, [{"Update": update}, {"Delete": release}])
            if reasons is None:
                return True
            if writes.failed(reasons[0]):
                return False
        return await self._update(update)

    async def _update(self, update: Item) -> bool:
        try:
            await self._client.update_item(**update)
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True

    async def _delete(self, items: Sequence[Item]) -> int:
        """Delete messages, named by themselves or by their users' pointers, and what points to them.

        The messages go first: what is left if this breaks off points to nothing, which does no harm.

        Returns:
            How many messages there were.
        """
        keys = [{"pk": {"S": session_key(item["session_id"]["S"])}, "sk": item["sk"]} for item in items]
        answers = await asyncio.gather(
            *(self._client.delete_item(TableName=self._table, Key=key, ReturnValues="ALL_OLD") for key in keys)
        )
        old = [message_of(answer["Attributes"]) for answer in answers if answer.get("Attributes")]
        pointers = {item["sk"]["S"]: item["pk"]["S"] for item in items if item["pk"]["S"].startswith(user_key(""))}
        pointers |= {sort_key(message): user_key(message.user_id) for message in old if message.user_id}
        await writes.delete_batch(
            self._client, self._table, [{"pk": {"S": pk}, "sk": {"S": sk}} for sk, pk in pointers.items()]
        )
        await asyncio.gather(*(self._let_go(message) for message in old if message.request_key))
        return len(old)

    async def _let_go(self, message: Message) -> None:
        with suppress_condition():
            await self._client.delete_item(**writes.letting_go(self._table, message.request_key, sort_key(message)))

    # --- reading ---

    async def _get(self, key: Item) -> Item | None:
        answer = await self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        item: Item | None = answer.get("Item")
        return item

    async def _find(self, key: str) -> Message | None:
        pointer = await self._get(request_key(key))
        if pointer is None or _expired(pointer):
            return None
        item = await self._get({"pk": {"S": session_key(pointer["session_id"]["S"])}, "sk": pointer["place"]})
        if item is None:
            # The message was deleted by somebody who did not come to this any more.
            with suppress_condition():
                await self._client.delete_item(**writes.letting_go(self._table, key, pointer["place"]["S"]))
            return None
        found = await self._truth([item])
        return found[0] if found and found[0].request_key == key else None

    async def _truth(self, items: Sequence[Item]) -> list[Message]:
        """Return the messages of items; those that a dead server left pending are interrupted first."""
        messages = [message_of(item) for item in items]
        owners = {
            message.id: item.get("server", {}).get("S", "")
            for message, item in zip(messages, items, strict=True)
            if message.status is Status.PENDING
        }
        if not owners:
            return messages
        named = sorted(set(owners.values()))
        alive = dict(zip(named, await asyncio.gather(*map(self._servers.alive, named)), strict=True))
        true: list[Message] = []
        for message in messages:
            if message.id in owners and not alive[owners[message.id]]:
                if (ended := await self._interrupt(message)) is not None:
                    true.append(ended)
            else:
                true.append(message)
        return true

    async def _interrupt(self, message: Message) -> Message | None:
        """Keep that the server died that was answering; return what is kept then."""
        ended = replace(message, status=Status.INTERRUPTED, error_reason="SERVER_DIED", completed_at=_now())
        if await self._end(ended):
            log.warning("a message was interrupted when its server died", message_id=message.id)
            return replace(ended, request_key="")
        item = await self._get(message_key(message))
        return None if item is None else message_of(item)

    async def _newest_first(self, scope: Scope, limit: int, before: Cursor | None) -> AsyncIterator[list[Item]]:
        """Yield the messages of a scope, a page at a time."""
        start = sort_key(before) if before is not None else ""
        own = user_key(scope.user_id) if scope.user_id else session_key(scope.session_id)
        async for items in self._query(own, page=limit, before=start, newest_first=True):
            yield await self._pointed_to(items) if scope.user_id else items

    async def _pointed_to(self, pointers: Sequence[Item]) -> list[Item]:
        """Return the messages that are pointed to, in the order of the pointers, without those that are gone."""
        keys = [{"pk": {"S": session_key(item["session_id"]["S"])}, "sk": item["sk"]} for item in pointers]
        parts = [keys[start : start + _READ_AT_ONCE] for start in range(0, len(keys), _READ_AT_ONCE)]
        found = {
            item["sk"]["S"]: item for items in await asyncio.gather(*map(self._read_batch, parts)) for item in items
        }
        return [found[item["sk"]["S"]] for item in pointers if item["sk"]["S"] in found]

    async def _read_batch(self, keys: list[Item]) -> list[Item]:
        found: list[Item] = []
        pause = writes.FIRST_PAUSE
        while keys:
            answer = await self._client.batch_get_item(
                RequestItems={self._table: {"Keys": keys, "ConsistentRead": True}}
            )
            found += answer["Responses"].get(self._table, [])
            left = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            if len(left) == len(keys):  # else it was only too much for one answer
                pause = await writes.slow_down(pause)
            keys = left
        return found

    async def _query(
        self, pk: str, *, page: int, before: str = "", newest_first: bool = False
    ) -> AsyncIterator[list[Item]]:
        """Yield the items of a pk, a page at a time."""
        asked: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": pk}},
            "ScanIndexForward": not newest_first,
            "ConsistentRead": True,
            "Limit": page,
        }
        if before:
            asked["KeyConditionExpression"] += " AND sk < :before"
            asked["ExpressionAttributeValues"][":before"] = {"S": before}
        while True:
            answer = await self._client.query(**asked)
            if answer["Items"]:
                yield answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return
            asked["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    # --- forgetting ---

    def _expiry(self, message: Message) -> Item:
        """Return the attribute by which DynamoDB deletes an item that is no longer wanted."""
        if not self._retention:
            return {}
        return {EXPIRES: {"N": str(int((message.created_at + self._retention).timestamp()))}}

    def _horizon(self) -> str:
        """Return the time, as items hold it, before which messages are no longer shown."""
        return time_text(_now() - self._retention) if self._retention else ""


def _now() -> datetime:
    return datetime.now(UTC)


def _expired(item: Item) -> bool:
    return EXPIRES in item and int(item[EXPIRES]["N"]) < time.time()


def _fitting(message: Message) -> Message:
    """Return the message as it fits into an item: without its passages, if it has to be.

    Raises:
        StorageUnavailable: not even so; the bounds of questions and answers keep that from happening.
    """
    if size_of(message) <= MAX_ITEM_BYTES:
        return message
    log.warning("a message is kept without its passages, which are too large", message_id=message.id)
    message = replace(message, passages=())
    if size_of(message) > MAX_ITEM_BYTES:
        raise StorageUnavailable(
            f"the database can't keep a message and answer of more than {MAX_ITEM_BYTES:,} bytes; ask for a shorter one",
            reason="MESSAGE_TOO_LARGE",
            metadata={"store": "dynamodb"},
        )
    return message
