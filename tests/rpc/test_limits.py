"""Limits through a real channel: what a client is told, and what is never refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from chat_grpc._gen.chat.v1 import chat_pb2
from chat_grpc._gen.chat.v1 import health_pb2 as chat_health_pb2
from chat_grpc._gen.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from chat_grpc.rpc.reflection import SERVICE_NAMES
from tests.support.fixtures import StartService
from tests.support.service import Failure, Service, failure_of
from tests.support.upstream import Exchange, Upstream


def retry_after(failure: Failure) -> float:
    """Return RetryInfo in seconds."""
    delay = failure.details["RetryInfo"].retry_delay
    return float(delay.seconds + delay.nanos / 1e9)


def limit_of(failure: Failure) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Return the status, the reason, and which limit at which quota."""
    return failure.code, failure.reason, dict(failure.details["ErrorInfo"].metadata)


def from_address(service: Service, address: str, **fields: Any) -> Any:
    """Ask as a proxy in front of the server does for a client of that address."""
    request = chat_pb2.ChatRequest(message="How?", **fields)
    return service.chat.Chat(request, metadata=(("x-envoy-external-address", address),))


@asynccontextmanager
async def streaming(service: Service, model: Upstream, count: int = 1, **fields: Any) -> AsyncIterator[list[Any]]:
    """Hold so many answers under way: the model has begun each, and never ends."""

    async def endless(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("Well")
        await exchange.gone.wait()

    model.answer = endless
    calls = [service.chat.Chat(chat_pb2.ChatRequest(message=f"How {number}?", **fields)) for number in range(count)]
    for call in calls:
        while not (await call.read()).HasField("delta"):
            pass
    yield calls
    for call in calls:
        call.cancel()


async def test_a_user_is_held_to_a_rate_and_told_when_to_come_again(start: StartService) -> None:
    async with start(CHAT_RATE_LIMIT="3/minute") as service:
        for _ in range(3):
            await service.ask(user_id="alice")
        failure = await service.fail(user_id="alice")
        assert limit_of(failure) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "RATE_LIMITED",
            {"limit": "user", "quota": "3/minute"},
        )
        assert failure.events == []
        assert 0 < retry_after(failure) <= 20
        assert 1 <= int(failure.trailers["retry-after"]) <= 20
        assert "3/minute" in failure.message
        await service.ask(user_id="bob")
        # What was refused is not in the history, and has not reached the model.
        assert len(await service.messages(user_id="alice")) == 3


async def test_who_waits_as_long_as_told_is_answered(start: StartService) -> None:
    async with start(CHAT_RATE_LIMIT="2/second") as service:
        failure = None
        async with asyncio.timeout(30):
            while failure is None:
                with suppress(AssertionError):  # it was answered
                    failure = await service.fail(user_id="alice")
        assert 0 < retry_after(failure) <= 0.5
        await asyncio.sleep(retry_after(failure))
        await service.ask(user_id="alice")


async def test_an_invalid_request_costs_nothing(start: StartService) -> None:
    async with start(CHAT_RATE_LIMIT="1/hour") as service:
        for _ in range(3):
            assert (await service.fail(message="", user_id="alice")).reason == "INVALID_REQUEST"
        await service.ask(user_id="alice")


async def test_an_address_is_held_to_a_rate_whatever_users_it_names(start: StartService) -> None:
    async with start(CHAT_ADDRESS_RATE_LIMIT="2/hour") as service:
        assert await from_address(service, "192.0.2.1", user_id="user1").read()
        assert await from_address(service, "192.0.2.1", user_id="user2").read()
        failure = await failure_of(from_address(service, "192.0.2.1", user_id="user3"))
        assert limit_of(failure)[2] == {"limit": "address", "quota": "2/hour"}
        assert await from_address(service, "192.0.2.2", user_id="user3").read()


async def test_addresses_of_one_ipv6_network_are_one(start: StartService) -> None:
    async with start(CHAT_ADDRESS_RATE_LIMIT="1/hour") as service:
        assert await from_address(service, "2001:db8:1:2::1").read()
        assert (await failure_of(from_address(service, "2001:db8:1:2:ffff::9"))).reason == "RATE_LIMITED"
        assert await from_address(service, "2001:db8:1:3::1").read()


@pytest.mark.parametrize("header", ["x-envoy-external-address", "x-forwarded-for"])
async def test_a_client_that_is_no_proxy_gains_nothing_by_claiming_another_address(
    start: StartService, header: str
) -> None:
    async with start(CHAT_ADDRESS_RATE_LIMIT="1/hour", CHAT_TRUSTED_PROXIES="none") as service:
        await service.ask()
        call = service.chat.Chat(chat_pb2.ChatRequest(message="How?"), metadata=((header, "192.0.2.200"),))
        assert (await failure_of(call)).reason == "RATE_LIMITED"


async def test_limits_that_are_off_refuse_nobody(start: StartService) -> None:
    off = {"CHAT_RATE_LIMIT": "off", "CHAT_ADDRESS_RATE_LIMIT": "off"}
    async with start(**off) as service:
        for _ in range(70):
            await service.ask(user_id="alice")


async def test_a_user_has_so_many_streams_and_no_more(start: StartService, model: Upstream) -> None:
    async with (
        start(CHAT_MAX_STREAMS_PER_USER="2") as service,
        streaming(service, model, 2, user_id="alice") as calls,
    ):
        failure = await service.fail(user_id="alice")
        assert limit_of(failure) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_STREAMS",
            {"limit": "streams_user", "quota": "2"},
        )
        assert retry_after(failure) > 0
        other = service.chat.Chat(chat_pb2.ChatRequest(message="How?", user_id="bob"))
        assert (await other.read()).HasField("started")
        other.cancel()
        # A client that leaves frees its place.
        calls[0].cancel()
        async with asyncio.timeout(10):
            while True:
                call = service.chat.Chat(chat_pb2.ChatRequest(message="Again?", user_id="alice"))
                try:
                    assert (await call.read()).HasField("started")
                except grpc.aio.AioRpcError:
                    continue
                call.cancel()
                break


async def test_beyond_the_total_callers_wait_in_a_queue_and_then_are_refused(
    start: StartService, model: Upstream
) -> None:
    settings = {"CHAT_MAX_STREAMS": "1", "CHAT_QUEUE_LENGTH": "1", "CHAT_QUEUE_SECONDS": "3600"}
    async with (
        start(**settings) as service,
        streaming(service, model, user_id="alice") as calls,
        asyncio.timeout(30),
    ):
        # Of two more one waits, and the other finds the queue full.
        others = [service.chat.Chat(chat_pb2.ChatRequest(message="How?", user_id=user)) for user in ("bob", "carol")]
        ends = [asyncio.ensure_future(failure_of(call)) for call in others]
        done, waiting = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        failure = done.pop().result()
        assert limit_of(failure) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_STREAMS",
            {"limit": "streams_total", "quota": "1"},
        )
        assert retry_after(failure) > 0
        # The other gets the place as soon as it is free.
        asked = len(model.chats)
        calls[0].cancel()
        while len(model.chats) == asked:
            await asyncio.sleep(0.01)
        waiting.pop().cancel()
        for call in others:
            call.cancel()


async def test_a_wait_in_the_queue_ends_with_a_refusal(start: StartService, model: Upstream) -> None:
    async with (
        start(CHAT_MAX_STREAMS="1", CHAT_QUEUE_SECONDS="0.05") as service,
        streaming(service, model, user_id="alice"),
        asyncio.timeout(30),
    ):
        failure = await service.fail(user_id="bob")
        assert limit_of(failure)[1:] == ("TOO_MANY_STREAMS", {"limit": "streams_total", "quota": "1"})
        assert len(model.chats) == 1


async def test_a_caller_that_leaves_the_queue_frees_its_place(start: StartService, model: Upstream) -> None:
    settings = {"CHAT_MAX_STREAMS": "1", "CHAT_QUEUE_LENGTH": "1", "CHAT_QUEUE_SECONDS": "3600"}
    async with start(**settings) as service, streaming(service, model, user_id="alice"), asyncio.timeout(30):
        for number in range(5):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                # Its deadline passes in the queue; were its place kept, the next one would be refused.
                await service.chat.Chat(
                    chat_pb2.ChatRequest(message="How?", user_id=f"user{number}"), timeout=0.1
                ).read()
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_the_rest_route_has_a_rate_of_its_own(start: StartService) -> None:
    async with start(RATE_LIMIT_PER_MINUTE="2", CHAT_RATE_LIMIT="1/hour") as service:
        stub = gateway_pb2_grpc.GatewayServiceStub(service.channel)
        for _ in range(2):
            assert [chunk async for chunk in stub.Chat(gateway_pb2.ChatRequest(message="How?"))]
        failure = await failure_of(stub.Chat(gateway_pb2.ChatRequest(message="How?")))
        assert limit_of(failure) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "RATE_LIMITED",
            {"limit": "rest", "quota": "2/minute"},
        )
        await service.ask()  # the native API has its own


async def test_health_and_reflection_answer_when_nothing_else_does(start: StartService, model: Upstream) -> None:
    settings = {"CHAT_MAX_STREAMS": "1", "CHAT_QUEUE_LENGTH": "0", "CHAT_RATE_LIMIT": "1/day"}
    async with start(**settings) as service, streaming(service, model), asyncio.timeout(60):
        for _ in range(20):
            assert (await service.fail()).code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await service.fail(user_id="somebody")).code is grpc.StatusCode.RESOURCE_EXHAUSTED

            standard = health_pb2_grpc.HealthStub(service.channel)
            # Nobody has set a state here; what counts is that the call is answered, not refused.
            await standard.Check(health_pb2.HealthCheckRequest())
            watch = standard.Watch(health_pb2.HealthCheckRequest())
            assert await watch.read()
            watch.cancel()
            assert (await service.health.GetHealth(chat_health_pb2.GetHealthRequest())).components
            for name in SERVICE_NAMES:
                call: Any = service.channel.stream_stream(
                    f"/{name}/ServerReflectionInfo",
                    request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                    response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
                )()
                await call.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
                assert (await call.read()).list_services_response.service
                await call.done_writing()
