"""Who is at the other end of a call: the client's network address, also behind proxies."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from urllib.parse import unquote

from chat_grpc.rpc.interceptor import Context
from chat_grpc.settings import IPAddress, Networks

UNKNOWN = "unknown"
"""Stands for a peer without an address, so that all of these share one."""

ENVOY_HEADER = "x-envoy-external-address"
"""Envoy overwrites what a client claims here; see use_remote_address in envoy/envoy.yaml."""

FORWARDED_HEADER = "x-forwarded-for"
"""Each proxy appends the address of its own client, so that only the end of it is to be believed."""

_MAX_HOPS = 32
_MAX_ADDRESS = 64
"""Characters. What is longer is no address, and must fill no cache."""

_IPV6_SUBNET = 64
"""What one customer gets at least: whoever has one address there has all of them."""


def client_address(context: Context, trusted: Networks) -> str:
    """Return the address of the client of a call, without port, an IPv6 one as its /64 network.

    What a proxy says of its client is believed if the peer is a proxy in
    ``trusted``; from any other peer it is what the client claims of itself.
    Peers on a Unix socket are on this machine, and count as 127.0.0.1.
    """
    peer, written, is_proxy = _seen(context.peer(), trusted)
    if not is_proxy:
        return written
    forwarded = []
    for name, value in context.invocation_metadata() or ():
        if name == ENVOY_HEADER and (address := _address(str(value))) is not None:
            return _written(address)
        if name == FORWARDED_HEADER:
            forwarded += str(value).rsplit(",", _MAX_HOPS)
    return _written(_outermost(forwarded, trusted) or peer) if forwarded else written


def _outermost(forwarded: list[str], trusted: Networks) -> IPAddress | None:
    """Return the address that the outermost trusted proxy saw, None if none was forwarded."""
    seen = None
    for text in reversed(forwarded):
        address = _address(text)
        if address is None:
            break
        seen = address
        if address not in trusted:
            break
    return seen


# Clients send many calls over one connection, so the port may stay in the key.
@lru_cache(8_192)
def _seen(text: str, trusted: Networks) -> tuple[IPAddress | None, str, bool]:
    """Return the address of what gRPC names a peer, how it is written, and whether it is a proxy that is believed."""
    peer = _peer(text)
    return peer, _written(peer), peer is not None and peer in trusted


def _peer(text: str) -> IPAddress | None:
    """Read what gRPC names a peer: ipv4:192.0.2.1:567, ipv6:%5B2001:db8::1%5D:567, unix:/a/path."""
    kind, _, rest = text.partition(":")
    if kind.startswith("unix"):
        return ipaddress.IPv4Address("127.0.0.1")
    return _address(rest) if kind in ("ipv4", "ipv6") else None


def _address(text: str) -> IPAddress | None:
    """Read an address, with or without a port; None if it is none."""
    return _parsed(text) if len(text) <= _MAX_ADDRESS else None


@lru_cache(8_192)
def _parsed(text: str) -> IPAddress | None:
    text = unquote(text.strip())
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # An IPv4 client of a socket that takes both is still an IPv4 client.
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(8_192)
def _written(address: IPAddress | None) -> str:
    if address is None:
        return UNKNOWN
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address), _IPV6_SUBNET), strict=False))
    return str(address)
