"""docs/settings.md is true: one row for each setting, in the order of settings.py."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from chat_grpc.settings import Secret, Settings, names

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


def _rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `CHAT_")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): rest for name, *rest in cells}


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default
    if isinstance(value, Secret):
        value = value.reveal()
    if isinstance(value, float):
        value = f"{value:g}"
    return f"`{value}`" if value != "" else "unset"


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    assert list(_rows()) == [next(names(field)) for field in dataclasses.fields(Settings)]


def test_defaults_and_other_names_are_those_of_the_code() -> None:
    rows = _rows()
    for field in dataclasses.fields(Settings):
        canonical, *aliases = names(field)
        meaning, default, others = rows[canonical]
        assert meaning, canonical
        assert (canonical, default) == (canonical, _default(field))
        assert (canonical, re.findall(r"`(\w+)`", others)) == (canonical, aliases)
