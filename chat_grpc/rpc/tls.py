"""TLS of the server: its certificate, whose clients it takes, and how both are replaced while it runs."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc

from chat_grpc.errors import Unavailable
from chat_grpc.settings import Settings
from chat_grpc.telemetry import logs

log = logs.get(__name__)

State = tuple[tuple[int, int, int], ...]
"""What tells that a file was replaced: when it was written, its size, which one it is."""


class ServerTLS:
    """Certificates from files, read again by the first handshake after they changed.

    Args:
        certificate: the server's, with its chain.
        key: its private key.
        client_authorities: whose certificates clients must show; None asks for none.

    Raises:
        Unavailable: a file can't be read, or the key is not the certificate's.
    """

    def __init__(self, certificate: Path, key: Path, client_authorities: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._authorities = client_authorities
        self._reading = threading.Lock()
        # Looked at before they are read, so that what changes in between is read once more.
        self._state = self._look()
        first = self._read()
        if first is None:
            raise Unavailable(
                "CHAT_TLS_CERT_FILE, CHAT_TLS_KEY_FILE or CHAT_TLS_CLIENT_CA_FILE can't be read, is not PEM, "
                "or the key is another certificate's"
            )
        self.credentials = grpc.dynamic_ssl_server_credentials(
            first,
            self._changed,  # type: ignore[arg-type]  # the stubs leave out None, which says that nothing changed
            require_client_authentication=client_authorities is not None,
        )

    @classmethod
    def of(cls, settings: Settings) -> ServerTLS | None:
        """Return what the settings name; None without TLS."""
        if not settings.tls_cert_file:
            return None
        authorities = Path(settings.tls_client_ca_file) if settings.tls_client_ca_file else None
        return cls(Path(settings.tls_cert_file), Path(settings.tls_key_file), authorities)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what is to be used from now on, None for what was; grpc's core asks at every handshake."""
        with self._reading:
            state = self._look()
            if state == self._state:
                return None
            configuration = self._read()
            if configuration is None:
                # Perhaps only one of the files has been replaced so far.
                log.warning("the new certificate can't be used; the one before stays")
                return None
            self._state = state
        log.info("took the new certificate")
        return configuration

    def _look(self) -> State | None:
        paths = [self._certificate, self._key, *([self._authorities] if self._authorities else [])]
        try:
            found = [path.stat() for path in paths]
        except OSError:
            return None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    def _read(self) -> grpc.ServerCertificateConfiguration | None:
        import ssl

        try:
            # Python's own TLS knows whether they fit together; grpc would only refuse its clients.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key, password="")
            authorities = self._authorities.read_bytes() if self._authorities else None
            if authorities is not None:
                ssl.create_default_context(cadata=authorities.decode())
            pair = (self._key.read_bytes(), self._certificate.read_bytes())
        except (OSError, ValueError):
            return None
        return grpc.ssl_server_certificate_configuration([pair], authorities)
