"""The options that bound a field's values, as JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from google.api.field_behavior_pb2 import FieldBehavior
from google.protobuf.descriptor import FieldDescriptor

from openapi.protos import Protos

LIMITS = {
    "min_length": "minLength",
    "max_length": "maxLength",
    "minimum": "minimum",
    "maximum": "maximum",
    "max_items": "maxItems",
}


def bounds(protos: Protos, field: FieldDescriptor, schema: dict[str, Any]) -> None:
    """Add the rules of a field (gateway.v1.rules) to its schema."""
    rules = protos.option(field, "FieldOptions", "gateway.v1.rules")
    if rules is None:
        return
    one = schema["items"] if field.is_repeated else schema
    for option, keyword in LIMITS.items():
        if rules.HasField(option):
            number = getattr(rules, option)
            (schema if option == "max_items" else one)[keyword] = int(number) if int(number) == number else number
    # What need not be there may as well be empty.
    prefix = "" if rules.required or field.has_presence else "^$|"
    patterns = [{"pattern": prefix + pattern.regex} for pattern in rules.patterns]
    one |= patterns[0] if len(patterns) == 1 else {"allOf": patterns} if patterns else {}
    if rules.values:
        one["enum"] = list(rules.values)
    if rules.format:
        one["format"] = rules.format
    if rules.default:
        schema["default"] = json.loads(rules.default)


def is_required(protos: Protos, field: FieldDescriptor) -> bool:
    """Tell whether a field must have a value, by gateway.v1.rules or by google.api.field_behavior."""
    rules = protos.option(field, "FieldOptions", "gateway.v1.rules")
    return (rules is not None and rules.required) or _behaves(protos, field, "REQUIRED")


def may_be_absent(protos: Protos, field: FieldDescriptor) -> bool:
    """Tell whether a field may be absent from an answer, by google.api.field_behavior."""
    return _behaves(protos, field, "OPTIONAL")


def _behaves(protos: Protos, field: FieldDescriptor, behavior: str) -> bool:
    return FieldBehavior.Value(behavior) in (protos.option(field, "FieldOptions", "google.api.field_behavior") or [])
