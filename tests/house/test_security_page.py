"""docs/security.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def _threats() -> list[list[str]]:
    """Return the rows of the tables of threats: threat, control, tests."""
    tables = re.findall(r"^\| Threat .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert len(tables) == 2
    return [[cell.strip() for cell in row.strip("|").split("|")] for table in tables for row in table.splitlines()]


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_control_names_its_test_or_is_by_design() -> None:
    assert [row for row in _threats() if len(row) != 3 or not ("`tests/" in row[2] or row[2] == "by design")] == []


def test_the_whole_top_ten_is_there() -> None:
    found = {match[0] for row in _threats() if (match := re.match(r"LLM\d\d", row[0]))}
    assert found == {f"LLM{number:02}" for number in range(1, 11)}
