"""`chat-grpc admin`: tokens for development, and API keys; and what a server that others reach refuses to do without."""

from __future__ import annotations

import stat
from pathlib import Path

import jwt
import pytest

from chat_grpc.auth import keys
from chat_grpc.settings import load
from tests.cli.conftest import Cli
from tests.support.fixtures import StartService
from tests.support.process import chat_grpc, free_port
from tests.support.tokens import AUDIENCE, ISSUER, JWT, SECRET, token

KEYS = {"CHAT_API_KEYS_FILE": "keys.jsonl"}


async def test_a_token_is_one_that_the_server_takes(cli: Cli, start: StartService) -> None:
    done = await cli("admin", "token", "--user", "ada", "--scopes", "chat:admin chat:metrics", "--ttl", "90s", **JWT)
    assert (done.code, done.stderr) == (0, "")
    claims = jwt.decode(done.stdout.strip(), SECRET, algorithms=["HS256"], audience=AUDIENCE, issuer=ISSUER)
    assert (claims["sub"], claims["scope"]) == ("ada", "chat:admin chat:metrics")
    assert claims["exp"] - claims["iat"] == 90
    async with start(**JWT) as service:
        asked = await cli("chat", "How?", "--address", service.address, CHAT_TOKEN=done.stdout.strip())
        assert (asked.code, asked.stdout) == (0, "Hello there.\n"), asked.stderr
        listed = await cli("history", "--user", "ada", "--address", service.address, CHAT_TOKEN=token("ada"))
        assert "Hello there." in listed.stdout
        other = await cli("history", "--user", "ada", "--address", service.address, CHAT_TOKEN=token("bob"))
        assert (other.code, other.stdout) == (1, "")
        assert "another user" in other.stderr
        nobody = await cli("chat", "How?", "--address", service.address)
        assert nobody.code == 1
        assert "a token or an API key is needed" in nobody.stderr
        assert (await cli("health", "--address", service.address)).code == 0


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (["--user", "ada"], {}, "CHAT_JWT_SECRET is not set"),
        (["--user", "a b"], JWT, "--user must be 3 to 100 characters"),
        (["--user", "ada", "--ttl", "soon"], JWT, "not a time such as"),
        (["--user", "ada", "--ttl", "0h"], JWT, "not a time such as"),
        ([], JWT, "--user"),
        (["--user", "ada"], {"CHAT_JWT_SECRET": "too short"}, "at least 32 bytes"),
    ],
)
async def test_no_token(cli: Cli, arguments: list[str], settings: dict[str, str], told: str) -> None:
    done = await cli("admin", "token", *arguments, **settings)
    assert (done.code, done.stdout) == (2, "")
    assert told in done.stderr
    assert "too short" not in done.stderr


async def test_a_key_is_shown_once_and_kept_as_a_hash(cli: Cli, tmp_path: Path, start: StartService) -> None:
    made = await cli("admin", "key", "add", "ada", **KEYS)
    key = made.stdout.strip()
    assert (made.code, key.startswith(keys.PREFIX)) == (0, True)
    assert "only time" in made.stderr
    file = tmp_path / "keys.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key.rpartition("_")[2] not in file.read_text()
    assert (await cli("admin", "key", "add", "root", "--scopes", "chat:admin", **KEYS)).code == 0
    async with start(CHAT_AUTH="keys", CHAT_API_KEYS_FILE=str(file)) as service:
        asked = await cli("chat", "How?", "--address", service.address, CHAT_TOKEN=key)
        assert asked.stdout == "Hello there.\n", asked.stderr
    listed = await cli("admin", "key", "list", **KEYS)
    assert [line.split("\t")[:2] for line in listed.stdout.splitlines()] == [["ada", "-"], ["root", "chat:admin"]]
    assert key not in listed.stdout
    assert (await cli("admin", "key", "add", "ada", **KEYS)).code == 1
    assert (await cli("admin", "key", "remove", "ada", **KEYS)).code == 0
    assert (await cli("admin", "key", "remove", "ada", **KEYS)).code == 1
    assert [known.name for known in keys.read(file)] == ["root"]


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (["add", "ada"], {}, "CHAT_API_KEYS_FILE is not set"),
        (["add"], KEYS, "NAME must be"),
        (["add", "a b"], KEYS, "NAME must be"),
        (["replace", "ada"], KEYS, "invalid choice"),
    ],
)
async def test_no_key(cli: Cli, arguments: list[str], settings: dict[str, str], told: str) -> None:
    done = await cli("admin", "key", *arguments, **settings)
    assert (done.code, done.stdout) == (2, "")
    assert told in done.stderr


async def test_the_group_explains_itself(cli: Cli) -> None:
    assert "admin" in (await cli("--help")).stdout
    done = await cli("admin", "--help")
    assert done.code == 0
    assert {"token", "key"} <= set(done.stdout.split())
    assert (await cli("admin")).code == 2


PUBLIC = "0.0.0.0"  # noqa: S104 (refused, or only for a moment)


@pytest.mark.parametrize(
    ("command", "setting"),
    [("serve", "CHAT_GRPC_HOST"), ("envoy", "CHAT_HTTP_HOST"), ("up", "CHAT_GRPC_HOST"), ("up", "CHAT_HTTP_HOST")],
)
@pytest.mark.parametrize("host", [PUBLIC, "chat.example.org"])
async def test_in_public_nothing_starts_without_authentication(cli: Cli, command: str, setting: str, host: str) -> None:
    done = await cli(command, **{setting: host, "CHAT_GRPC_PORT": str(free_port()), "CHAT_HTTP_PORT": str(free_port())})
    assert done.code in (1, 2)
    assert f"{setting}={host} is reached from other machines" in done.stderr
    assert "CHAT_ALLOW_ANONYMOUS" in done.stderr


@pytest.mark.parametrize("settings", [{"CHAT_ALLOW_ANONYMOUS": "true"}, JWT], ids=["anonymous", "jwt"])
async def test_in_public_it_starts_when_told_how(tmp_path: Path, settings: dict[str, str]) -> None:
    ports = {"CHAT_GRPC_PORT": str(free_port())}
    async with chat_grpc("serve", folder=tmp_path, CHAT_GRPC_HOST=PUBLIC, **settings, **ports) as process:
        await process.printed("serving")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"CHAT_AUTH": "jwt"}, "CHAT_JWT_SECRET, which has no default"),
        ({"CHAT_AUTH": "keys"}, "CHAT_API_KEYS_FILE"),
        ({"CHAT_AUTH": "basic"}, "must be one of off, jwt, keys, both"),
        ({"CHAT_JWT_SECRET": "x" * 31}, "at least 32 bytes"),
        ({"CHAT_JWT_JWKS": "http://login.example.org/jwks"}, "https"),
        ({"CHAT_JWT_JWKS": "ftp://login.example.org/jwks"}, "https"),
        ({"CHAT_JWT_JWKS": "https://login.example.org/jwks"}, "CHAT_JWT_ISSUER and CHAT_JWT_AUDIENCE"),
        ({"CHAT_TLS_CERT_FILE": "server.pem"}, "CHAT_TLS_KEY_FILE"),
        ({"CHAT_TLS_CLIENT_CA_FILE": "clients.pem"}, "CHAT_TLS_CERT_FILE"),
    ],
)
async def test_settings_that_would_not_protect_are_refused(cli: Cli, settings: dict[str, str], told: str) -> None:
    done = await cli("health", **settings)
    assert done.code == 2
    assert told in done.stderr
    assert "x" * 31 not in done.stderr


def test_thirty_two_bytes_are_enough() -> None:
    assert load({"CHAT_AUTH": "jwt", "CHAT_JWT_SECRET": "é" * 16}).auth == "jwt"
