"""Holding values against the schemas of an OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from openapi_schema_validator import OAS31Validator

Document = dict[str, Any]


def resolved(document: Document, part: Any) -> Any:
    """Follow a reference, if the part is one."""
    while "$ref" in part:
        place = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            place = place[name]
        part = place
    return part


def faults(document: Document, schema: dict[str, Any], value: Any) -> list[str]:
    """Return what a value has against a schema of the document."""
    validator = OAS31Validator({**schema, "components": document["components"]})
    return [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(value)]


def event_faults(document: Document, schema: dict[str, Any], body: str) -> list[str]:
    """Return what a stream of events has against the schema of one event, whose data is JSON or a fixed text."""
    data = schema["properties"]["data"]
    carried, *fixed = data.get("anyOf", [data])
    found = []
    for event in events_of(body):
        if event not in [text["const"] for text in fixed]:
            found += faults(document, carried["contentSchema"], json.loads(event))
    return found


def events_of(body: str) -> list[str]:
    """Return the data of each event."""
    return [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]


def operations(document: Document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each operation with its method, in capitals, and its path."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation
