"""Certificates for tests, made when they are needed: no key is kept anywhere."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """A server's certificate, and the authority that vouches for it."""

    _authority: trustme.CA
    _leaf: trustme.LeafCert

    def server_context(self) -> ssl.SSLContext:
        """Return what a server is started with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._leaf.configure_cert(context)
        return context

    def authority(self, folder: Path) -> Path:
        """Write the authority's certificate, for a client that is to believe it."""
        path = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(str(path))
        return path

    @property
    def key_pem(self) -> bytes:
        """The server's private key."""
        return self._leaf.private_key_pem.bytes()

    @property
    def chain_pem(self) -> bytes:
        """The server's certificate."""
        return b"".join(blob.bytes() for blob in self._leaf.cert_chain_pems)

    @property
    def authority_pem(self) -> bytes:
        """The authority's certificate."""
        return self._authority.cert_pem.bytes()


def server_certificate(*names: str) -> Certificate:
    """Make a certificate for a server of these names and addresses, by an authority of its own."""
    authority = trustme.CA()
    return Certificate(authority, authority.issue_cert(*names))
