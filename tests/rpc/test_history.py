"""HistoryService, HealthService, suggested questions, reflection and probes, through a real channel."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2, types_pb2
from chat_grpc._gen.chat.v1 import health_pb2 as chat_health_pb2
from chat_grpc.app import SERVICES
from chat_grpc.rpc.reflection import SERVICE_NAMES
from tests.support.fixtures import StartService
from tests.support.memvid import Memvid
from tests.support.service import Service, failure_of

List = history_pb2.ListMessagesRequest
Delete = history_pb2.DeleteMessagesRequest
Health = chat_health_pb2.GetHealthResponse


async def test_pages(chat_service: Service) -> None:
    for number in range(7):
        await chat_service.ask(f"question {number}", user_id="anna")
    seen: list[str] = []
    token = ""
    sizes = []
    while True:
        page = await chat_service.history.ListMessages(List(user_id="anna", page_size=3, page_token=token))
        seen += [message.message for message in page.messages]
        sizes.append(len(page.messages))
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"question {number}" for number in reversed(range(7))]
    assert sizes == [3, 3, 1]


async def test_last_page_has_no_token(chat_service: Service) -> None:
    for _ in range(3):
        await chat_service.ask(user_id="anna")
    page = await chat_service.history.ListMessages(List(user_id="anna", page_size=3))
    assert len(page.messages) == 3
    assert page.next_page_token == ""


async def test_page_token_outlives_the_server(start: StartService) -> None:
    async with start() as service:
        for number in range(3):
            await service.ask(f"question {number}", user_id="anna")
        token = (await service.history.ListMessages(List(user_id="anna", page_size=1))).next_page_token
    async with start() as service:
        page = await service.history.ListMessages(List(user_id="anna", page_size=1, page_token=token))
        assert page.messages[0].message == "question 1"


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (List(), ["user_id"]),
        (List(user_id="anna", session_id=str(uuid.uuid4())), ["user_id"]),
        (List(user_id="x"), ["user_id"]),
        (List(session_id="x"), ["session_id"]),
        (List(user_id="anna", page_size=-1), ["page_size"]),
        (List(user_id="anna", page_token="rubbish"), ["page_token"]),  # noqa: S106 (not a secret)
        (List(user_id="anna", page_token="A" * 64), ["page_token"]),
        (List(user_id="anna", page_token="ünï"), ["page_token"]),  # noqa: S106 (not a secret)
    ],
)
async def test_bad_queries(chat_service: Service, request_: List, named: list[str]) -> None:
    failure = await failure_of(chat_service.history.ListMessages(request_))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields == named


async def test_page_token_of_another_query(chat_service: Service) -> None:
    for user in ("anna", "bert"):
        for _ in range(2):
            await chat_service.ask(user_id=user)
    token = (await chat_service.history.ListMessages(List(user_id="anna", page_size=1))).next_page_token
    for foreign in (token[:-4] + "AAAA", token.swapcase()):
        failure = await failure_of(chat_service.history.ListMessages(List(user_id="anna", page_token=foreign)))
        assert failure.fields == ["page_token"]
    failure = await failure_of(chat_service.history.ListMessages(List(user_id="bert", page_token=token)))
    assert failure.fields == ["page_token"]


async def test_large_page_size_means_a_hundred(chat_service: Service) -> None:
    await chat_service.ask(user_id="anna")
    assert len((await chat_service.history.ListMessages(List(user_id="anna", page_size=100_000))).messages) == 1


async def test_delete_by_session_and_user(chat_service: Service) -> None:
    session = (await chat_service.ask(user_id="anna"))[0].started.session_id
    await chat_service.ask(user_id="anna", session_id=session)
    await chat_service.ask(user_id="anna")
    assert (await chat_service.history.DeleteMessages(Delete(session_id=session))).deleted_count == 2
    assert (await chat_service.fail(user_id="anna", session_id=session)).reason == "SESSION_NOT_FOUND"
    assert (await chat_service.history.DeleteMessages(Delete(user_id="anna"))).deleted_count == 1
    assert await chat_service.messages(user_id="anna") == []
    assert (await chat_service.history.DeleteMessages(Delete(user_id="anna"))).deleted_count == 0
    assert (await failure_of(chat_service.history.DeleteMessages(Delete()))).fields == ["user_id"]


async def test_suggested_questions(chat_service: Service, memory: Memvid) -> None:
    request = chat_pb2.ListSuggestedQuestionsRequest()
    response = await chat_service.chat.ListSuggestedQuestions(request)
    assert [(item.question, item.category) for item in response.questions] == [("What is it?", "general")]
    for nothing in (None, "not json"):
        memory.profile = nothing
        failure = await failure_of(chat_service.chat.ListSuggestedQuestions(request))
        assert failure.code is grpc.StatusCode.NOT_FOUND
        assert failure.reason == "PROFILE_NOT_FOUND"


async def test_suggested_questions_without_memory(start: StartService) -> None:
    async with start(CHAT_MEMVID_GRPC_URL="127.0.0.1:1") as service:
        failure = await failure_of(service.chat.ListSuggestedQuestions(chat_pb2.ListSuggestedQuestionsRequest()))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "RETRIEVAL_UNAVAILABLE"
        assert "RetryInfo" in failure.details


async def test_health_of_a_healthy_service(chat_service: Service) -> None:
    await chat_service.ask()
    health = await chat_service.health.GetHealth(chat_health_pb2.GetHealthRequest())
    assert health.status == Health.STATUS_HEALTHY
    assert {(part.component, part.status, part.detail) for part in health.components} == {
        (types_pb2.COMPONENT_RETRIEVAL, Health.STATUS_HEALTHY, ""),
        (types_pb2.COMPONENT_LLM, Health.STATUS_HEALTHY, ""),
        (types_pb2.COMPONENT_STORAGE, Health.STATUS_HEALTHY, ""),
    }
    assert health.memvid_frame_count == 2
    assert health.active_sessions == 1
    assert health.model == "local/test-model"


@pytest.mark.parametrize(
    ("setting", "component", "status"),
    [
        ("CHAT_MEMVID_GRPC_URL=127.0.0.1:1", types_pb2.COMPONENT_RETRIEVAL, Health.STATUS_DEGRADED),
        ("CHAT_LLM_BASE_URL=http://127.0.0.1:1/v1", types_pb2.COMPONENT_LLM, Health.STATUS_UNHEALTHY),
    ],
)
async def test_health_with_a_part_missing(start: StartService, setting: str, component: int, status: int) -> None:
    name, _, value = setting.partition("=")
    async with start(**{name: value}) as service:
        health = await service.health.GetHealth(chat_health_pb2.GetHealthRequest())
        assert health.status == status
        bad = [part for part in health.components if part.status != Health.STATUS_HEALTHY]
        assert [(part.component, part.status) for part in bad] == [(component, status)]
        assert bad[0].detail


@pytest.mark.parametrize("version", SERVICE_NAMES)
async def test_reflection_lists_and_describes(chat_service: Service, version: str) -> None:
    call: Any = chat_service.channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
    listed = {service.name for service in (await call.read()).list_services_response.service}
    assert listed == {*SERVICES, "grpc.health.v1.Health", *SERVICE_NAMES}
    for name in SERVICES:
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto, name
    await call.done_writing()


def test_folder_is_named_by_the_setting(chat_service: Service, tmp_path: Path) -> None:
    assert (tmp_path / "chat.db").exists()
