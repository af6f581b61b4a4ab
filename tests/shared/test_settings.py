"""The address of Redis, which may hold a password."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chat_grpc.errors import Unavailable
from chat_grpc.settings import SettingsError, load, secrets
from tests.support.service import service

PASSWORD = "hunter2"  # noqa: S105 (it opens nothing)


def test_a_password_is_not_shown() -> None:
    settings = load({"CHAT_REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:6379/0"})
    assert PASSWORD in settings.redis_url.reveal()
    assert PASSWORD not in repr(settings)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (f"redis://:{PASSWORD}@127.0.0.1:6379/0", [PASSWORD]),
        ("rediss://name:hunter%402@host", ["hunter@2"]),
        (f"unix:///run/redis.sock?password={PASSWORD}", [PASSWORD]),
        ("redis://127.0.0.1:6379/0", []),
    ],
)
def test_answers_are_searched_for_its_password_and_not_for_the_rest(url: str, found: list[str]) -> None:
    assert secrets(load({"CHAT_REDIS_URL": url})) == found


@pytest.mark.parametrize("url", [f"http://:{PASSWORD}@host", f"host:{PASSWORD}", "redis://"])
def test_what_is_no_address_is_refused_without_a_quotation(url: str) -> None:
    with pytest.raises(SettingsError, match=r"CHAT_REDIS_URL.*redis://127") as caught:
        load({"CHAT_REDIS_URL": url})
    assert PASSWORD not in str(caught.value)


async def test_what_can_not_be_read_is_refused_without_a_quotation(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="CHAT_REDIS_URL") as caught:
        async with service(tmp_path, CHAT_REDIS_URL=f"redis://host:{PASSWORD}/0"):
            pass
    assert PASSWORD not in caught.value.message


async def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(Unavailable, match=r"install chat-grpc\[redis\]"):
        async with service(tmp_path, CHAT_REDIS_URL="redis://127.0.0.1:1/0"):
            pass


def test_a_server_alone_imports_nothing_of_it() -> None:
    import subprocess

    code = "import sys, chat_grpc.app; print([name for name in sys.modules if name.split('.')[0] == 'redis'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"
