"""Methods with google.api.http annotations as OpenAPI operations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from openapi.examples import Examples
from openapi.protos import Protos, path_of
from openapi.responses import Responses
from openapi.schemas import Schema, Schemas

HTTP_BODY = "google.api.HttpBody"
REQUEST_ID = {"$ref": "#/components/parameters/RequestId"}
IF_NONE_MATCH = {"$ref": "#/components/parameters/IfNoneMatch"}
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {}]
"""With a credential or, as servers that ask for none answer, without."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One route of a method."""

    verb: str
    path: str
    body: str
    response_body: str


def bindings(protos: Protos, method: MethodDescriptor) -> list[Binding]:
    """Return a method's routes, the first one being its own."""
    rule = protos.option(method, "MethodOptions", "google.api.http")
    if rule is None:
        return []
    return [
        Binding(verb, re.sub(r"{(\w+)=[^}]*}", r"{\1}", getattr(each, verb)), each.body, each.response_body)
        for each in (rule, *rule.additional_bindings)
        if (verb := each.WhichOneof("pattern"))
    ]


class Operations:
    """Writes operations.

    Args:
        protos: where options and comments are found.
        package: the package that the options are of.
        schemas: where the schemas that are referred to are collected.
        responses: what writes the answers.
        is_open: see ``render``.
    """

    def __init__(
        self, protos: Protos, package: str, schemas: Schemas, responses: Responses, is_open: Callable[[str], bool]
    ) -> None:
        self._protos = protos
        self._package = package
        self._schemas = schemas
        self._responses = responses
        self._is_open = is_open
        self._examples = Examples(schemas)

    def of(self, method: MethodDescriptor) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield a method's operations, each with its path and verb."""
        rest = self._protos.option(method, "MethodOptions", f"{self._package}.rest")
        for number, binding in enumerate(bindings(self._protos, method)):
            yield binding.path, binding.verb, self._operation(method, rest, binding, number)

    def _operation(self, method: MethodDescriptor, rest: Any, binding: Binding, number: int) -> dict[str, Any]:
        summary, _, more = self._protos.comment(method).partition(". ")
        parameters = self._parameters(method.input_type, binding)
        operation: dict[str, Any] = {
            "tags": [method.containing_service.name.removesuffix("Service")],
            "operationId": operation_id(method.name, number),
            "summary": summary.removesuffix("."),
        }
        if more:
            operation["description"] = more
        if not self._is_open(path_of(method)):
            operation["security"] = SECURITY
        operation["parameters"] = [*parameters, *_headers(rest), REQUEST_ID]
        if binding.body:
            operation["requestBody"] = self._request_body(method.input_type, binding, rest)
        operation["responses"] = self._responses.of(method, rest, binding.response_body, has_body=bool(binding.body))
        return operation

    def _parameters(self, message: Descriptor, binding: Binding) -> list[dict[str, Any]]:
        in_path = set(re.findall(r"{(\w+)}", binding.path))
        parameters = [self._parameter(message.fields_by_name[name], name, "path") for name in sorted(in_path)]
        if binding.body != "*" and message.full_name != HTTP_BODY:
            rest = (field for field in message.fields if field.name not in in_path | {binding.body})
            parameters += [self._parameter(field, name, "query") for name, field in _flattened(rest)]
        return parameters

    def _parameter(self, field: FieldDescriptor, name: str, where: str) -> dict[str, Any]:
        schema = self._schemas.field(field, "in")
        if isinstance(schema.get("type"), list):
            schema["type"] = schema["type"][0]  # a URL has no null
        parameter: dict[str, Any] = {"name": name, "in": where}
        if where == "path":
            parameter["required"] = True
            schema.setdefault("minLength", 1)
        elif self._schemas.is_required(field):
            parameter["required"] = True
        if description := schema.pop("description", ""):
            parameter["description"] = description
        if examples := schema.pop("examples", None):
            parameter["example"] = examples[0]
        return parameter | {"schema": schema}

    def _request_body(self, message: Descriptor, binding: Binding, rest: Any) -> dict[str, Any]:
        named = rest is not None and rest.request
        if named:
            schema = self._schemas.named(rest.request, "in")
        elif binding.body == "*":
            in_path = frozenset(re.findall(r"{(\w+)}", binding.path))
            schema = self._schemas.message(message, "in", without=in_path)
        else:
            schema = self._schemas.field(message.fields_by_name[binding.body], "in")
        content: dict[str, Any] = {"schema": schema}
        if examples := self._examples.of_request(rest, schema):
            content["examples"] = examples
        return {"required": True, "content": {"application/json": content}}


def _headers(rest: Any) -> list[dict[str, Any]]:
    if rest is None:
        return []
    headers: list[dict[str, Any]] = [
        {
            "name": header.name,
            "in": "header",
            "description": header.description,
            "schema": {"type": "string", "maxLength": 128, "pattern": "^[!-~]*$"},
        }
        for header in rest.headers
    ]
    if any(answer.status == HTTPStatus.NOT_MODIFIED for answer in rest.answers):
        headers.append(IF_NONE_MATCH)
    return headers


def operation_id(method: str, number: int) -> str:
    """Return a name that is fit for a function of a generated client.

    >>> operation_id("GetHealth", 0), operation_id("GetHealth", 1), operation_id("GetHealth", 2)
    ('getHealth', 'getHealthAlias', 'getHealthAlias2')
    """
    name = method[:1].lower() + method[1:]
    return name if number == 0 else f"{name}Alias{number if number > 1 else ''}"


def _flattened(fields: Any, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Yield query parameters: the fields of a message within are named with a dot."""
    for field in fields:
        if (
            field.message_type is not None
            and not field.is_repeated
            and field.message_type.file.package[:7] != "google."
        ):
            yield from _flattened(field.message_type.fields, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


__all__ = ["Binding", "Operations", "Schema", "bindings", "operation_id"]
