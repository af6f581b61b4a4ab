"""Channelz: what the server's connections and calls are doing, for those who look after it."""

from __future__ import annotations

import grpc

SERVICE_NAME = "grpc.channelz.v1.Channelz"
METHODS = frozenset(
    f"/{SERVICE_NAME}/{name}"
    for name in (
        "GetTopChannels",
        "GetServers",
        "GetServer",
        "GetServerSockets",
        "GetChannel",
        "GetSubchannel",
        "GetSocket",
    )
)


def add_channelz(server: grpc.aio.Server) -> None:
    """Let clients see the connections and calls of this process, with the addresses of all peers."""
    # Imported here: hardly anybody wants it.
    from grpc_channelz.v1 import channelz, channelz_pb2_grpc

    channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), server)
