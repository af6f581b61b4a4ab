"""YAML, with the place of a mistake in the error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chat_grpc.embedded.errors import CommandError


def parse(text: str, path: Path, first_line: int = 1) -> Any:
    """Return what a YAML text holds; ``first_line`` is where it begins in its file.

    Raises:
        CommandError: it is not YAML; the text names file and line.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = first_line + (mark.line if mark is not None else 0)
        raise CommandError(
            f"{path}, line {line}: this is not valid YAML; a text with : or ? in it may need quotes."
        ) from None
