"""TLS and mTLS through real handshakes, and certificates that are replaced while the server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from chat_grpc import app
from chat_grpc._gen.chat.v1 import health_pb2, health_pb2_grpc
from chat_grpc.errors import Unavailable
from chat_grpc.rpc.lifecycle import InFlight
from chat_grpc.settings import load
from tests.cli.conftest import Cli, cli  # noqa: F401 (pytest finds the fixture by its name here)
from tests.gateway.edges import running_edge
from tests.support.certificates import Certificate, server_certificate
from tests.support.fixtures import StartService
from tests.support.tokens import JWT, token


def written(folder: Path, certificate: Certificate, name: str = "server") -> dict[str, str]:
    """Write a certificate and its key; return the settings that name them."""
    (folder / f"{name}.pem").write_bytes(certificate.chain_pem)
    (folder / f"{name}.key").write_bytes(certificate.key_pem)
    return {"CHAT_TLS_CERT_FILE": str(folder / f"{name}.pem"), "CHAT_TLS_KEY_FILE": str(folder / f"{name}.key")}


async def reached(address: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Tell whether a call comes through, over a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = (
        grpc.aio.insecure_channel(address, options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options)
    )
    async with channel:
        stub: Any = health_pb2_grpc.HealthServiceStub(channel)
        try:
            await stub.GetHealth(health_pb2.GetHealthRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True


def trusting(certificate: Certificate, client: Certificate | None = None) -> grpc.ChannelCredentials:
    """Return what a client believes, and what it shows."""
    if client is None:
        return grpc.ssl_channel_credentials(certificate.authority_pem)
    return grpc.ssl_channel_credentials(certificate.authority_pem, client.key_pem, client.chain_pem)


async def test_tls(start: StartService, tmp_path: Path) -> None:
    ours, theirs = server_certificate("127.0.0.1"), server_certificate("127.0.0.1")
    async with start(**written(tmp_path, ours)) as service:
        assert await reached(service.address, trusting(ours))
        assert not await reached(service.address, trusting(theirs))
        assert not await reached(service.address, None)


async def test_mtls(start: StartService, tmp_path: Path) -> None:
    ours, client, stranger = (server_certificate("127.0.0.1") for _ in range(3))
    (tmp_path / "clients.pem").write_bytes(client.authority_pem)
    settings = written(tmp_path, ours) | {"CHAT_TLS_CLIENT_CA_FILE": str(tmp_path / "clients.pem")}
    async with start(**settings) as service:
        assert await reached(service.address, trusting(ours, client))
        assert not await reached(service.address, trusting(ours, stranger))
        assert not await reached(service.address, trusting(ours))


async def test_new_certificates_are_taken_while_it_runs(
    start: StartService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = server_certificate("127.0.0.1"), server_certificate("127.0.0.1")
    settings = written(tmp_path, old)
    async with start(**settings) as service:
        assert await reached(service.address, trusting(old))
        # Halfway: the certificate is new, its key is not. What was good stays.
        (tmp_path / "next.pem").write_bytes(new.chain_pem)
        (tmp_path / "next.pem").replace(tmp_path / "server.pem")
        assert await reached(service.address, trusting(old))
        assert not await reached(service.address, trusting(new))
        (tmp_path / "next.key").write_bytes(new.key_pem)
        (tmp_path / "next.key").replace(tmp_path / "server.key")
        assert await reached(service.address, trusting(new))
        assert not await reached(service.address, trusting(old))
        # And a file that is gone for a moment stops nobody.
        (tmp_path / "server.pem").unlink()
        assert await reached(service.address, trusting(new))
    assert new.key_pem.decode()[40:80] not in caplog.text


async def test_clients_authorities_are_replaced_too(start: StartService, tmp_path: Path) -> None:
    ours, old, new = (server_certificate("127.0.0.1") for _ in range(3))
    file = tmp_path / "clients.pem"
    file.write_bytes(old.authority_pem)
    async with start(**written(tmp_path, ours), CHAT_TLS_CLIENT_CA_FILE=str(file)) as service:
        assert await reached(service.address, trusting(ours, old))
        file.write_bytes(new.authority_pem + b"\n")
        assert await reached(service.address, trusting(ours, new))
        assert not await reached(service.address, trusting(ours, old))


@pytest.mark.parametrize("trouble", ["missing", "no PEM", "another key", "no authority"])
async def test_a_server_without_a_good_certificate_does_not_start(tmp_path: Path, trouble: str) -> None:
    settings = written(tmp_path, server_certificate("127.0.0.1"))
    match trouble:
        case "missing":
            (tmp_path / "server.key").unlink()
        case "no PEM":
            (tmp_path / "server.pem").write_text("certificate")
        case "another key":
            (tmp_path / "server.key").write_bytes(server_certificate("127.0.0.1").key_pem)
        case "no authority":
            (tmp_path / "clients.pem").write_text("nobody")
            settings["CHAT_TLS_CLIENT_CA_FILE"] = str(tmp_path / "clients.pem")
    with pytest.raises(Unavailable, match="CHAT_TLS_CERT_FILE"):
        async with app.build(load(settings)) as parts:
            app.bind(parts, "127.0.0.1:0", InFlight())


@pytest.mark.e2e
@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_envoy_and_the_commands_speak_tls_to_the_server(
    start: StartService,
    tmp_path: Path,
    cli: Cli,  # noqa: F811 (the fixture that is imported above)
    mutual: bool,  # noqa: FBT001 (a parameter of a test)
) -> None:
    ours = server_certificate("127.0.0.1", "localhost")
    settings = written(tmp_path, ours) | {"CHAT_TLS_CA_FILE": str(ours.authority(tmp_path))}
    if mutual:
        settings["CHAT_TLS_CLIENT_CA_FILE"] = settings["CHAT_TLS_CA_FILE"]
    async with start(**JWT, **settings) as service:
        port = int(service.address.rpartition(":")[2])
        names: dict[str, Any] = {name.removeprefix("CHAT_").lower(): value for name, value in settings.items()}
        shown = {"authorization": f"Bearer {token()}"}
        async with (
            running_edge(port, tmp_path, **names) as edge,
            aiohttp.ClientSession(edge.url) as http,
            http.post("/api/v1/chat", json={"message": "How?", "stream": False}, headers=shown) as response,
        ):
            assert (await response.json())["message"] == "Hello there."
        stranger = server_certificate("127.0.0.1")
        (tmp_path / "stranger").mkdir()
        other = names | {"tls_ca_file": str(stranger.authority(tmp_path / "stranger"))}
        async with (
            running_edge(port, tmp_path, **other) as edge,
            aiohttp.ClientSession(edge.url) as http,
            http.get("/health") as response,
        ):
            assert response.status == 503
        asked = await cli("chat", "How?", "--address", f"localhost:{port}", CHAT_TOKEN=token(), **settings)
        assert asked.stdout == "Hello there.\n", asked.stderr
        wrong = await cli("health", "--address", f"localhost:{port}", **settings | {"CHAT_TLS_CA_FILE": "missing"})
        assert (wrong.code, "CHAT_TLS_CA_FILE='missing': can't be read" in wrong.stderr) == (2, True)
