"""Checking requests by the rules that stand in protos/gateway/v1, where clients read them too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from chat_grpc._gen.gateway.v1 import rules_pb2
from chat_grpc.errors import InvalidRequest, Violation

Check = Callable[[Any], str | None]
"""Takes a field's value; says which rule it breaks."""


def check(request: Message) -> None:
    """Raise InvalidRequest, naming every field of a request that breaks a rule, and the first rule that it breaks."""
    violations = list(_violations(request))
    if violations:
        raise InvalidRequest(violations)


def _violations(request: Message) -> Iterator[Violation]:
    for name, has_presence, required, checks in _rules_of(request.DESCRIPTOR):
        value = getattr(request, name)
        if not (request.HasField(name) if has_presence else value):
            if required:
                yield Violation(name, "must not be empty" if isinstance(value, str) else "must be given")
            continue
        broken = next((said for said in (fails(value) for fails in checks) if said), None)
        if broken:
            yield Violation(name, broken)


@cache
def _rules_of(descriptor: Descriptor) -> list[tuple[str, bool, bool, list[Check]]]:
    """Return, for each field that has rules: its name, whether it knows absence, whether it is required, its checks."""
    found = []
    for field in descriptor.fields:
        options = field.GetOptions()
        if options.HasExtension(rules_pb2.rules):
            rules = options.Extensions[rules_pb2.rules]
            found.append((field.name, field.has_presence, rules.required, list(_checks(rules))))
    return found


def _checks(rules: rules_pb2.Rules) -> Iterator[Check]:
    if rules.HasField("min_length"):
        yield _shorter(rules.min_length)
    if rules.HasField("max_length"):
        yield _longer(rules.max_length)
    for pattern in rules.patterns:
        yield _unlike(pattern)
    if rules.HasField("minimum"):
        yield _below(rules.minimum)
    if rules.HasField("maximum"):
        yield _above(rules.maximum)


def _shorter(bound: int) -> Check:
    def check(value: str) -> str | None:
        return f"must have at least {_characters(bound)}; it has {len(value):,}" if len(value) < bound else None

    return check


def _longer(bound: int) -> Check:
    def check(value: str) -> str | None:
        return f"must have at most {_characters(bound)}; it has {len(value):,}" if len(value) > bound else None

    return check


def _unlike(pattern: rules_pb2.Pattern) -> Check:
    # Python's $ would let a line feed follow; JSON Schema's does not.
    found = re.compile(re.sub(r"\$$", r"\\Z", pattern.regex)).search

    def check(value: str) -> str | None:
        return None if found(value) else pattern.rule

    return check


def _below(bound: float) -> Check:
    def check(value: float) -> str | None:
        return f"must be at least {bound:g}" if value < bound else None

    return check


def _above(bound: float) -> Check:
    def check(value: float) -> str | None:
        return f"must be at most {bound:g}" if value > bound else None

    return check


def _characters(count: int) -> str:
    return "1 character" if count == 1 else f"{count:,} characters"
