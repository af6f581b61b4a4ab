"""Random names: no two alike, in any thread, in any copy of the process; and UUIDs are what they say."""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter

from chat_grpc.entropy import AT_ONCE, random_hex, random_uuid


def test_no_two_names_are_alike_whoever_asks() -> None:
    names: list[str] = []

    def ask() -> None:
        names.extend([random_hex(10) for _ in range(5_000)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == len(names) == 20_000
    assert {len(name) for name in names} == {20}


def test_all_digits_come_about_as_often() -> None:
    counts = Counter("".join(random_hex(16) for _ in range(4_000)))
    assert set(counts) == set("0123456789abcdef")
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_more_than_is_asked_for_at_once() -> None:
    assert len(random_hex(AT_ONCE * 2)) == AT_ONCE * 4


def test_a_copy_of_the_process_goes_on_with_other_names() -> None:
    random_hex(1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, random_hex(16).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() != random_hex(16)
    os.close(reading)
    os.close(writing)


def test_a_uuid_is_a_random_one() -> None:
    parsed = [uuid.UUID(random_uuid()) for _ in range(1_000)]
    assert {item.version for item in parsed} == {4}
    assert {item.variant for item in parsed} == {uuid.RFC_4122}
    assert len(set(parsed)) == 1_000
