"""How the commands for people reach the server, and show it who they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chat_grpc.client import ChatClient
from chat_grpc.settings import Settings, SettingsError


@dataclass(frozen=True, slots=True)
class Connection:
    """An address, and the settings of this side."""

    address: str
    settings: Settings

    def client(self) -> ChatClient:
        """Return a client that is not connected yet.

        Raises:
            SettingsError: a file of certificates can't be read.
        """
        token = self.settings.token.reveal()
        metadata = {"authorization": f"Bearer {token}"} if token else {}
        if not self.settings.tls_ca_file:
            return ChatClient(self.address, metadata=metadata)
        import grpc

        key = chain = None
        if self.settings.tls_client_ca_file:
            # The server asks for a certificate, and on its machine its own will do.
            key = _read(self.settings.tls_key_file, "CHAT_TLS_KEY_FILE")
            chain = _read(self.settings.tls_cert_file, "CHAT_TLS_CERT_FILE")
        authorities = _read(self.settings.tls_ca_file, "CHAT_TLS_CA_FILE")
        return ChatClient(
            self.address, credentials=grpc.ssl_channel_credentials(authorities, key, chain), metadata=metadata
        )


def _read(path: str, setting: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        raise SettingsError([f"{setting}={path!r}: can't be read"]) from None
