"""The profile of a memory: what it is called, and which questions are worth asking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chat_grpc.embedded.errors import CommandError
from chat_grpc.embedded.yamls import parse

ENTITY = "__profile__"
SLOT = "data"
FILE_NAME = "profile.yaml"
MAX_SYSTEM_PROMPT = 4_000
"""Characters; a local model reads some four times as much at once, passages included."""


def read(path: Path) -> dict[str, Any]:
    """Read a profile and return it as the memory card's JSON object.

    ``suggested_questions`` is a list of str, which is what readers of the card
    know; ``categories`` maps each question to its category. ``system_prompt``, if
    it is there, is what the model is told to be. Whatever else the file holds is
    kept as it is.

    Raises:
        CommandError: the file can't be read, or breaks a rule.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise CommandError(f"{path} can't be read; --profile takes a YAML file in UTF-8.") from None
    data = parse(text, path)
    if not isinstance(data, dict):
        raise CommandError(f"{path} must hold name, title and suggested_questions.")
    for key in ("name", "title"):
        if not isinstance(data.get(key), str) or not data[key].strip():
            raise CommandError(f"{path}: {key} must be a text, for example {key}: handbook.")
    if "system_prompt" in data and not _is_system_prompt(data["system_prompt"]):
        raise CommandError(f"{path}: system_prompt must be a text of at most {MAX_SYSTEM_PROMPT:,} characters.")
    questions = data.get("suggested_questions")
    if not isinstance(questions, list) or not questions:
        raise CommandError(f"{path}: suggested_questions must be a list of questions, at least one.")
    pairs = [_question(path, number, item) for number, item in enumerate(questions, 1)]
    card = data | {
        "suggested_questions": [question for question, _ in pairs],
        "categories": dict(pairs),
    }
    try:
        json.dumps(card)
    except (TypeError, ValueError):
        raise CommandError(f"{path} holds a value, such as a date, that JSON can't; put it in quotes.") from None
    return card


def _is_system_prompt(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) <= MAX_SYSTEM_PROMPT


def _question(path: Path, number: int, item: object) -> tuple[str, str]:
    match item:
        case str(question) if question.strip():
            return question.strip(), "general"
        case {"question": str(question), **rest} if question.strip() and not rest.keys() - {"category"}:
            category = rest.get("category", "general")
            if isinstance(category, str) and category.strip():
                return question.strip(), category.strip()
    raise CommandError(
        f"{path}: suggested_questions, number {number}, must be a text, or hold question and category as texts."
    )
