"""The answers of an operation: what the types and options say, and the errors that any method can give."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from openapi.examples import Examples
from openapi.protos import Protos, path_of
from openapi.schemas import Schema, Schemas

HTTP_BODY = "google.api.HttpBody"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
EVENTS = "text/event-stream"

HEADERS: dict[str, Any] = {
    "RequestId": {
        "description": "The name of the request: the one that it came with, or a new one.",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "example": "0c4f9d2e7b1a4c1c9f1e6a3d5b7c8e90",
    },
    "RetryAfter": {
        "description": "After how many seconds trying again makes sense.",
        "schema": {"type": "integer", "minimum": 0},
        "example": 2,
    },
    "RetryAfterRequired": {
        "description": "After how many seconds trying again makes sense.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
        "example": 2,
    },
    "WWWAuthenticate": {
        "description": "What is wrong with the credential (RFC 6750).",
        "required": True,
        "schema": {"type": "string"},
        "example": 'Bearer realm="chat-grpc"',
    },
}

ERRORS: dict[int, tuple[str, str, int, str]] = {
    400: ("BadRequest", "A field breaks a rule, or the request can't be read.", 3, "INVALID_REQUEST"),
    401: ("Unauthorized", "The credentials are missing or wrong.", 16, "UNAUTHENTICATED"),
    403: ("Forbidden", "What the request names belongs to somebody else.", 7, "FORBIDDEN"),
    404: ("NotFound", "What the request names does not exist.", 5, "NOT_FOUND"),
    409: (
        "Conflict",
        "X-Request-ID names another request, or one that is still being answered.",
        10,
        "REQUEST_ID_REUSED",
    ),
    408: ("RequestTimeout", "The request took too long to arrive.", 4, "REQUEST_TIMEOUT"),
    413: ("TooLarge", "The body is larger than what this route takes.", 8, "TOO_LARGE"),
    415: (
        "UnsupportedMediaType",
        "A page of another origin sent something else than JSON.",
        3,
        "UNSUPPORTED_MEDIA_TYPE",
    ),
    429: ("TooManyRequests", "A limit is reached.", 8, "RATE_LIMITED"),
    431: ("HeadersTooLarge", "The headers are larger, or more, than what the edge takes.", 8, "HEADERS_TOO_LARGE"),
    500: ("InternalError", "Something went wrong on the server; the request id finds it in the log.", 13, "INTERNAL"),
    502: (
        "BadGateway",
        "The model's provider answered badly: cut short, empty, or not its own protocol.",
        14,
        "MODEL_BROKE",
    ),
    503: ("Unavailable", "A part that is needed can't be reached, or the server is stopping.", 14, "UNAVAILABLE"),
    504: ("Timeout", "A time limit passed.", 4, "DEADLINE_EXCEEDED"),
}
"""By status: the name of the response, when it comes, an example's gRPC code and reason."""

DESCRIPTIONS = {304: "The client has it: If-None-Match names it."}
"""Of answers that are no errors, where the method says nothing of them."""
EVERYWHERE = (400, 431, 500, 502, 503, 504)
WITH_BODY = (408, 413, 415)
UNREADABLE = (400, 408, 431)
"""What Envoy answers before it knows which route is meant."""
WAITING_HELPS = (502, 503, 504)

OPENAI_TYPES = {status: "invalid_request_error" for status in ERRORS if status < HTTPStatus.INTERNAL_SERVER_ERROR} | {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
"""What OpenAI's form calls the error of a status, in an example; others are server_error."""


class Responses:
    """Writes answers, and collects those that operations share.

    Args:
        protos: where options are found.
        package: the package that the options are of.
        schemas: where the schemas that are referred to are collected.
        is_open: see ``render``.
    """

    def __init__(self, protos: Protos, package: str, schemas: Schemas, is_open: Callable[[str], bool]) -> None:
        self.components: dict[str, Any] = {}
        self._protos = protos
        self._schemas = schemas
        self._examples = Examples(schemas)
        self._default_error = f"{package}.Error"
        self._is_open = is_open

    def of(self, method: MethodDescriptor, rest: Any, response_body: str, *, has_body: bool) -> dict[str, Any]:
        """Return the answers of a method by status."""
        answers = list(rest.answers) if rest is not None else []
        responses: dict[int, Any] = {}
        error = (rest.error if rest is not None else "") or self._default_error
        for answer in answers or [None]:
            self._add(responses, method, answer, response_body, error)
        for status in self._errors(method, rest, has_body=has_body):
            self._add_error(responses, status, error, method.containing_service.name.removesuffix("Service"))
        return {str(status): response for status, response in sorted(responses.items())}

    def _errors(self, method: MethodDescriptor, rest: Any, *, has_body: bool) -> list[int]:
        found = {*EVERYWHERE, *(rest.errors if rest is not None else ())}
        if has_body:
            found.update(WITH_BODY)
        if not self._is_open(path_of(method)):
            found.add(401)
        http = self._protos.option(method, "MethodOptions", "google.api.http")
        if "{" in getattr(http, http.WhichOneof("pattern")):
            found.add(404)
        return sorted(found)

    def _add(
        self, responses: dict[int, Any], method: MethodDescriptor, answer: Any, response_body: str, error: str
    ) -> None:
        status = (answer.status if answer is not None else 0) or HTTPStatus.OK
        description = (answer.description if answer is not None else "") or DESCRIPTIONS.get(status, "OK")
        response = responses.setdefault(
            int(status), {"description": "", "headers": {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}}
        )
        response["description"] = " ".join(filter(None, (response["description"], description)))
        if status == HTTPStatus.NOT_MODIFIED:
            return
        content_type = (answer.content_type if answer is not None else "") or "application/json"
        schema = self._schema(method, answer, response_body, content_type, error)
        media: dict[str, Any] = {"schema": schema}
        if answer is not None and answer.example:
            is_json = content_type == "application/json"
            media["example"] = json.loads(answer.example) if is_json else answer.example
        elif content_type == "application/json":
            media["example"] = self._examples.of(schema)
        elif content_type == EVENTS:
            media["example"] = self._events(schema)
        response.setdefault("content", {})[content_type] = media

    def _schema(
        self, method: MethodDescriptor, answer: Any, response_body: str, content_type: str, error: str
    ) -> Schema:
        if answer is not None and answer.schema:
            schema = self._schemas.named(answer.schema, "out")
        elif method.output_type.full_name == HTTP_BODY:
            return {"type": "string"}
        elif response_body:
            schema = self._schemas.field(method.output_type.fields_by_name[response_body], "out")
        else:
            schema = self._schemas.message(method.output_type, "out")
        if answer is not None and answer.list:
            schema = {"type": "array", "items": schema}
        if content_type == EVENTS:
            schema = self._event(self._or_error(schema, error), answer.last_event)
        return schema

    def _or_error(self, schema: Schema, error: str) -> Schema:
        """Return what an event may carry: the schema or, unless it has a kind for that, the route's error."""
        if "oneOf" in self._schemas.components[schema["$ref"].rpartition("/")[2]]:
            return schema
        return {"anyOf": [schema, self._schemas.named(error, "out")]}

    def _event(self, schema: Schema, last: str) -> Schema:
        """Return the schema of one server-sent event whose data is JSON; ``last`` is data that ends a stream."""
        # In words as well: viewers show no contentSchema.
        kinds = [reference["$ref"].rpartition("/")[2] for reference in self._kinds(schema)]
        lines = [f"- `{kind}`: {self._schemas.components[kind].get('description', '')}" for kind in kinds]
        data: Schema = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": schema,
            "description": "\n".join(["JSON of one of these schemas:", "", *lines]),
        }
        if last:
            data = {"anyOf": [data, {"const": last, "description": "The end of a stream that is whole."}]}
        return {
            "title": "Server-sent event",
            "description": "One event of the stream. Lines that begin with a colon are comments.",
            "type": "object",
            "properties": {"data": data},
            "required": ["data"],
        }

    def _kinds(self, carried: Schema) -> list[Schema]:
        """Return references to the schemas that an event's data may have."""
        references = carried.get("anyOf", [carried])
        return [
            kind
            for reference in references
            for kind in self._schemas.components[reference["$ref"].rpartition("/")[2]].get("oneOf", [reference])
        ]

    def _events(self, schema: Schema) -> str:
        """Return a stream with one event of each kind but the error."""
        kinds = [kind for kind in self._kinds(_carried(schema)) if "Error" not in kind["$ref"]]
        events = [json.dumps(self._examples.of(kind), separators=(",", ":"), ensure_ascii=False) for kind in kinds]
        events += [part["const"] for part in schema["properties"]["data"].get("anyOf", []) if "const" in part]
        return "".join(f"data: {event}\n\n" for event in events)

    def _add_error(self, responses: dict[int, Any], status: int, error: str, service: str) -> None:
        name, *_ = ERRORS[status]
        if error != self._default_error:
            name = f"{service}{name}"
        if name not in self.components:
            self.components[name] = self._error(status, error)
        if status not in responses:
            responses[status] = {"$ref": f"#/components/responses/{name}"}
            return
        # The method answers with this status by itself, too.
        own, shared = responses[status], self.components[name]
        media, other = own["content"]["application/json"], shared["content"]["application/json"]
        media["schema"] = {"anyOf": [media["schema"], other["schema"]]}
        own["headers"] |= shared["headers"]
        own["description"] = f"{own['description']} {shared['description']}"

    def _error(self, status: int, error: str) -> dict[str, Any]:
        _, description, code, reason = ERRORS[status]
        headers = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfterRequired"}
        elif status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = {"$ref": "#/components/headers/WWWAuthenticate"}
        elif status in WAITING_HELPS:
            headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
        schema = self._schemas.named(error, "out")
        example = self._examples.of(schema)
        text = description.rstrip(".")
        if error == self._default_error:
            info = {"@type": ERROR_INFO, "reason": reason, "domain": "chat-grpc", "metadata": {}}
            example |= {"detail": text, "message": text, "error": reason, "code": code, "details": [info]}
        else:  # OpenAI's
            kind = OPENAI_TYPES.get(status, "server_error")
            example["error"] |= {"message": text, "type": kind, "param": None, "code": reason.lower()}
            if status in UNREADABLE:
                schema = {"anyOf": [schema, self._schemas.named(self._default_error, "out")]}
        content = {"application/json": {"schema": schema, "example": example}}
        return {"description": description, "headers": headers, "content": content}


def _carried(event: Schema) -> Schema:
    """Return what the data of an event holds."""
    data = event["properties"]["data"]
    found: Schema = data.get("anyOf", [data])[0]["contentSchema"]
    return found
