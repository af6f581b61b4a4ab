"""The names that things have in Redis.

All begin with the version of their form and with the tenant. The tenant stands
in braces, by which a Redis cluster keeps all of one tenant's keys in one place:
only then can a script touch several of them.
"""

from __future__ import annotations

VERSION = "v1"
"""Changes whenever the form of what is kept does, so that servers of different versions do not read each other's."""


class Names:
    """The names of one tenant's keys; the tenant "" is called "-"."""

    def __init__(self, tenant: str) -> None:
        self.prefix = f"chat:{VERSION}:{{{tenant or '-'}}}:"
        self.fence = self.prefix + "fence"
        """Counts the leases."""
        self.probe = self.prefix + "probe"

    def limit(self, limit: str, rate: str, key: str) -> str:
        """A token bucket; another rate is another bucket."""
        return f"{self.prefix}limit:{limit}:{rate}:{key}"

    def answer(self, key: str) -> str:
        """A whole answer."""
        return f"{self.prefix}answer:{key}"

    def session(self, session_id: str) -> str:
        """Who holds a session, and the digest of what was said in it."""
        return f"{self.prefix}session:{session_id}"

    def said(self, session_id: str) -> str:
        """What was said in it last."""
        return f"{self.prefix}said:{session_id}"

    def sessions_of(self, user_id: str) -> str:
        """The sessions of a user."""
        return f"{self.prefix}sessions:{user_id}"

    def flight(self, key: str) -> str:
        """The lease of who writes an answer."""
        return f"{self.prefix}flight:{key}"

    def stream(self, lease: str) -> str:
        """What is being written under a lease."""
        return f"{self.prefix}stream:{lease}"

    def wanted(self, lease: str) -> str:
        """Lasts as long as somebody on another server reads it."""
        return f"{self.prefix}wanted:{lease}"

    def inbox(self, server: str) -> str:
        """What a server is asked to publish."""
        return f"{self.prefix}inbox:{server}"
