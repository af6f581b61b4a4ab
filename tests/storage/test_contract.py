"""What every storage promises, shown of each of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from chat_grpc.domain import FinishReason, Message, Part, Passage, Status, Usage
from chat_grpc.storage import Cursor, Scope, Storage
from tests.storage.stores import SESSION, T0, Store, message

ANNA = Scope(user_id="anna")
ODD = "ünï ≠ 日本語 🦉 \u202e \t\r\n ' \" \\ %s {} ; DROP TABLE"


def completed(pending: Message, **fields: object) -> Message:
    values = {
        "answer": "an answer",
        "status": Status.COMPLETED,
        "finish_reason": FinishReason.STOP,
        "model": "local/m",
        "usage": Usage(1, 2, 3, 0.004),
        "completed_at": pending.created_at + timedelta(seconds=1),
    }
    return replace(pending, **{**values, **fields})


async def all_ids(storage: Storage, scope: Scope, *, size: int = 100) -> list[str]:
    """Return the ids of all messages of a scope, read in pages of a size."""
    seen: list[str] = []
    before = None
    while page := await storage.list_messages(scope, limit=size, before=before):
        assert len(page) <= size
        seen += [item.id for item in page]
        before = Cursor(page[-1].created_at, page[-1].id)
    return seen


# --- keeping ---


async def test_keeps_every_field(storage: Storage) -> None:
    pending = message(1, request_key="key", request_digest="digest")
    assert await storage.add(pending)
    assert await storage.list_messages(ANNA, limit=10) == [pending]
    settled = completed(
        pending,
        finish_reason=FinishReason.LENGTH,
        usage=Usage(1, 2, 3, 0.1 + 0.2, estimated=True),
        completed_at=T0 + timedelta(seconds=1, microseconds=1),
        cached=True,
        degraded=(Part.RETRIEVAL, Part.LLM),
        passages=(Passage("A › B", 0.123456789, "snippet", ("x", "y")), Passage("", 0.0, "", ())),
    )
    await storage.settle(settled)
    for scope in (ANNA, Scope(session_id=SESSION)):
        assert await storage.list_messages(scope, limit=10) == [settled]
    assert await storage.find_request("key") == settled


async def test_keeps_a_message_that_is_complete_at_once(storage: Storage) -> None:
    whole = completed(message(1, request_key="key"), cached=True)
    assert await storage.add(whole)
    assert await storage.list_messages(ANNA, limit=10) == [whole]
    assert await storage.find_request("key") == whole


async def test_settling_replaces_what_was_there(storage: Storage) -> None:
    """Nothing of what ``add`` kept shines through where the settled message has nothing."""
    first = completed(message(1), passages=(Passage("A", 0.5, "s"),), degraded=(Part.LLM,), cached=True)
    await storage.add(first)
    second = message(1, status=Status.FAILED, error_reason="MODEL_BROKE", completed_at=T0 + timedelta(seconds=9))
    await storage.settle(second)
    assert await storage.list_messages(ANNA, limit=10) == [second]


@pytest.mark.parametrize("text", [ODD, "\x7f\u2028", "a" * 10_000, "🦉" * 10_000], ids=["odd", "ends", "long", "wide"])
async def test_texts_come_back_as_they_were(storage: Storage, text: str) -> None:
    kept = completed(message(1, message=text), answer=text * 2, passages=(Passage(text, 1.0, text, (text,)),))
    await storage.add(message(1, message=text))
    await storage.settle(kept)
    assert await storage.list_messages(ANNA, limit=10) == [kept]


async def test_costs_and_times_come_back_to_the_last_digit(storage: Storage) -> None:
    for number, cost in enumerate((0.0, 1e-9, 1 / 3, 123456.789, 5e-324 * 0, None)):
        await storage.add(
            completed(message(number), usage=Usage(0, 0, 0, cost), completed_at=T0.replace(microsecond=number))
        )
    listed = await storage.list_messages(ANNA, limit=10)
    assert [item.usage and item.usage.cost_usd for item in reversed(listed)] == [
        0.0,
        1e-9,
        1 / 3,
        123456.789,
        0.0,
        None,
    ]
    assert [item.completed_at for item in reversed(listed)] == [T0.replace(microsecond=number) for number in range(6)]


async def test_settling_what_was_never_kept_keeps_nothing(storage: Storage) -> None:
    await storage.settle(completed(message(1)))
    await storage.settle(message(2, status=Status.FAILED, request_key="key"))
    assert await storage.list_messages(ANNA, limit=10) == []
    assert await storage.find_request("key") is None


# --- requests ---


async def test_a_request_is_kept_once(storage: Storage) -> None:
    assert await storage.add(message(1, request_key="key"))
    assert not await storage.add(message(2, request_key="key", session_id="another", user_id="bert"))
    assert await storage.add(message(3, request_key="other"))
    assert await storage.add(message(4))
    assert await storage.add(message(5))
    assert await all_ids(storage, ANNA) == ["msg_000005", "msg_000004", "msg_000003", "msg_000001"]
    assert await storage.list_messages(Scope(user_id="bert"), limit=10) == []
    assert await storage.list_messages(Scope(session_id="another"), limit=10) == []
    found = await storage.find_request("key")
    assert found is not None
    assert found.id == "msg_000001"
    assert await storage.find_request("unknown") is None


async def test_of_many_at_once_exactly_one_keeps_a_request(storage: Storage) -> None:
    for turn in range(3):
        numbers = range(turn * 20, turn * 20 + 20)
        kept = await asyncio.gather(*(storage.add(message(number, request_key=f"key{turn}")) for number in numbers))
        assert kept.count(True) == 1
        found = await storage.find_request(f"key{turn}")
        assert found is not None
        assert found.id == f"msg_{numbers[kept.index(True)]:06}"
    assert len(await all_ids(storage, ANNA)) == 3


@pytest.mark.parametrize("status", [Status.FAILED, Status.PARTIAL, Status.CANCELLED, Status.INTERRUPTED])
async def test_what_was_not_completed_lets_go_of_its_request(storage: Storage, status: Status) -> None:
    first = message(1, request_key="key")
    await storage.add(first)
    await storage.settle(replace(first, status=status, answer="some", completed_at=T0 + timedelta(seconds=1)))
    assert await storage.find_request("key") is None
    assert await storage.add(message(2, request_key="key"))
    await storage.settle(completed(message(2, request_key="key")))
    assert not await storage.add(message(3, request_key="key"))
    newest, oldest = await storage.list_messages(ANNA, limit=10)
    assert (newest.status, newest.request_key) == (Status.COMPLETED, "key")
    assert (oldest.status, oldest.request_key, oldest.answer) == (status, "", "some")


async def test_settling_late_does_not_take_the_request_from_its_next_message(storage: Storage) -> None:
    first = message(1, request_key="key")
    await storage.add(first)
    await storage.settle(replace(first, status=Status.CANCELLED, completed_at=T0))
    second = message(2, request_key="key")
    assert await storage.add(second)
    await storage.settle(replace(first, status=Status.FAILED, error_reason="LATE", completed_at=T0))
    assert await storage.find_request("key") == second
    assert [item.error_reason for item in await storage.list_messages(ANNA, limit=10)] == ["", "LATE"]


# --- listing ---


@pytest.mark.parametrize("scope", [ANNA, Scope(session_id=SESSION)], ids=["user", "session"])
@pytest.mark.parametrize("size", [1, 4, 7, 25, 100])
async def test_pages_newest_first_without_gap_or_repeat(storage: Storage, scope: Scope, size: int) -> None:
    numbers = list(range(25))
    for number in numbers[::2] + numbers[1::2]:  # kept in another order than they were made
        # Every three messages share a time, so that the id has to decide.
        await storage.add(message(number, created_at=T0 + timedelta(microseconds=number // 3)))
    assert await all_ids(storage, scope, size=size) == [f"msg_{number:06}" for number in reversed(numbers)]


async def test_times_decide_before_ids_across_powers_of_ten(storage: Storage) -> None:
    for number, micros in enumerate((999_999, 1_000_000, 9, 10, 86_400_000_000)):
        await storage.add(message(9 - number, created_at=T0 + timedelta(microseconds=micros)))
    assert await all_ids(storage, ANNA, size=2) == [f"msg_{9 - number:06}" for number in (4, 1, 0, 3, 2)]


async def test_pages_stay_as_they_are_while_messages_come(storage: Storage) -> None:
    for number in range(0, 30, 2):
        await storage.add(message(number))
    first = await storage.list_messages(ANNA, limit=5)
    for number in range(30, 40):  # newer ones: they are on none of the later pages
        await storage.add(message(number))
    rest = []
    before = Cursor(first[-1].created_at, first[-1].id)
    while page := await storage.list_messages(ANNA, limit=5, before=before):
        rest += page
        before = Cursor(page[-1].created_at, page[-1].id)
    assert [item.id for item in first + rest] == [f"msg_{number:06}" for number in range(28, -1, -2)]


async def test_a_page_begins_where_it_was_told_even_if_that_message_is_gone(storage: Storage) -> None:
    for number in range(6):
        await storage.add(message(number, session_id=f"s{number}"))
    await storage.delete_messages(Scope(session_id="s3"))
    page = await storage.list_messages(ANNA, limit=2, before=Cursor(message(3).created_at, "msg_000003"))
    assert [item.id for item in page] == ["msg_000002", "msg_000001"]


async def test_a_list_shows_what_was_just_kept_settled_and_deleted(storage: Storage) -> None:
    for number in range(20):
        await storage.add(message(number))
        assert (await storage.list_messages(ANNA, limit=1))[0].id == f"msg_{number:06}"
        await storage.settle(completed(message(number)))
        assert (await storage.list_messages(ANNA, limit=1))[0].status is Status.COMPLETED
    await storage.delete_messages(ANNA)
    assert await storage.list_messages(ANNA, limit=1) == []


async def test_a_page_of_long_messages_is_whole(storage: Storage) -> None:
    """100 messages of 40 KB are more than one answer of DynamoDB holds."""
    text = "日" * 10_000
    for number in range(101):
        await storage.add(completed(message(number, message=text), answer="日" * 3_000))
    for scope in (ANNA, Scope(session_id=SESSION)):
        page = await storage.list_messages(scope, limit=101)
        assert [item.id for item in page] == [f"msg_{number:06}" for number in range(100, -1, -1)]
        assert {item.message for item in page} == {text}


async def test_users_and_sessions_are_told_apart(storage: Storage) -> None:
    await storage.add(message(1, user_id="anna", session_id="s1"))
    await storage.add(message(2, user_id="anna2", session_id="s1x"))
    await storage.add(message(3, user_id="Anna", session_id="S1"))
    await storage.add(message(4, user_id="", session_id="s1"))
    assert await all_ids(storage, ANNA) == ["msg_000001"]
    assert await all_ids(storage, Scope(session_id="s1")) == ["msg_000004", "msg_000001"]
    assert await all_ids(storage, Scope(user_id="Anna")) == ["msg_000003"]


async def test_nobody_is_not_a_user(storage: Storage) -> None:
    await storage.add(message(1, user_id=""))
    assert await storage.list_messages(Scope(user_id=""), limit=10) == []
    assert await all_ids(storage, Scope(session_id=SESSION)) == ["msg_000001"]


# --- deleting ---


async def test_deletes_what_the_scope_names_and_nothing_else(storage: Storage) -> None:
    for number in range(6):
        await storage.add(message(number, user_id=("anna", "bert")[number % 2], session_id=f"s{number // 3}"))
    assert await storage.delete_messages(ANNA) == 3
    assert await storage.delete_messages(ANNA) == 0
    assert await all_ids(storage, Scope(session_id="s0")) == ["msg_000001"]
    assert await storage.delete_messages(Scope(session_id="s1")) == 2
    assert await all_ids(storage, Scope(user_id="bert")) == ["msg_000001"]


async def test_deletes_more_than_fits_into_a_page(storage: Storage) -> None:
    for number in range(110):
        await storage.add(message(number, user_id="", request_key=f"k{number}" if number % 20 == 0 else ""))
    scope = Scope(session_id=SESSION)
    assert await storage.delete_messages(scope) == 110
    assert await all_ids(storage, scope) == []
    assert await storage.find_request("k100") is None


async def test_a_deleted_message_stays_deleted(storage: Storage) -> None:
    kept = message(1, request_key="key")
    for scope in (ANNA, Scope(session_id=SESSION)):
        for ending in (completed(kept), replace(kept, status=Status.FAILED, completed_at=T0)):
            assert await storage.add(kept)
            assert await storage.delete_messages(scope) == 1
            await storage.settle(ending)
            assert await storage.list_messages(ANNA, limit=10) == []
            assert await storage.list_messages(Scope(session_id=SESSION), limit=10) == []
            assert await storage.find_request("key") is None


async def test_settling_and_deleting_at_once_leaves_nothing(storage: Storage) -> None:
    for number in range(20):
        await storage.add(message(number, request_key=f"k{number}"))
        ended = message(number, request_key=f"k{number}", status=Status.FAILED, completed_at=T0)
        await asyncio.gather(storage.settle(ended), storage.delete_messages(ANNA))
        assert await storage.list_messages(Scope(session_id=SESSION), limit=10) == []
        assert await storage.add(message(100 + number, user_id="bert", session_id="b", request_key=f"k{number}"))


# --- starting again ---


async def test_what_was_kept_is_there_after_a_restart(store: Store) -> None:
    async with store.open() as first:
        await first.add(message(1, request_key="key"))
        await first.settle(completed(message(1, request_key="key")))
    async with store.open() as second:
        assert await second.list_messages(ANNA, limit=10) == [completed(message(1, request_key="key"))]
        assert not await second.add(message(2, request_key="key"))


async def test_what_a_dead_server_left_pending_is_interrupted(store: Store) -> None:
    async with store.open() as first:
        await first.add(message(1, request_key="key"))
        await first.add(completed(message(2)))
    async with store.open() as second:
        assert await second.find_request("key") is None
        newest, oldest = await second.list_messages(ANNA, limit=10)
        assert newest.status is Status.COMPLETED
        assert oldest.status is Status.INTERRUPTED
        assert oldest.error_reason == "SERVER_DIED"
        assert oldest.completed_at is not None
        assert oldest.request_key == ""
        assert await second.add(message(3, request_key="key"))


async def test_a_secret_stays_the_same(store: Store) -> None:
    async with store.open() as first:
        kept, other = await first.secret("a"), await first.secret("b")
        assert (len(kept), len(other)) == (32, 32)
        assert kept != other
    async with store.open() as second:
        assert await asyncio.gather(*(second.secret("a") for _ in range(5))) == [kept] * 5
        assert len(set(await asyncio.gather(*(second.secret("c") for _ in range(5))))) == 1


# --- carrying over ---


async def everything(storage: Storage, *, limit: int) -> list[Message]:
    found: list[Message] = []
    after = ""
    while True:
        batch = await storage.scan(after, limit=limit)
        assert len(batch.messages) <= limit
        found += batch.messages
        after = batch.next
        if not after:
            return found


async def test_all_messages_can_be_read_and_put_elsewhere(storage: Storage) -> None:
    kept = [
        completed(message(number, user_id=("anna", "bert", "")[number % 3], session_id=f"s{number % 4}"))
        for number in range(23)
    ]
    kept[7] = replace(kept[7], request_key="key")
    assert await storage.put(kept[:15]) == 15
    assert await storage.put(kept) == 8
    assert await storage.put([]) == 0
    for limit in (5, 1000):
        found = await everything(storage, limit=limit)
        assert sorted(found, key=lambda item: item.id) == kept
    assert 0 <= await storage.count() <= 40
    assert await all_ids(storage, ANNA) == [item.id for item in reversed(kept) if item.user_id == "anna"]
    assert await storage.find_request("key") == kept[7]
    assert not await storage.add(message(90, request_key="key"))


async def test_a_request_stays_with_the_message_that_has_it(storage: Storage) -> None:
    first = completed(message(1, request_key="key"))
    await storage.add(first)
    second = completed(message(2, request_key="key"))
    assert await storage.put([second]) == 1
    assert await storage.find_request("key") == first
    newest, _ = await storage.list_messages(ANNA, limit=10)
    assert newest == replace(second, request_key="")


# --- forgetting ---


async def test_messages_do_not_outlive_the_retention(store: Store) -> None:
    """SQLite is told to delete them; DynamoDB does so by itself, some time, and they are not shown any more."""
    now = datetime.now(UTC)
    ages = {1: timedelta(days=3), 2: timedelta(days=1, hours=23), 3: timedelta(0)}
    async with store.open(CHAT_RETENTION_DAYS="2") as storage:
        for number, age in ages.items():
            made = now - age
            identifier = f"msg_{int(made.timestamp() * 1000):012x}{number:020}"
            assert await storage.add(completed(message(number, id=identifier, created_at=made)))
        expired = await storage.expire(now - timedelta(days=2), limit=10)
        assert (expired.count, set(expired.sessions)) == ((1, {SESSION}) if store.kind == "sqlite" else (0, set()))
        for scope in (ANNA, Scope(session_id=SESSION)):
            for size in (1, 100):
                assert [identifier[-1] for identifier in await all_ids(storage, scope, size=size)] == ["3", "2"]


async def test_ping(storage: Storage) -> None:
    await storage.ping()
