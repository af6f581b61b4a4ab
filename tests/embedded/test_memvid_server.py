from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2 as standard_pb2
from grpc_health.v1 import health_pb2_grpc as standard_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from chat_grpc._gen.memvid.v1 import health_pb2, health_pb2_grpc, memvid_pb2, memvid_pb2_grpc
from chat_grpc.embedded import probes
from tests.embedded.processes import Process, start

MOOR = "Guide › How do I moor a ship?"
GULLS = "Guide › How do I feed the gulls?"


@pytest.fixture
def memvid(channel: Any) -> Any:
    # Any, here and below: the generated types know asyncio's channels only, the code serves both.
    return memvid_pb2_grpc.MemvidServiceStub(channel)


def _ask(memvid: Any, question: str = "ships", **fields: Any) -> memvid_pb2.AskResponse:
    response: memvid_pb2.AskResponse = memvid.Ask(memvid_pb2.AskRequest(question=question, **fields))
    return response


def _titles(response: memvid_pb2.AskResponse | memvid_pb2.SearchResponse) -> list[str]:
    hits = response.evidence if isinstance(response, memvid_pb2.AskResponse) else response.hits
    return [hit.title for hit in hits]


def _violations(call: Callable[[], object]) -> dict[str, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details if detail.Is(bad.DESCRIPTOR))
    return {violation.field: violation.description for violation in bad.field_violations}


def test_the_passage_that_answers_comes_first(memvid: Any) -> None:
    response = _ask(memvid, "How do I moor my ships?")
    best, *others = response.evidence
    assert best.title == MOOR
    assert best.score > 0.9
    assert all(hit.score <= best.score for hit in others)
    assert list(best.tags) == ["alpha", "topic:ships"]
    assert response.answer.startswith(f"{MOOR}\n{best.snippet}")
    assert response.stats.results_returned == len(response.evidence)
    assert response.stats.candidates_retrieved >= len(response.evidence)
    assert not response.stats.used_fallback


def test_a_question_about_something_else_finds_nothing(memvid: Any) -> None:
    response = _ask(memvid, "What is the capital of France?")
    assert (list(response.evidence), response.answer) == ([], "")


def test_a_question_that_shares_little_scores_little(memvid: Any) -> None:
    response = _ask(memvid, "Which ships sailed to Antarctica with penguins?")
    assert response.evidence
    assert response.evidence[0].score < 0.4


@pytest.mark.parametrize("question", ["???", "and or not", 'tag:x AND ( "', "NOT ships", "http://a.b/c?d=e", "漢字"])
def test_a_question_is_never_taken_for_a_query_language(memvid: Any, question: str) -> None:
    assert all(0 <= hit.score <= 1 for hit in _ask(memvid, question).evidence)


def test_sizes_have_their_defaults(memvid: Any) -> None:
    long = next(hit for hit in _ask(memvid, "tide decides ship leave").evidence if hit.title == MOOR)
    assert 150 < len(long.snippet) <= 200
    assert long.snippet.endswith("…")
    assert len(_ask(memvid, top_k=1).evidence) == 1
    assert len(_ask(memvid, snippet_chars=20).evidence[0].snippet) <= 20
    whole = next(hit for hit in _ask(memvid, "moor ship", snippet_chars=10_000).evidence if hit.title == MOOR)
    assert whole.snippet.startswith("Throw a rope")
    assert whole.snippet.endswith("may leave.")


def test_a_snippet_shows_what_was_asked_for(memvid: Any) -> None:
    response = _ask(memvid, "lamps lit at dusk", snippet_chars=40)
    assert response.evidence[0].title == "notes"
    assert "lamps are lit" in response.evidence[0].snippet


def test_use_llm_answers_with_the_context(memvid: Any) -> None:
    assert _ask(memvid, use_llm=True).answer == _ask(memvid).answer != ""


@pytest.mark.parametrize(
    ("condition", "finds"),
    [
        ({"filters": {"tag": "alpha"}}, True),
        ({"filters": {"tag": "ALPHA", "topic": "ships"}}, True),
        ({"filters": {"topic": "trains"}}, False),
        ({"filters": {"tag": "alpha", "topic": "trains"}}, False),
        ({"uri": "elsewhere/"}, False),
        ({"start": 1, "end": 2}, False),
        ({"start": 1}, True),
        ({"end": 2}, False),
        ({"as_of_ts": 2}, False),
        ({"as_of_ts": 99_999_999_999}, True),
        ({"as_of_frame": 10_000}, True),
    ],
)
def test_conditions_leave_out_what_does_not_hold(memvid: Any, condition: dict[str, Any], *, finds: bool) -> None:
    assert (MOOR in _titles(_ask(memvid, "moor a ship", **condition))) is finds


def test_a_uri_names_a_folder_or_file(memvid: Any, small_memory: Path) -> None:
    folder = small_memory.parent.name
    assert "notes" not in _titles(_ask(memvid, uri=f"{folder}/harbour/"))
    assert _titles(_ask(memvid, uri=f"mv2://{folder}/notes.txt")) == ["notes"]


def test_as_of_a_frame_what_came_later_is_absent(memvid: Any) -> None:
    assert set(_titles(_ask(memvid))) == {"Guide", MOOR, GULLS, "notes"}  # the gulls by their tag
    assert _titles(_ask(memvid, as_of_frame=0)) == ["notes"]


def test_adaptive_leaves_out_what_is_far_behind_the_best(memvid: Any) -> None:
    question = "gulls eat bread near ships"
    assert len(_ask(memvid, question).evidence) > 1
    assert _titles(_ask(memvid, question, adaptive=True)) == [GULLS]


def test_an_absent_index_is_replaced_and_that_is_said(memvid: Any) -> None:
    assert _ask(memvid, mode=memvid_pb2.ASK_MODE_SEM).stats.used_fallback
    assert not _ask(memvid, mode=memvid_pb2.ASK_MODE_LEX).stats.used_fallback


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"question": ""}, "question"),
        ({"question": " \n"}, "question"),
        ({"question": "x" * 10_001}, "question"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 51}, "top_k"),
        ({"snippet_chars": -1}, "snippet_chars"),
        ({"snippet_chars": 10_001}, "snippet_chars"),
        ({"mode": 9}, "mode"),
        ({"start": -1}, "start"),
        ({"start": 2, "end": 1}, "end"),
        ({"cursor": "5"}, "cursor"),
        ({"as_of_frame": -1}, "as_of_frame"),
        ({"as_of_ts": -1}, "as_of_ts"),
        ({"filters": {"": "x"}}, "filters"),
        ({"filters": {str(number): "x" for number in range(17)}}, "filters"),
    ],
)
def test_what_ask_can_not_do_is_refused(memvid: Any, fields: dict[str, Any], field: str) -> None:
    violations = _violations(lambda: _ask(memvid, **fields))
    assert violations.keys() == {field}
    assert violations[field].startswith("must") or field == "mode"


def test_search_wants_every_word(memvid: Any) -> None:
    def search(query: str, **fields: Any) -> memvid_pb2.SearchResponse:
        response: memvid_pb2.SearchResponse = memvid.Search(memvid_pb2.SearchRequest(query=query, **fields))
        return response

    both = search("rope bollard")
    assert (_titles(both), both.total_hits) == ([MOOR], 1)
    assert 0 < both.hits[0].score <= 1
    assert _titles(search("rope gulls")) == []
    assert set(_titles(search("ship"))) >= {MOOR, "notes"}
    assert len(search("ship", top_k=1).hits) == 1
    assert search("ship", top_k=1).total_hits > 1
    assert _titles(search('"bread, fish"')) == [GULLS]
    strict = search("ship", min_relevance=0.95)
    assert _titles(strict) == [MOOR]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": '"never closed'}, "query"),
        ({"min_relevance": 1.5}, "min_relevance"),
        ({"min_relevance": float("nan")}, "min_relevance"),
        ({"mode": memvid_pb2.ASK_MODE_SEM}, "mode"),
        ({"top_k": 2_000_000_000}, "top_k"),
    ],
)
def test_what_search_can_not_do_is_refused(memvid: Any, fields: dict[str, Any], field: str) -> None:
    request = memvid_pb2.SearchRequest(**({"query": "ship"} | fields))
    assert _violations(lambda: memvid.Search(request)).keys() == {field}


def test_the_profile_is_a_memory_card(memvid: Any) -> None:
    state = memvid.GetState(memvid_pb2.GetStateRequest(entity="__profile__", slot="data"))
    assert (state.found, state.entity) == (True, "__profile__")
    assert json.loads(state.slots["data"])["suggested_questions"] == ["How do I moor a ship?"]
    assert memvid.GetState(memvid_pb2.GetStateRequest(entity="__profile__")).slots == state.slots


def test_an_unknown_entity_or_slot_is_not_found(memvid: Any) -> None:
    for entity, slot in (("nobody", ""), ("__profile__", "other")):
        state = memvid.GetState(memvid_pb2.GetStateRequest(entity=entity, slot=slot))
        assert (state.found, dict(state.slots)) == (False, {})
    assert _violations(lambda: memvid.GetState(memvid_pb2.GetStateRequest())).keys() == {"entity"}


def test_its_own_health_tells_what_is_open(channel: Any, small_memory: Path) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", "memvid.v1.MemvidService", "memvid.v1.Health"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert (answer.frame_count, answer.memvid_file) == (4, str(small_memory))
    unknown = health.Check(health_pb2.HealthCheckRequest(service="other"))
    assert unknown.status == health_pb2.HealthCheckResponse.UNKNOWN


def test_the_standard_health_service_answers_check_and_watch(channel: Any) -> None:
    health = standard_pb2_grpc.HealthStub(channel)
    for service in ("", "memvid.v1.MemvidService", "memvid.v1.Health"):
        request = standard_pb2.HealthCheckRequest(service=service)
        assert health.Check(request).status == standard_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(request)
        assert next(watch).status == standard_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services(channel: Any, version: str) -> None:
    reflect = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answer = next(reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {"memvid.v1.MemvidService", "memvid.v1.Health", "grpc.health.v1.Health"}


def test_many_callers_at_once_get_their_own_answers(memvid: Any) -> None:
    expected = {"moor a ship": MOOR, "feed the gulls": GULLS, "lighthouses and rocks": "notes"}
    calls = [
        (title, memvid.Ask.future(memvid_pb2.AskRequest(question=question)))
        for _ in range(20)
        for question, title in expected.items()
    ]
    assert all(call.result().evidence[0].title == title for title, call in calls)


def test_signals_end_it_cleanly(small_memory: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        address = f"127.0.0.1:{probes.free_port()}"
        with start("memvid", CHAT_MEMVID_GRPC_URL=address, CHAT_MEMVID_FILE=str(small_memory)) as process:
            process.wait_for("serving")
            assert process.end(number) == 0


def test_a_running_server_keeps_the_file_that_was_replaced(
    memvid_process: tuple[Process, str], memvid: Any, small_memory: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.mv2"
    small_memory.rename(kept)
    try:
        small_memory.write_bytes(b"something else")
        assert _titles(_ask(memvid, "rope to the bollard"))[0] == MOOR
    finally:
        kept.replace(small_memory)


def test_faults_at_start_are_one_sentence(
    memvid_process: tuple[Process, str], small_memory: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mv2"
    broken.write_text("not a memory")
    free = f"127.0.0.1:{probes.free_port()}"
    for settings, text in (
        ({"CHAT_MEMVID_FILE": str(tmp_path / "none.mv2"), "CHAT_MEMVID_GRPC_URL": free}, "chat-grpc ingest docs --out"),
        ({"CHAT_MEMVID_FILE": str(broken), "CHAT_MEMVID_GRPC_URL": free}, "is not a memory file"),
        ({"CHAT_MEMVID_FILE": str(small_memory), "CHAT_MEMVID_GRPC_URL": memvid_process[1]}, "is taken"),
    ):
        with start("memvid", **settings) as process:
            assert process.wait() == 1
            assert len(process.lines) == 1
            assert text in process.lines[0]


def test_keys_in_the_environment_send_nothing_anywhere(small_memory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        called: list[object] = []
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, peer = listener.accept()
                except TimeoutError:
                    continue
                called.append(peer)
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        port = listener.getsockname()[1]
        address = f"127.0.0.1:{probes.free_port()}"
        elsewhere = f"http://127.0.0.1:{port}"
        try:
            with start(
                "memvid",
                CHAT_MEMVID_GRPC_URL=address,
                CHAT_MEMVID_FILE=str(small_memory),
                MEMVID_API_KEY="mv2_a_key_of_somebody",
                MEMVID_DASHBOARD_URL=elsewhere,
                MEMVID_API_URL=elsewhere,
                OPENAI_API_KEY="sk-a-key",
                GEMINI_API_KEY="a-key",
                HTTPS_PROXY=elsewhere,
                HTTP_PROXY=elsewhere,
                NO_PROXY="",
            ) as process:
                process.wait_for("serving")
                with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
                    blocking: Any = channel
                    stub = memvid_pb2_grpc.MemvidServiceStub(blocking)
                    assert _titles(_ask(stub, "moor a ship"))[0] == MOOR
                    stub.Search(memvid_pb2.SearchRequest(query="ship"))
                time.sleep(0.3)  # telemetry would leave with the first flush, at the latest at the end
                assert process.end() == 0
        finally:
            stop.set()
            thread.join()
        assert called == []
