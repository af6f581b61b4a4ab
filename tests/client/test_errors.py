"""Statuses that a server other than ours may send: a scripted servicer over a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc, health_pb2, health_pb2_grpc
from chat_grpc.client import ChatClient, ChatError
from tests.support.certificates import server_certificate

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour = Callable[["grpc.aio.ServicerContext[Any, Any]"], Awaitable[None]]


class Odd(chat_pb2_grpc.ChatServiceServicer, health_pb2_grpc.HealthServiceServicer):
    """Ends every call as the test says."""

    behaviour: Behaviour
    events: tuple[chat_pb2.ChatResponse, ...] = ()

    async def Chat(self, request: chat_pb2.ChatRequest, context: Context) -> AsyncIterator[chat_pb2.ChatResponse]:
        for event in self.events:
            yield event
        await self.behaviour(context)

    async def ListSuggestedQuestions(
        self, request: chat_pb2.ListSuggestedQuestionsRequest, context: Context
    ) -> chat_pb2.ListSuggestedQuestionsResponse:
        return chat_pb2.ListSuggestedQuestionsResponse()

    async def GetHealth(self, request: health_pb2.GetHealthRequest, context: Context) -> health_pb2.GetHealthResponse:
        return health_pb2.GetHealthResponse(version="odd")


@pytest.fixture
async def odd() -> AsyncIterator[tuple[Odd, str]]:
    servicer = Odd()
    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


def aborting(code: grpc.StatusCode, text: str, *metadata: tuple[str, bytes]) -> Behaviour:
    async def behaviour(context: Context) -> None:
        await context.abort(code, text, metadata)

    return behaviour


async def failure(address: str) -> ChatError:
    async with ChatClient(address) as client:
        with pytest.raises(ChatError) as caught:
            await client.answer("Hello")
    return caught.value


async def test_a_status_without_details(odd: tuple[Odd, str]) -> None:
    odd[0].behaviour = aborting(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
    error = await failure(odd[1])
    assert (error.code, error.message, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", "")


async def test_details_that_are_not_ours(odd: tuple[Odd, str]) -> None:
    odd[0].behaviour = aborting(
        grpc.StatusCode.UNAVAILABLE, "no", ("grpc-status-details-bin", b"\xff\xff not a Status")
    )
    error = await failure(odd[1])
    assert (error.code, error.message, error.reason) == (grpc.StatusCode.UNAVAILABLE, "no", "")


async def test_a_server_that_cancels_does_not_look_like_a_cancelled_task(odd: tuple[Odd, str]) -> None:
    odd[0].behaviour = aborting(grpc.StatusCode.CANCELLED, "gone")
    assert (await failure(odd[1])).code is grpc.StatusCode.CANCELLED


async def test_an_answer_without_its_end_is_a_failure(odd: tuple[Odd, str]) -> None:
    async def nothing(context: Context) -> None:
        pass

    odd[0].behaviour = nothing
    odd[0].events = (chat_pb2.ChatResponse(delta=chat_pb2.Delta(text="half")),)
    assert (await failure(odd[1])).reason == "INCOMPLETE"


async def test_a_connection_that_is_lost_in_the_middle(odd: tuple[Odd, str]) -> None:
    odd[0].behaviour = aborting(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    odd[0].events = (chat_pb2.ChatResponse(delta=chat_pb2.Delta(text="half")),)
    error = await failure(odd[1])
    assert error.reason == "CONNECTION_LOST"
    assert "Socket" not in error.message


async def test_an_event_of_a_later_protocol_is_passed_over(odd: tuple[Odd, str]) -> None:
    unknown = chat_pb2.ChatResponse.FromString(b"\xa2\x06\x00")  # field 100, empty
    last = chat_pb2.ChatResponse(completed=chat_pb2.Completed(message_id="msg_1"))

    async def nothing(context: Context) -> None:
        pass

    odd[0].behaviour = nothing
    odd[0].events = (unknown, last)
    async with ChatClient(odd[1]) as client:
        assert (await client.answer("Hello")).completed.message_id == "msg_1"


async def test_tls() -> None:
    certificate = server_certificate("localhost")
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServiceServicer_to_server(Odd(), server)
    port = server.add_secure_port(
        "localhost:0", grpc.ssl_server_credentials([(certificate.key_pem, certificate.chain_pem)])
    )
    await server.start()
    try:
        trusted = grpc.ssl_channel_credentials(certificate.authority_pem)
        async with ChatClient(f"localhost:{port}", credentials=trusted) as client:
            assert (await client.health()).version == "odd"
        async with ChatClient(f"localhost:{port}", secure=True) as client:
            with pytest.raises(ChatError):  # signed by nobody whom this system trusts
                await client.health()
    finally:
        await server.stop(None)
