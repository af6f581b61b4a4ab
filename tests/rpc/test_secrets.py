"""Secrets stay where they are: in no log, error, trace or repr. And reflection, which tells strangers what there is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from chat_grpc._gen.chat.v1 import chat_pb2
from chat_grpc.auth import keys
from chat_grpc.auth.authenticator import choose
from chat_grpc.rpc import channelz
from chat_grpc.rpc.reflection import SERVICE_NAMES
from chat_grpc.settings import Secret, Settings, SettingsError, load
from tests.gateway.edges import running_edge
from tests.support.fixtures import StartService
from tests.support.otlp import collector
from tests.support.process import chat_grpc, free_port, serving
from tests.support.service import Service, failure_of
from tests.support.tokens import AUDIENCE, ISSUER, JWT, SECRET, Metadata, bearer, token

SECRETS = [field.name for field in dataclasses.fields(Settings) if isinstance(field.default, Secret)]


def test_every_setting_that_is_a_secret_hides_it() -> None:
    assert {"jwt_secret", "token", "llm_api_key"} <= set(SECRETS)
    hidden = {f"CHAT_{name.upper()}": f"{name}-which-is-hidden-and-long-enough-for-hs256" for name in SECRETS}
    hidden["CHAT_REDIS_URL"] = f"redis://name:{hidden['CHAT_REDIS_URL']}@127.0.0.1:6379/0"
    settings = load({**hidden, "CHAT_AUTH": "jwt"})
    shown = [repr(settings), str(settings), f"{settings}", repr(dataclasses.asdict(settings)), repr(choose(settings))]
    shown += [f"{getattr(settings, name)} {getattr(settings, name)!r}" for name in SECRETS]
    assert [text for text in shown if "which-is-hidden" in text] == []
    assert settings.jwt_secret.reveal() == hidden["CHAT_JWT_SECRET"]


def test_a_setting_that_looks_like_a_secret_is_one() -> None:
    named = [
        field.name
        for field in dataclasses.fields(Settings)
        if field.name.endswith(("_secret", "_key", "_token", "_password")) or field.name == "token"
    ]
    assert sorted([*named, "redis_url"]) == sorted(SECRETS)  # an address, which may hold a password


def test_a_faulty_secret_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as refused:
        load({"CHAT_JWT_SECRET": "hidden", "CHAT_AUTH": "jwt", "CHAT_GRPC_PORT": "hidden-not"})
    assert "'hidden'" not in str(refused.value)
    with pytest.raises(SettingsError) as refused:
        load({"CHAT_JWT_SECRET": "hidden", "CHAT_AUTH": "jwt"})
    assert "hidden" not in str(refused.value)


@pytest.mark.e2e
async def test_credentials_are_in_no_log_error_or_trace(tmp_path: Path) -> None:
    """A whole process that logs all it can, with good and bad credentials."""
    kept, key = keys.make("ada")
    keys.write(tmp_path / "keys.jsonl", [kept])
    good, bad, expired = token(), token(secret="another secret, which is long enough"), token(exp=1)  # noqa: S106 (it guards nothing)
    password = "opens-no-redis-at-all"  # noqa: S105 (it does not)
    shown = [key, key + "x", good, bad, expired, "no-token-at-all-but-long", SECRET, password]
    async with collector() as traces:
        settings = {
            "CHAT_AUTH": "both",
            "CHAT_JWT_SECRET": SECRET,
            "CHAT_JWT_ISSUER": ISSUER,
            "CHAT_JWT_AUDIENCE": AUDIENCE,
            "CHAT_API_KEYS_FILE": "keys.jsonl",
            "CHAT_LOG_LEVEL": "DEBUG",
            "CHAT_LOG_CONTENT": "true",
            "CHAT_LOG_FORMAT": "json",
            "CHAT_OTLP_ENDPOINT": traces.url,
            "CHAT_GRPC_PORT": str(free_port()),
            "CHAT_REDIS_URL": f"redis://:{password}@127.0.0.1:{free_port()}/0",
            "CHAT_MEMVID_GRPC_URL": f"127.0.0.1:{free_port()}",
        }
        address = f"127.0.0.1:{settings['CHAT_GRPC_PORT']}"
        failures = []
        async with chat_grpc("serve", folder=tmp_path, **settings) as process:
            await serving(address)
            async with grpc.aio.insecure_channel(address) as channel:
                chat = channel.unary_stream(
                    "/chat.v1.ChatService/Chat",
                    request_serializer=chat_pb2.ChatRequest.SerializeToString,
                    response_deserializer=chat_pb2.ChatResponse.FromString,
                )
                for credential in shown[:-2]:
                    call: Any = chat(chat_pb2.ChatRequest(message="How?"), metadata=bearer(credential))
                    if credential in (key, good):
                        assert [event async for event in call][-1].HasField("completed")
                    else:
                        failures.append(await failure_of(call))
        output = process.output
        spans = str(list(traces.requests))
    calls = [json.loads(line) for line in output.splitlines() if '"event":"call"' in line.replace(": ", ":")]
    assert [call["code"] for call in calls].count("UNAUTHENTICATED") == len(failures) == 4
    assert {call["user_id"] for call in calls if call["code"] == "OK"} == {"ada"}
    assert "chat.v1.ChatService/Chat" in spans
    assert "redis is out of reach" in output
    told = str([(failure.message, failure.trailers, failure.details) for failure in failures])
    for secret in shown:
        for part in (secret, secret[-20:]):
            assert part not in output
            assert part not in spans
            assert part not in told


async def services(channel: grpc.aio.Channel, name: str) -> list[str] | None:
    """Ask what there is; None where reflection is not offered."""
    # One request, and so one batch: a client that streams may find the call refused before it has sent anything.
    call: Any = channel.unary_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(reflection_pb2.ServerReflectionRequest(list_services=""))
    try:
        answer = await call.read()
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED  # noqa: PT017 (it is a way that this may end)
        return None
    return [service.name for service in answer.list_services_response.service]


@pytest.mark.parametrize("name", SERVICE_NAMES)
@pytest.mark.parametrize(
    ("settings", "offered"),
    [
        ({}, True),
        ({"CHAT_REFLECTION": "false"}, False),
        ({"CHAT_GRPC_HOST": "192.0.2.7"}, False),
        ({"CHAT_GRPC_HOST": "192.0.2.7", "CHAT_REFLECTION": "true"}, True),
    ],
)
async def test_reflection_is_offered_where_only_this_machine_calls_or_when_told(
    start: StartService,
    name: str,
    settings: dict[str, str],
    offered: bool,  # noqa: FBT001 (a parameter of a test)
) -> None:
    async with start(**settings) as service:
        found = await services(service.channel, name)
    assert (found is not None) is offered
    if found is not None:
        assert "chat.v1.ChatService" in found


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("settings", "offered"), [({}, True), ({"reflection": "false"}, False), ({"reflection": "true"}, True)]
)
async def test_the_edge_passes_reflection_on_where_it_is_offered(
    start: StartService,
    tmp_path: Path,
    settings: dict[str, Any],
    offered: bool,  # noqa: FBT001 (a parameter of a test)
) -> None:
    async with start(CHAT_REFLECTION="true") as service:
        port = int(service.address.rpartition(":")[2])
        async with (
            running_edge(port, tmp_path, **settings) as edge,
            grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel,
        ):
            found = await services(channel, SERVICE_NAMES[0])
            assert (found is not None) is offered


async def calls_started(channel: grpc.aio.Channel, metadata: Metadata | None = None) -> int:
    """Ask channelz how many calls the servers of the process were sent; raises what the call ends with."""
    stub: Any = channelz_pb2_grpc.ChannelzStub(channel)  # type: ignore[arg-type]  # typed for threaded channels
    answer = await stub.GetServers(channelz_pb2.GetServersRequest(), metadata=metadata)
    return sum(server.data.calls_started for server in answer.server)


async def test_channelz_is_off_by_default(chat_service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await calls_started(chat_service.channel)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_channelz_counts_calls_where_it_is_on(start: StartService) -> None:
    async with start(CHAT_CHANNELZ="true") as service:
        before = await calls_started(service.channel)
        await service.ask()
        assert await calls_started(service.channel) >= before + 2


async def test_channelz_is_for_administrators(start: StartService) -> None:
    async with start(**JWT, CHAT_CHANNELZ="true") as service:
        for metadata, code in (
            (None, grpc.StatusCode.UNAUTHENTICATED),
            (bearer(token("ada")), grpc.StatusCode.PERMISSION_DENIED),
            (bearer(token("ada", "chat:metrics")), grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await calls_started(service.channel, metadata)
            assert refused.value.code() is code
        assert await calls_started(service.channel, bearer(token("root", "chat:admin")))


def test_every_method_of_channelz_has_a_scope() -> None:
    service = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
    assert {f"/{service.full_name}/{method.name}" for method in service.methods} == channelz.METHODS


@pytest.mark.e2e
async def test_the_edge_never_passes_channelz_on(start: StartService, tmp_path: Path) -> None:
    async with start(CHAT_CHANNELZ="true") as service:
        port = int(service.address.rpartition(":")[2])
        async with (
            running_edge(port, tmp_path, channelz=True) as edge,
            grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await calls_started(channel)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])  # noqa: S104 (rendered, not bound)
def test_an_edge_that_others_reach_has_no_way_to_reflection_or_channelz(host: str) -> None:
    from chat_grpc.embedded import edge

    site = edge.render(Settings(http_host=host))["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    routes = site["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    assert [route["name"] for route in routes if "reflection" in str(route) or "channelz" in str(route)] == []
