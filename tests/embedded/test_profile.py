"""A profile's system prompt, as `chat-grpc ingest --profile` reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_grpc.embedded import profile
from chat_grpc.embedded.errors import CommandError

PROFILE = 'name: n\ntitle: t\nsuggested_questions: ["What is it?"]\n'


def test_a_system_prompt_is_kept_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(PROFILE + "system_prompt: |\n  You are a pilot.\n  Be brief.\n", encoding="utf-8")
    assert profile.read(file)["system_prompt"] == "You are a pilot.\nBe brief.\n"


def test_a_profile_needs_none(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(PROFILE, encoding="utf-8")
    assert "system_prompt" not in profile.read(file)


@pytest.mark.parametrize("value", ["", "' '", "[a]", "7", "x" * (profile.MAX_SYSTEM_PROMPT + 1)])
def test_a_system_prompt_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(f"{PROFILE}system_prompt: {value}\n", encoding="utf-8")
    with pytest.raises(CommandError, match="system_prompt must be a text of at most 4,000 characters"):
        profile.read(file)
