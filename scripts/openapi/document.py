"""The whole document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from openapi.operations import Operations
from openapi.protos import Protos
from openapi.responses import HEADERS, Responses
from openapi.schemas import Schema, Schemas

PACKAGE = "gateway.v1"

DESCRIPTION = """\
Questions in, answers out: retrieval from memvid, text from a language model, streamed as it is written.

Every answer carries `X-Request-ID`. A request may bring its own; a chat request that is sent again under the same name
is answered once. What goes wrong before the first byte of an answer is an HTTP status with a JSON body of the schema
`Error`; what goes wrong later is the last event of the stream."""

REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "A name for this request, of 1 to 128 visible ASCII characters; any other is replaced by a new one.",
    # No example: Swagger UI would send it with every request, and the second one would be the first one again.
    "schema": {"type": "string"},
}

IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The ETag of what the client has.",
    "schema": {"type": "string"},
}

BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token (JWT) or an API key. Needed only where the server demands one, which is what its setting "
    "`CHAT_AUTH` says; others take no notice of it.",
}


def render(image: bytes, version: str, foreign: dict[str, Schema], is_open: Callable[[str], bool]) -> str:
    """Return the OpenAPI document of all services of gateway.v1, as JSON.

    Args:
        image: a FileDescriptorSet with source info, serialized.
        version: the version of the API.
        foreign: schemas that no proto holds, by name.
        is_open: whether a method, by its full name with a slash before it, never needs a credential.

    Raises:
        ValueError: two operations or two schemas have one name.
    """
    protos = Protos(image)
    schemas = Schemas(protos, PACKAGE, foreign)
    responses = Responses(protos, PACKAGE, schemas, is_open)
    operations = Operations(protos, PACKAGE, schemas, responses, is_open)
    paths: dict[str, dict[str, Any]] = {}
    tags = []
    for service in protos.services(PACKAGE):
        found = [each for method in service.methods for each in operations.of(method)]
        if found:
            tags.append({"name": service.name.removesuffix("Service"), "description": protos.comment(service)})
        for path, verb, operation in found:
            if verb in paths.setdefault(path, {}):
                raise ValueError(f"{verb.upper()} {path} is given twice")
            paths[path][verb] = operation
    _check_names(paths)
    document = {
        "openapi": "3.1.1",
        "info": {
            "title": "chat-grpc",
            "version": version,
            "summary": "Chat over your own documents",
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "Where this document comes from"}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": dict(sorted(responses.components.items())),
            "parameters": {"RequestId": REQUEST_ID, "IfNoneMatch": IF_NONE_MATCH},
            "headers": HEADERS,
            "securitySchemes": {"bearer": BEARER},
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _check_names(paths: dict[str, dict[str, Any]]) -> None:
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two methods of {PACKAGE} are named {', '.join(twice)}")
