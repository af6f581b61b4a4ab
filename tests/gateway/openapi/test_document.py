"""The OpenAPI document: valid, whole, and true to its own examples."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.gateway.openapi.checking import Document, event_faults, events_of, faults, operations, resolved
from tests.support.process import ROOT


def bodies(document: Document) -> list[tuple[str, str, dict[str, Any], list[Any]]]:
    """Return every body of the document that has examples: whose, its type, its schema, the examples."""
    found = []
    for method, path, operation in operations(document):
        parts = {"request": operation["requestBody"]} if "requestBody" in operation else {}
        for name, part in (parts | operation["responses"]).items():
            for content_type, media in resolved(document, part).get("content", {}).items():
                examples = [example["value"] for example in media.get("examples", {}).values()]
                examples += [media["example"]] if "example" in media else []
                found.append((f"{method} {path} {name}", content_type, media["schema"], examples))
    return found


def test_it_is_openapi_3_1(document: Document) -> None:
    assert document["openapi"].startswith("3.1.")
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_it_lists_what_envoy_transcodes_and_nothing_else(document: Document) -> None:
    """The routes in the descriptors of the services that Envoy is told to transcode."""
    descriptors = descriptor_pb2.FileDescriptorSet.FromString((ROOT / "envoy" / "descriptors.binpb").read_bytes())
    config = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (transcoder,) = (item["typed_config"] for item in manager["http_filters"] if "services" in item["typed_config"])
    routes = set()
    for file in descriptors.file:
        for service in file.service:
            if f"{file.package}.{service.name}" in transcoder["services"]:
                for method in service.method:
                    rule = method.options.Extensions[annotations_pb2.http]
                    for each in (rule, *rule.additional_bindings):
                        verb = each.WhichOneof("pattern")
                        routes.add((verb.upper(), re.sub(r"=\*+}", "}", getattr(each, verb))))
    assert {(method, path) for method, path, _ in operations(document)} == routes
    assert len(routes) > 10


def test_every_operation_is_told_of(document: Document) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert re.fullmatch("[a-z][A-Za-z0-9]+", operation["operationId"]), where
        assert operation["summary"], where
        assert operation["tags"][0] in {tag["name"] for tag in document["tags"] if tag["description"]}, where
        assert {"200", "400", "500", "503", "504"} <= operation["responses"].keys(), where
        in_path = {item["name"] for item in operation["parameters"] if item.get("in") == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path)), where
        if "requestBody" in operation:
            assert {"413", "415"} <= operation["responses"].keys(), where


def test_a_credential_is_asked_for_where_servers_may_demand_one(document: Document) -> None:
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert "CHAT_AUTH" in scheme["description"]
    free = {path for _, path, operation in operations(document) if "security" not in operation}
    assert {"/", "/health", "/docs", "/openapi.json"} <= free
    assert free.isdisjoint({"/api/v1/chat", "/history/{user_id}", "/v1/chat/completions", "/metrics"})
    for method, path, operation in operations(document):
        assert operation.get("security") in (None, [{"bearer": []}, {}]), f"{method} {path}"
        refused = operation["responses"].get("401")
        assert (refused is not None) == ("security" in operation), f"{method} {path}"
        if refused:
            assert "WWW-Authenticate" in resolved(document, refused)["headers"], f"{method} {path}"


def test_every_answer_names_its_request_and_every_error_has_the_form_of_errors(document: Document) -> None:
    openai = {"$ref": "#/components/schemas/ErrorResponse"}
    ours = {"$ref": "#/components/schemas/Error"}
    for method, path, operation in operations(document):
        for status, reference in operation["responses"].items():
            where = f"{method} {path} {status}"
            response = resolved(document, reference)
            assert resolved(document, response["headers"]["X-Request-ID"])["required"], where
            if status >= "400":
                schema = response["content"]["application/json"]["schema"]
                assert (openai if path.startswith("/v1/") else ours) in [schema, *schema.get("anyOf", [])], where
            if status == "429":
                assert resolved(document, response["headers"]["Retry-After"])["required"], where


def test_every_body_has_examples_that_keep_to_its_schema(document: Document) -> None:
    checked = 0
    for where, content_type, schema, examples in bodies(document):
        if content_type == "application/json":
            assert examples, where
            for example in examples:
                assert faults(document, schema, example) == [], where
                checked += 1
        elif content_type == "text/event-stream":
            (example,) = examples
            assert len(events_of(example)) > 3, where
            assert event_faults(document, schema, example) == [], where
            checked += 1
    assert checked > 50


def test_every_field_has_a_description(document: Document) -> None:
    ours = {name: schema for name, schema in document["components"]["schemas"].items() if "title" not in schema}
    untold = [
        f"{name}.{field}"
        for name, schema in ours.items()
        for field, value in schema.get("properties", {}).items()
        if "description" not in value
    ]
    # Those of gateway/openai_shapes.py have titles, and names that OpenAI documents.
    assert untold == []


def test_the_rules_of_fields_are_bounds_and_defaults(document: Document) -> None:
    chat = document["components"]["schemas"]["ChatRequest"]
    message, stream = chat["properties"]["message"], chat["properties"]["stream"]
    assert chat["required"] == ["message"]
    assert (message["minLength"], message["maxLength"]) == (1, 2000)
    assert stream["default"] is True
    history = document["paths"]["/history/{user_id}"]["get"]["parameters"]
    user, limit = ({item.get("name"): item for item in history}[name]["schema"] for name in ("user_id", "limit"))
    assert (user["minLength"], user["maxLength"]) == (3, 100)
    assert (limit["minimum"], limit["default"]) == (1, 10)


def test_the_kinds_of_events_are_told_apart_by_their_type(document: Document) -> None:
    (media,) = (
        schema
        for where, kind, schema, _ in bodies(document)
        if (where, kind) == ("POST /api/v1/chat 200", "text/event-stream")
    )
    union = resolved(document, media["properties"]["data"]["contentSchema"])
    kinds = union["discriminator"]["mapping"]
    assert list(kinds) == ["retrieval", "token", "stats", "done", "error"]
    for kind, reference in kinds.items():
        schema = resolved(document, {"$ref": reference})
        assert schema["properties"]["type"]["const"] == kind
        assert "type" in schema["required"]


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"type": "token", "content": "They"}, False),
        ({"type": "token"}, True),
        ({"type": "tokens", "content": "They"}, True),
        ({"type": "done", "finish_reason": "stop", "more": 1}, False),
    ],
)
def test_the_schema_of_events_can_refuse(document: Document, value: Any, *, wrong: bool) -> None:
    assert bool(faults(document, {"$ref": "#/components/schemas/ChatEvent"}, value)) == wrong
