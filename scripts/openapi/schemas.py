"""Messages as JSON Schemas, in the JSON that Envoy's transcoder reads and writes."""

from __future__ import annotations

import json
from typing import Any, Literal

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from openapi.protos import Protos
from openapi.rules import bounds, is_required, may_be_absent

Schema = dict[str, Any]
Direction = Literal["in", "out"]

REF = "#/components/schemas/"

SCALARS: dict[int, Schema] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    FieldDescriptor.TYPE_SINT32: {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    FieldDescriptor.TYPE_SFIXED32: {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    FieldDescriptor.TYPE_FIXED32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    # JSON's numbers don't hold 64 bits, so that these are written as text.
    FieldDescriptor.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]{1,19}$"},
    FieldDescriptor.TYPE_SINT64: {"type": "string", "pattern": "^-?[0-9]{1,19}$"},
    FieldDescriptor.TYPE_SFIXED64: {"type": "string", "pattern": "^-?[0-9]{1,19}$"},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]{1,20}$"},
    FieldDescriptor.TYPE_FIXED64: {"type": "string", "pattern": "^[0-9]{1,20}$"},
}

WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.Any": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
}


class Schemas:
    """Collects the schemas that a document refers to.

    Args:
        protos: where messages are found.
        package: the package whose messages give their names to schemas.
        foreign: further schemas by name, for references of the form "openai:Name".
    """

    def __init__(self, protos: Protos, package: str, foreign: dict[str, Schema]) -> None:
        self.components: dict[str, Schema] = {}
        self._protos = protos
        self._package = package
        ours = protos.message_names()
        self._names = {name: f"OpenAI{name}" if name in ours else name for name in foreign}
        renamed = {f"{REF}{name}": f"{REF}{new}" for name, new in self._names.items()}
        self._foreign = {self._names[name]: _renamed(schema, renamed) for name, schema in foreign.items()}
        self._origin: dict[str, tuple[str, Direction]] = {}

    def named(self, name: str, direction: Direction) -> Schema:
        """Return a reference to the schema of a message's full name, or of "openai:Name".

        Raises:
            KeyError: there is no such message or schema.
        """
        _, _, foreign = name.partition(":")
        if not foreign:
            return self.message(self._protos.message(name), direction)
        self.components |= self._foreign
        return {"$ref": f"{REF}{self._names[foreign]}"}

    def message(self, message: Descriptor, direction: Direction, *, without: frozenset[str] = frozenset()) -> Schema:
        """Return a reference to a message's schema, leaving out fields that stand elsewhere."""
        if message.full_name in WELL_KNOWN:
            return dict(WELL_KNOWN[message.full_name])
        name = self._name_of(message, direction)
        if name not in self.components:
            self.components[name] = {}  # a message may hold itself
            self.components[name] = self._build(message, direction, without)
        return {"$ref": f"{REF}{name}"}

    def field(self, field: FieldDescriptor, direction: Direction) -> Schema:
        """Return a field's schema, with its description, bounds and example."""
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            schema: Schema = {"type": "object", "additionalProperties": self._one(value, direction)}
        elif field.is_repeated:
            schema = {"type": "array", "items": self._one(field, direction)}
        else:
            schema = self._one(field, direction)
        bounds(self._protos, field, schema)
        if "type" in schema and (_is_optional(field) or (direction == "in" and not self.is_required(field))):
            # The same as absent.
            schema["type"] = [schema["type"], "null"]
            if "enum" in schema:
                schema["enum"].append(None)
        if description := self._protos.comment(field):
            schema["description"] = description
        if (example := self.example(field)) is not None:
            schema["examples"] = [example]
        return schema

    def is_required(self, field: FieldDescriptor) -> bool:
        """Tell whether a request must have the field."""
        return is_required(self._protos, field)

    def example(self, field: FieldDescriptor) -> Any:
        """Return a field's example, or None."""
        text = self._protos.option(field, "FieldOptions", f"{self._package}.example")
        return None if text is None else json.loads(text)

    def _name_of(self, message: Descriptor, direction: Direction) -> str:
        name = message.full_name.removeprefix(f"{message.file.package}.").replace(".", "")
        for candidate in (name, f"{name}Input" if direction == "in" else f"{name}Output"):
            if self._origin.setdefault(candidate, (message.full_name, direction)) == (message.full_name, direction):
                return candidate
        raise ValueError(f"two messages are named {name}")

    def _build(self, message: Descriptor, direction: Direction, without: frozenset[str]) -> Schema:
        schema: Schema = {}
        if description := self._protos.comment(message):
            schema["description"] = description
        tag = self._protos.option(message, "MessageOptions", f"{self._package}.tagged_by")
        return schema | (self._union(message, direction, tag) if tag else self._object(message, direction, without))

    def _object(self, message: Descriptor, direction: Direction, without: frozenset[str]) -> Schema:
        fields = [field for field in message.fields if field.name not in without]
        schema: Schema = {
            "type": "object",
            "properties": {field.name: self.field(field, direction) for field in fields},
        }
        required = [field.name for field in fields if self._always_there(field, direction)]
        if required:
            schema["required"] = required
        if direction == "in":
            schema["propertyNames"] = {"minLength": 1}  # the transcoder ignores what it does not know, but for ""
        return schema

    def _union(self, message: Descriptor, direction: Direction, tag: str) -> Schema:
        mapping: dict[str, str] = {}
        for member in message.oneofs[0].fields:
            if member.message_type is None:
                raise TypeError(f"{member.full_name} is no message")
            reference = self.message(member.message_type, direction)["$ref"]
            mapping[member.name] = reference
            schema = self.components[reference.rpartition("/")[2]]
            own = {"const": member.name, "type": "string", "description": f'Always "{member.name}".'}
            schema["properties"] = {tag: own} | schema["properties"]
            schema["required"] = [tag, *schema.get("required", [])]
        return {
            "oneOf": [{"$ref": reference} for reference in mapping.values()],
            "discriminator": {"propertyName": tag, "mapping": mapping},
        }

    def _always_there(self, field: FieldDescriptor, direction: Direction) -> bool:
        """Tell whether the field must be in a request, or is in every answer: Envoy is told to write zeros too."""
        if is_required(self._protos, field):
            return True
        if may_be_absent(self._protos, field):
            return False
        return direction == "out" and (field.is_repeated or (field.message_type is None and not field.has_presence))

    def _one(self, field: FieldDescriptor, direction: Direction) -> Schema:
        """Return the schema of one value of a field."""
        if field.message_type is not None:
            return self.message(field.message_type, direction)
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        return dict(SCALARS[field.type])


def _renamed(part: Any, names: dict[str, str]) -> Any:
    """Return a part of a schema with other references, in a mapping of a discriminator too."""
    if isinstance(part, dict):
        return {key: _renamed(value, names) for key, value in part.items()}
    if isinstance(part, list):
        return [_renamed(value, names) for value in part]
    return names.get(part, part) if isinstance(part, str) else part


def _is_optional(field: FieldDescriptor) -> bool:
    """Tell whether a scalar field is marked `optional`: null then is the same as absent."""
    return field.has_presence and field.message_type is None and field.containing_oneof is not None
