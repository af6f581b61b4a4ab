"""Whether a process may listen where it is told to: in public only with authentication, or when told that none is meant."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from chat_grpc.settings import Settings


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine and nothing else; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_safe_url(url: str) -> bool:
    """Tell whether what is read from a URL comes from whom it names: by HTTPS, or from this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def refusal(settings: Settings, *, setting: str) -> str | None:
    """Return why a process must not listen on the host that a setting names ("grpc_host"), None if it may."""
    host: str = getattr(settings, setting)
    if settings.auth != "off" or settings.allow_anonymous or is_loopback(host):
        return None
    return (
        f"CHAT_{setting.upper()}={host} is reached from other machines, and CHAT_AUTH is off: anybody there could read "
        "every history; set CHAT_AUTH=jwt or CHAT_AUTH=keys (docs/security.md says how), or CHAT_ALLOW_ANONYMOUS=true "
        "if nobody else can reach that address, or all may"
    )


def offers_reflection(settings: Settings, setting: str) -> bool:
    """Tell whether clients of the host that a setting names ("grpc_host") may list and describe the services."""
    if settings.reflection == "auto":
        return is_loopback(getattr(settings, setting))
    return settings.reflection == "true"
