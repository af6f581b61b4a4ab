"""memvid.v1 is frozen: deployed services speak it."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor

from chat_grpc._gen.memvid.v1 import health_pb2, memvid_pb2

# number, name, type; "[]" repeated, "?" with presence.
MESSAGES = {
    "SearchRequest": "1 query string, 2 top_k int32, 3 snippet_chars int32, 4 min_relevance float, 5 mode AskMode",
    "SearchResponse": "1 hits SearchHit[], 2 total_hits int32, 3 took_ms int32",
    "SearchHit": "1 title string, 2 score float, 3 snippet string, 4 tags string[]",
    "AskRequest": (
        "1 question string, 2 use_llm bool, 3 top_k int32, 4 filters map<string,string>, 5 start int64, 6 end int64, "
        "7 snippet_chars int32, 8 mode AskMode, 9 uri string, 10 cursor string, 11 as_of_frame int64?, "
        "12 as_of_ts int64?, 13 adaptive bool?"
    ),
    "AskResponse": "1 answer string, 2 evidence SearchHit[], 3 stats AskStats",
    "AskStats": (
        "1 candidates_retrieved int32, 2 results_returned int32, 3 retrieval_ms int32, 4 reranking_ms int32, "
        "5 used_fallback bool"
    ),
    "GetStateRequest": "1 entity string, 2 slot string",
    "GetStateResponse": "1 found bool, 2 entity string, 3 slots map<string,string>",
    "HealthCheckRequest": "1 service string",
    "HealthCheckResponse": "1 status Status, 2 frame_count int32, 3 memvid_file string",
}

TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_BOOL: "bool",
}


def _type(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return str(field.enum_type.name)
    if field.message_type is None:
        return TYPES[field.type]
    if field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{_type(key)},{_type(value)}>"
    return str(field.message_type.name)


def _suffix(field: FieldDescriptor) -> str:
    if field.is_repeated and not _type(field).startswith("map<"):
        return "[]"
    scalar = field.message_type is None
    return "?" if scalar and field.has_presence else ""


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_has_its_number_name_and_type(name: str) -> None:
    file = health_pb2 if name.startswith("Health") else memvid_pb2
    fields = file.DESCRIPTOR.message_types_by_name[name].fields
    assert (
        ", ".join(f"{field.number} {field.name} {_type(field)}{_suffix(field)}" for field in fields) == MESSAGES[name]
    )


def test_there_is_no_other_message() -> None:
    names = {*memvid_pb2.DESCRIPTOR.message_types_by_name, *health_pb2.DESCRIPTOR.message_types_by_name}
    assert names == MESSAGES.keys()


def test_the_enums_have_their_numbers() -> None:
    assert memvid_pb2.AskMode.items() == [("ASK_MODE_HYBRID", 0), ("ASK_MODE_SEM", 1), ("ASK_MODE_LEX", 2)]
    assert health_pb2.HealthCheckResponse.Status.items() == [("UNKNOWN", 0), ("SERVING", 1), ("NOT_SERVING", 2)]


def _methods(service: ServiceDescriptor) -> list[tuple[str, str, str]]:
    assert not any(method.client_streaming or method.server_streaming for method in service.methods)
    return [(method.name, method.input_type.name, method.output_type.name) for method in service.methods]


def test_the_services_have_their_methods() -> None:
    service = memvid_pb2.DESCRIPTOR.services_by_name["MemvidService"]
    assert service.full_name == "memvid.v1.MemvidService"
    assert _methods(service) == [
        ("Search", "SearchRequest", "SearchResponse"),
        ("Ask", "AskRequest", "AskResponse"),
        ("GetState", "GetStateRequest", "GetStateResponse"),
    ]
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    assert health.full_name == "memvid.v1.Health"
    assert _methods(health) == [("Check", "HealthCheckRequest", "HealthCheckResponse")]
