"""The history in DynamoDB: what it costs, what several servers see of each other, what it does when the network fails."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from msgspec.structs import replace

from chat_grpc.domain import Passage, Status
from chat_grpc.errors import StorageUnavailable
from chat_grpc.settings import SettingsError, load
from chat_grpc.storage import Cursor, Scope, Storage
from chat_grpc.storage.dynamodb import servers
from chat_grpc.storage.dynamodb.address import Address
from chat_grpc.storage.dynamodb.client import ATTEMPTS, connect
from chat_grpc.storage.dynamodb.storage import DynamoDBStorage
from tests.storage.stores import SESSION, T0, Store, dynamodb_store, message
from tests.storage.test_contract import ANNA, all_ids, completed
from tests.support.dynamodb_proxy import Fault, Proxy, cut_after, cut_before, cut_within, delayed, proxy, throttle

KEYED = message(1, request_key="key")


@pytest.fixture
async def between(dynamodb: Store) -> AsyncIterator[Proxy]:
    """A proxy in front of the server that ``dynamodb`` is a table of."""
    async with proxy(Address.parse(dynamodb.url).endpoint_url) as running:
        yield running


@pytest.fixture
async def storage(between: Proxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Storage]:
    """A new table, reached through ``between``; what is done every few seconds is left to the tests."""
    monkeypatch.setattr("chat_grpc.storage.dynamodb.storage.BEAT_SECONDS", 3600.0)
    async with dynamodb_store("proxied", between.url).open() as opened:
        between.take_calls()
        yield opened


# --- what each operation costs ---


async def test_one_write_before_the_model_is_asked_and_one_after(storage: Storage, between: Proxy) -> None:
    await storage.add(KEYED)
    assert between.take_calls() == ["TransactWriteItems"]
    await storage.settle(completed(KEYED))
    assert between.take_calls() == ["UpdateItem"]
    assert not await storage.add(message(2, request_key="key"))
    assert between.take_calls() == ["TransactWriteItems"]
    await storage.add(message(3, request_key="other"))
    between.take_calls()
    await storage.settle(message(3, request_key="other", status=Status.FAILED, completed_at=T0))
    assert between.take_calls() == ["TransactWriteItems"]
    await storage.add(message(4, user_id=""))
    assert between.take_calls() == ["PutItem"]


async def test_round_trips_of_reading(storage: Storage, between: Proxy) -> None:
    for number in range(5):
        await storage.add(completed(message(number, request_key=f"k{number}")))
    between.take_calls()
    await storage.list_messages(Scope(session_id=SESSION), limit=3)
    assert between.take_calls() == ["Query"]
    await storage.list_messages(ANNA, limit=3)
    assert between.take_calls() == ["Query", "BatchGetItem"]
    await storage.list_messages(ANNA, limit=3, before=Cursor(message(3).created_at, message(3).id))
    assert between.take_calls() == ["Query", "BatchGetItem"]
    await storage.list_messages(Scope(user_id="nobody"), limit=3)
    assert between.take_calls() == ["Query"]
    await storage.find_request("k1")
    assert between.take_calls() == ["GetItem", "GetItem"]
    await storage.find_request("unknown")
    assert between.take_calls() == ["GetItem"]


async def test_nothing_that_serves_scans(storage: Storage, between: Proxy) -> None:
    for number in range(30):
        await storage.add(message(number, request_key=f"k{number}"))
    await storage.settle(completed(message(3, request_key="k3")))
    await all_ids(storage, ANNA, size=7)
    await storage.find_request("k1")
    await storage.delete_messages(Scope(session_id=SESSION))
    await storage.secret("a")
    await storage.ping()
    assert "Scan" not in between.take_calls()


async def test_pings_do_not_write_more_than_once_a_second(dynamodb: Store) -> None:
    async with dynamodb.open() as opened:
        assert isinstance(opened, DynamoDBStorage)
        seen: list[str] = []
        opened._client.meta.events.register("before-call.dynamodb", lambda model, **_: seen.append(model.name))
        opened._servers._beat_at = float("-inf")
        await asyncio.gather(*(opened.ping() for _ in range(3)))
        for _ in range(10):
            await opened.ping()
        assert len(seen) <= 3


# --- several servers ---


async def test_a_start_leaves_alone_what_another_server_answers(dynamodb: Store) -> None:
    async with dynamodb.open() as first, dynamodb.open() as second:
        await first.add(KEYED)
        assert await second.list_messages(ANNA, limit=10) == [KEYED]
        assert await second.find_request("key") == KEYED
        assert not await second.add(message(2, request_key="key"))
        await first.settle(completed(KEYED))
        assert await second.list_messages(ANNA, limit=10) == [completed(KEYED)]


async def test_a_server_that_is_silent_for_long_counts_as_dead(
    dynamodb: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dynamodb.open() as second:
        with monkeypatch.context() as patched:
            patched.setattr(servers, "LEASE_SECONDS", -1.0)  # its word is over as soon as it is given
            async with AsyncExitStack() as stack:
                first = await stack.enter_async_context(dynamodb.open())
                await first.add(KEYED)
                assert await second.find_request("key") is None
                [interrupted] = await second.list_messages(ANNA, limit=10)
                assert (interrupted.status, interrupted.error_reason) == (Status.INTERRUPTED, "SERVER_DIED")
                # The request can be tried again, while the first server, which is not dead at all, goes on.
                again = message(2, request_key="key")
                assert await second.add(again)
                await first.settle(completed(KEYED))
                assert await second.find_request("key") == again
                listed = await second.list_messages(ANNA, limit=10)
                assert [(item.id, item.status, item.request_key) for item in listed] == [
                    (again.id, Status.PENDING, "key"),
                    (KEYED.id, Status.COMPLETED, ""),  # what its client saw is what is kept
                ]


async def test_two_that_find_a_dead_server_interrupt_its_message_once(dynamodb: Store) -> None:
    async with dynamodb.open() as first:
        await first.add(KEYED)
    async with dynamodb.open() as second, dynamodb.open() as third:
        pages = await asyncio.gather(*(each.list_messages(ANNA, limit=1) for each in (second, third) * 3))
        assert len({(page[0].status, page[0].completed_at) for page in pages[2:]}) <= 2
        [kept] = await third.list_messages(ANNA, limit=1)
        assert kept.status is Status.INTERRUPTED


async def test_servers_that_start_together_share_table_and_secret(dynamodb: Store) -> None:
    async with AsyncExitStack() as stack:
        opened = await asyncio.gather(*(stack.enter_async_context(dynamodb.open()) for _ in range(4)))
        assert len(set(await asyncio.gather(*(each.secret("a") for each in opened)))) == 1


async def test_of_several_servers_one_keeps_a_request(dynamodb: Store) -> None:
    async with dynamodb.open() as first, dynamodb.open() as second:
        for turn in range(5):
            kept = await asyncio.gather(
                *(
                    (first, second)[number % 2].add(message(turn * 10 + number, request_key=f"k{turn}"))
                    for number in range(6)
                )
            )
            assert kept.count(True) == 1


# --- faults ---


@pytest.mark.parametrize("cut", [cut_before, cut_after, cut_within], ids=["before", "after", "within"])
async def test_a_cut_in_the_middle_of_a_write_does_it_once(storage: Storage, between: Proxy, cut: Fault) -> None:
    between.faults.append(cut)
    assert await storage.add(KEYED)
    between.faults.append(cut)
    await storage.settle(completed(KEYED))
    assert await storage.list_messages(ANNA, limit=10) == [completed(KEYED)]
    assert await storage.find_request("key") == completed(KEYED)
    failing = message(2, request_key="other")
    assert await storage.add(failing)
    between.faults.append(cut)
    await storage.settle(replace(failing, status=Status.FAILED, completed_at=T0))
    assert await storage.find_request("other") is None
    between.faults.append(cut)
    assert len(await storage.list_messages(ANNA, limit=10)) == 2
    between.faults.append(cut)
    assert await storage.delete_messages(ANNA) in {1, 2}  # one may have gone in the try that was cut
    assert await storage.list_messages(ANNA, limit=10) == []


@pytest.mark.parametrize("fault", [throttle, cut_before, cut_after], ids=["throttled", "cut before", "cut after"])
async def test_after_bounded_tries_it_is_unavailable(storage: Storage, between: Proxy, fault: Fault) -> None:
    await storage.add(message(9))
    between.take_calls()
    between.always = fault
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: storage.add(KEYED),
        lambda: storage.settle(completed(message(9))),
        lambda: storage.list_messages(ANNA, limit=1),
        lambda: storage.find_request("key"),
        lambda: storage.delete_messages(ANNA),
    )
    for call in calls:
        with pytest.raises(StorageUnavailable) as raised:
            await call()
        assert raised.value.retry_after
        assert raised.value.metadata == {"store": "dynamodb"}
        assert "msg_" not in raised.value.message
        assert 1 <= len(between.take_calls()) <= ATTEMPTS
    between.always = None
    await storage.ping()


@pytest.mark.parametrize("fault", [cut_before, cut_after], ids=["before", "after"])
async def test_what_may_have_been_kept_does_not_stay_pending(storage: Storage, between: Proxy, fault: Fault) -> None:
    """The caller was told that it failed; so it must not hold its request for as long as the server lives."""
    assert isinstance(storage, DynamoDBStorage)
    await storage.add(message(2, request_key="other"))
    between.always = fault
    with pytest.raises(StorageUnavailable):
        await storage.add(KEYED)
    with pytest.raises(StorageUnavailable):
        await storage.settle(message(2, request_key="other", status=Status.PARTIAL, answer="half"))
    between.always = None
    await storage._end_doubtful()  # what is done every few seconds
    assert not storage._doubtful
    for key in ("key", "other"):
        assert await storage.find_request(key) is None
    listed = await storage.list_messages(ANNA, limit=10)
    assert {item.status for item in listed} <= {Status.FAILED, Status.PARTIAL}
    assert await storage.add(message(3, request_key="key"))


async def test_slow_answers_are_waited_for_and_silence_is_not(storage: Storage, between: Proxy) -> None:
    between.faults.append(delayed(0.5))
    assert await storage.add(KEYED)
    between.always = delayed(60)
    began = time.monotonic()
    with pytest.raises(StorageUnavailable, match="did not answer in time"):
        await storage.list_messages(ANNA, limit=1)
    assert time.monotonic() - began < 30  # three tries of two seconds, and what lies between them


async def test_throttling_for_a_moment_is_not_noticed(storage: Storage, between: Proxy) -> None:
    between.faults.extend([throttle, throttle])
    assert await storage.add(KEYED)
    between.faults.append(throttle)
    assert await storage.list_messages(ANNA, limit=1) == [KEYED]


# --- the item ---


async def test_passages_that_do_not_fit_are_left_out(dynamodb: Store) -> None:
    async with dynamodb.open() as storage:
        large = (Passage("A", 0.5, "x" * 399_000),)
        await storage.add(message(1))
        await storage.settle(completed(message(1), passages=large))
        assert await storage.list_messages(ANNA, limit=1) == [completed(message(1))]


async def test_a_message_that_does_not_fit_is_refused_clearly(dynamodb: Store) -> None:
    async with dynamodb.open() as storage:
        await storage.add(message(1))
        with pytest.raises(StorageUnavailable, match="more than 400,000 bytes") as raised:
            await storage.settle(completed(message(1), answer="ü" * 200_000))
        assert raised.value.reason == "MESSAGE_TOO_LARGE"
        assert await storage.list_messages(ANNA, limit=1) == [message(1)]


async def test_items_carry_the_time_at_which_they_expire(dynamodb: Store) -> None:
    address = Address.parse(dynamodb.url)
    async with dynamodb.open(CHAT_RETENTION_DAYS="36500") as storage, connect(address) as client:
        await storage.add(KEYED)
        items = (await client.scan(TableName=address.table))["Items"]
        expected = str(int(KEYED.created_at.timestamp()) + 36_500 * 86_400)
        own = [item for item in items if item["pk"]["S"][0] in "SUR"]
        assert len(own) == 3
        assert {item["expires"]["N"] for item in own} == {expected}
        ttl = (await client.describe_time_to_live(TableName=address.table))["TimeToLiveDescription"]
        assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "expires")


# --- the table ---


async def test_a_table_that_is_missing_is_named_with_what_to_do(
    dynamodb: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Address, "is_local", False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    with pytest.raises(StorageUnavailable, match="admin create-table"):
        async with dynamodb.open():
            pass
    allowed = dataclasses.replace(dynamodb, url=f"{dynamodb.url}&create=true")
    async with allowed.open() as storage:
        await storage.ping()


async def test_an_endpoint_that_is_not_there() -> None:
    store = Store("nowhere", "dynamodb://chat?region=us-east-1&endpoint_url=http://127.0.0.1:1")
    with pytest.raises(StorageUnavailable, match=r"can't be reached.*CHAT_DATABASE_URL"):
        async with store.open():
            pass


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("dynamodb://x", "3 to 255 characters"),
        ("dynamodb://chat/other", "3 to 255 characters"),
        ("dynamodb://chat?regoin=us-east-1", "region, endpoint_url, create once"),
        ("dynamodb://chat?region=us-east-1&region=eu-west-1", "once"),
        ("dynamodb://chat?region=US%20EAST", "us-east-1"),
        ("dynamodb://chat?endpoint_url=127.0.0.1:8000", "a scheme, a host and a port"),
        ("dynamodb://chat?endpoint_url=http://key:secret@host:1", "a scheme, a host and a port"),
        ("dynamodb://chat?create=yes", "true or false"),
        ("postgres://chat", "DynamoDB table"),
    ],
)
def test_a_wrong_url_is_refused_at_the_start(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load({"CHAT_DATABASE_URL": url})


def test_a_short_page_token_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="at least 16 characters") as raised:
        load({"CHAT_PAGE_TOKEN_SECRET": "hunter2"})
    assert "hunter2" not in str(raised.value)
