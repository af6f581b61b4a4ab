"""Bodies that show what a schema means, put together from the examples of fields."""

from __future__ import annotations

import json
from typing import Any

from openapi.schemas import Schema, Schemas

# By type, or by format where one says more.
EXAMPLES: dict[str, Any] = {
    "boolean": False,
    "integer": 0,
    "number": 0,
    "string": "",
    "array": [],
    "object": {},
    "null": None,
    "date-time": "2024-01-15T10:30:00Z",
    "uuid": "7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10",
}


class Examples:
    """Writes the examples of a document's bodies."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    def of_request(self, rest: Any, schema: Schema) -> dict[str, Any]:
        """Return the examples of a request: those of the option, else what the fields' examples give."""
        if rest is not None and rest.request_examples:
            return {
                _key(example.title): {"summary": example.title, "value": json.loads(example.body)}
                for example in rest.request_examples
            }
        value = self.of(schema, every_field=False)
        return {"example": {"summary": "Example", "value": value}} if value else {}

    def of(self, schema: Schema, *, every_field: bool = True) -> Any:
        """Return a value of a schema.

        Args:
            schema: what it keeps to.
            every_field: whether fields without an example get a value as well; else only those that are required.
        """
        if reference := schema.get("$ref"):
            schema = self._schemas.components[reference.rpartition("/")[2]]
        given = [*schema.get("examples", ()), *schema.get("enum", ())]
        given += [schema[keyword] for keyword in ("default", "const") if keyword in schema]
        if given:
            return given[0]
        if choices := schema.get("oneOf") or schema.get("anyOf"):
            return self.of(choices[0], every_field=every_field)
        if "properties" in schema:
            return {
                name: self.of(field, every_field=every_field)
                for name, field in schema["properties"].items()
                if every_field or "examples" in field or name in schema.get("required", ())
            }
        if "$ref" in schema.get("items", {}):
            return [self.of(schema["items"], every_field=every_field)]
        kind = schema.get("type", "object")
        return EXAMPLES.get(schema.get("format", ""), EXAMPLES[kind[0] if isinstance(kind, list) else kind])


def _key(title: str) -> str:
    """Return a name made of letters, digits and dashes."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())
