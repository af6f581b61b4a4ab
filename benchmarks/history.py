"""How long a page of the history takes, of a user with very many messages against one with few.

Fills a SQLite file and a table of DynamoDB Local with both users, lists the
newest page, one from the middle and the oldest one of each in turn, and prints
the medians and their ratio. Then it walks through many pages and prints by how
much this process has grown meanwhile. Exits with 1 if a ratio is over the limit
or the process grows. DynamoDB Local keeps its table in memory here; a million
messages take it some six minutes.

    python benchmarks/history.py [--messages N] [--rounds N] [--only sqlite|dynamodb]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psutil

from chat_grpc.domain import FinishReason, Message, Status, Usage
from chat_grpc.settings import load
from chat_grpc.storage import Cursor, Scope, Storage
from chat_grpc.storage.dynamodb.address import Address
from chat_grpc.storage.dynamodb.client import connect
from chat_grpc.storage.dynamodb.items import message_item, sort_key, user_key
from chat_grpc.storage.opening import open_storage
from tests.support.dynamodb import dynamodb_local

LIMIT = 1.3
GROWTH_MEGABYTES = 20.0
PAGE = 20
FEW = 1_000
IN_SESSION = 50
AT_ONCE = 12
"""Messages of one BatchWriteItem, which takes 25 items: each message comes with a pointer."""
WORKERS = 4
WALKED_PAGES = 500
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def message(user: str, number: int) -> Message:
    """Return a small message; each comes a second after the one before."""
    made = BEGAN + timedelta(seconds=number)
    return Message(
        id=f"msg_{int(made.timestamp() * 1000):012x}{number:016}{user:_>4}",
        user_id=user,
        session_id=f"{user}-{number // IN_SESSION}",
        request_id=f"r{number}",
        message="How do I keep messages?",
        created_at=made,
        answer="In a database. " * 10,
        status=Status.COMPLETED,
        finish_reason=FinishReason.STOP,
        model="local/m",
        usage=Usage(10, 20, 30, 0.0),
        completed_at=made + timedelta(seconds=1),
    )


async def fill_sqlite(storage: Storage, user: str, count: int) -> None:
    """Keep ``count`` messages of a user."""
    for start in range(0, count, 1000):
        await storage.put([message(user, number) for number in range(start, min(start + 1000, count))])


async def fill_dynamodb(address: Address, user: str, count: int) -> None:
    """Keep ``count`` messages of a user, past the storage, which would take a transaction for each."""
    starts = iter(range(0, count, AT_ONCE))

    async def work() -> None:
        for start in starts:
            requests = []
            for number in range(start, min(start + AT_ONCE, count)):
                made = message(user, number)
                pointer = {"pk": {"S": user_key(user)}, "sk": {"S": sort_key(made)}}
                pointer["session_id"] = {"S": made.session_id}
                requests += [{"PutRequest": {"Item": item}} for item in (message_item(made), pointer)]
            while requests:
                answer = await client.batch_write_item(RequestItems={address.table: requests})
                requests = answer.get("UnprocessedItems", {}).get(address.table, [])

    async with connect(address) as client:
        await asyncio.gather(*(work() for _ in range(WORKERS)))


@asynccontextmanager
async def sqlite(count: int) -> AsyncIterator[Storage]:
    """A file with both users."""
    with tempfile.TemporaryDirectory() as folder:
        storage = await open_storage(load({"CHAT_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/chat.db"}))
        try:
            for user, messages in (("few", FEW), ("many", count)):
                await fill_sqlite(storage, user, messages)
            yield storage
        finally:
            await storage.close()


@asynccontextmanager
async def dynamodb(count: int) -> AsyncIterator[Storage]:
    """A table with both users."""
    async with dynamodb_local() as endpoint:
        url = f"dynamodb://chat?endpoint_url={endpoint}"
        storage = await open_storage(load({"CHAT_DATABASE_URL": url}))
        try:
            for user, messages in (("few", FEW), ("many", count)):
                await fill_dynamodb(Address.parse(url), user, messages)
            yield storage
        finally:
            await storage.close()


async def page_seconds(storage: Storage, user: str, before: Cursor | None) -> float:
    """Return how long one page takes."""
    began = time.perf_counter()
    page = await storage.list_messages(Scope(user_id=user), limit=PAGE, before=before)
    took = time.perf_counter() - began
    assert len(page) == PAGE  # noqa: S101 (else there is nothing to compare)
    return took


def cursor(user: str, number: int) -> Cursor:
    """Return where the page begins whose newest message has this number."""
    after = message(user, number + 1)
    return Cursor(after.created_at, after.id)


async def compare(name: str, storage: Storage, count: int, rounds: int) -> bool:
    """Print one line for each page; return whether all ratios are within the limit."""
    fine = True
    for page, share in (("newest", None), ("middle", 0.5), ("oldest", 0.0)):
        times: dict[str, list[float]] = {"few": [], "many": []}
        for turn in range(rounds + 10):
            for user, total in (("few", FEW), ("many", count)):
                before = None if share is None else cursor(user, PAGE + int((total - 2 * PAGE) * share))
                took = await page_seconds(storage, user, before)
                if turn >= 10:  # noqa: PLR2004 (what is not counted, to warm up)
                    times[user].append(took)
        few, many = (statistics.median(times[user]) * 1000 for user in ("few", "many"))
        fine &= many / few <= LIMIT
        print(f"{name:9} {page:7} {FEW:>9,}: {few:7.2f} ms  {count:>9,}: {many:7.2f} ms  ratio {many / few:.2f}")
    return fine


async def walk(name: str, storage: Storage) -> bool:
    """Read many pages one after the other; return whether this process has stayed about as large as it was."""
    process = psutil.Process()
    before: Cursor | None = None
    sizes = []
    for page in range(WALKED_PAGES):
        messages = await storage.list_messages(Scope(user_id="many"), limit=PAGE, before=before)
        before = Cursor(messages[-1].created_at, messages[-1].id)
        if page % 50 == 0:
            sizes.append(process.memory_info().rss / 1e6)
    growth = sizes[-1] - sizes[1]
    print(f"{name:9} {WALKED_PAGES} pages one after the other: {sizes[-1]:.0f} MB, {growth:+.1f} MB since the 50th")
    return growth <= GROWTH_MEGABYTES


async def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description="measure how long a page of a long history takes")
    parser.add_argument(
        "--messages", type=int, default=1_000_000, help="of the user who has many (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=300, help="lists of each page (default: %(default)s)")
    parser.add_argument("--only", choices=["sqlite", "dynamodb"], help="one of the storages")
    options = parser.parse_args()
    fine = True
    for name, opened in (("sqlite", sqlite), ("dynamodb", dynamodb)):
        if options.only in {None, name}:
            began = time.perf_counter()
            async with opened(options.messages) as storage:
                print(f"{name:9} filled in {time.perf_counter() - began:.0f} s")
                fine &= await compare(name, storage, options.messages, options.rounds)
                fine &= await walk(name, storage)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
