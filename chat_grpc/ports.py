"""Having a port that several processes of this service listen on, and nobody else."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from chat_grpc.embedded import probes


def hold(host: str, port: int) -> ExitStack:
    """Take a port that several processes are to share (SO_REUSEPORT), until the stack is closed.

    Sharing alone would let a server join a stranger's port, and each get a part
    of the other's connections. So the port must be free, and from then on
    nobody else gets it, even while none of the processes lives: it is bound, and
    not listened on, which takes no connection from those that do.

    Raises:
        OSError: another process has it, or the host is not this machine.
    """
    if not probes.is_free(host, port):
        raise OSError("another process holds the port")
    fault: OSError | None = None
    with ExitStack() as stack:
        held = 0
        for family, _, _, _, address in socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                # Connections of an earlier run that linger are no obstacle.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(address)
                # From here on it would let anybody listen who sets it too, as most servers do.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            except OSError as error:  # localhost is ::1, too, also where there is no IPv6
                fault = error
            else:
                held += 1
        if not held and fault is not None:
            raise fault
        return stack.pop_all()


def cannot_listen(host: str, port: int) -> str:
    """Return what to say when the server's port can't be had."""
    return (
        f"can't listen on {host}:{port}: another process holds the port, or the address is not of this machine; "
        "set CHAT_GRPC_PORT or CHAT_GRPC_HOST"
    )
