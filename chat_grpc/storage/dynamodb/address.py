"""Which table: dynamodb://TABLE?region=REGION&endpoint_url=URL&create=true, all but the table optional."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

SCHEME = "dynamodb"
_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_REGION = re.compile(r"[a-z0-9-]{3,40}")
_PARAMETERS = ("region", "endpoint_url", "create")


@dataclass(frozen=True, slots=True)
class Address:
    """A table. ``region`` and ``endpoint_url`` are "" where Amazon's own settings decide."""

    table: str
    region: str = ""
    endpoint_url: str = ""
    create: bool = False

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a CHAT_DATABASE_URL.

        Raises:
            ValueError: in words that can be shown, what is wrong with it.
        """
        parts = urlsplit(url)
        if not _TABLE.fullmatch(parts.netloc) or parts.path not in {"", "/"}:
            raise ValueError("a DynamoDB table's name has 3 to 255 characters of A-Z a-z 0-9 _ . -")
        values: dict[str, str] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name not in _PARAMETERS or name in values:
                raise ValueError(f"a dynamodb:// URL takes each of {', '.join(_PARAMETERS)} once")
            values[name] = value
        region, endpoint = values.get("region", ""), values.get("endpoint_url", "")
        if region and not _REGION.fullmatch(region):
            raise ValueError("region is a name such as us-east-1")
        if endpoint and not re.fullmatch(r"https?://[^\s/?#@]+/?", endpoint):
            raise ValueError("endpoint_url is a scheme, a host and a port, such as http://127.0.0.1:8000")
        if values.get("create", "false") not in {"true", "false"}:
            raise ValueError("create is true or false")
        return cls(parts.netloc, region, endpoint, values.get("create") == "true")

    @property
    def is_local(self) -> bool:
        """Tell whether the endpoint is on this machine: DynamoDB Local, then, and no account is needed."""
        host = urlsplit(self.endpoint_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"
