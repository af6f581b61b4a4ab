"""The way to Redis: short waits, and none at all while it is known to be out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from chat_grpc.shared import NotShared
from chat_grpc.telemetry import logs

log = logs.get(__name__)

TIMEOUT = 0.5
"""Seconds that one question may take. Redis answers within a millisecond or not at all."""
RETRY_SECONDS = 0.5
"""How often a Redis that is out of reach is tried again, by nobody who waits for it."""
WAIT_SECONDS = 2.0
"""Seconds that a question may take that is answered when something happens."""
MAX_WAITING = 10_000
"""More than a server answers messages at once, each of which may wait for another server."""
CONNECTIONS = 8
"""Questions at once, more than a Redis nearby can be kept busy by. Further ones wait for their turn, which is this server's own matter and no fault of Redis."""


class Link:
    """A pool of connections to one Redis.

    The first question that fails is the beginning of an outage: from then on
    nobody waits, until a question of this class's own has been answered. That
    one writes, because a Redis without memory still answers who only reads.

    Args:
        url: redis://, rediss:// or unix://.
        probe: the key that is written to find out.
        outage: called at the beginning of each outage.
        timeout: seconds that one question may take.

    Attributes:
        up: whether it is in reach, as far as is known.
        closed: whether it is closed. A loop looks at this, too: a cancellation that comes
            together with the end of a time limit is lost.
        recover: called before an outage ends; raises NotShared if it has not.
    """

    def __init__(
        self,
        url: str,
        *,
        probe: str,
        outage: Callable[[], None] = lambda: None,
        timeout: float = TIMEOUT,
    ) -> None:
        # Here, because it takes longer to import than all of the server without it.
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self._faults = (RedisError, OSError, TimeoutError)
        # Not asked again: a script that was cut off may have been run, and would take a second token.
        once = Retry(NoBackoff(), 0)
        self._places = asyncio.Semaphore(CONNECTIONS)
        self.redis = Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=once)
        self.waiting = Redis.from_url(
            url,
            max_connections=MAX_WAITING,
            socket_timeout=WAIT_SECONDS + 2 * timeout,
            socket_connect_timeout=timeout,
            retry=once,
        )
        """For questions that are answered when something happens, within WAIT_SECONDS."""
        self._probe = probe
        self._outage = outage
        self._timeout = timeout
        self._scripts: dict[str, Any] = {}
        self._watching: asyncio.Task[None] | None = None
        self.recover: Callable[[], Awaitable[None]] | None = None
        self.up = True
        self.closed = False

    async def run(self, script: str, key: str, args: Mapping[str, Any], *, probing: bool = False) -> Any:
        """Run a script and return what it returns.

        Raises:
            NotShared: Redis is out of reach, or can't do it.
        """
        known = self._scripts.get(script)
        if known is None:
            known = self._scripts[script] = self.redis.register_script(script)
        packed = msgspec.msgpack.encode(args)
        return await self.ask(lambda: known(keys=[key], args=[packed]), probing=probing)

    async def ask(self, question: Callable[[], Any], *, probing: bool = False) -> Any:
        """Ask something of ``redis``.

        Raises:
            NotShared: Redis is out of reach, or can't do it.
        """
        async with self._places:
            return await self._asked(question, self._timeout, probing=probing)

    async def wait(self, question: Callable[[], Any]) -> Any:
        """Ask something of ``waiting``, which takes WAIT_SECONDS at most.

        Raises:
            NotShared: Redis is out of reach, or can't do it.
        """
        return await self._asked(question, 2 * WAIT_SECONDS, probing=False)

    async def _asked(self, question: Callable[[], Any], seconds: float, *, probing: bool) -> Any:
        if self.closed or not (self.up or probing):
            raise NotShared
        try:
            async with asyncio.timeout(seconds):
                return await question()
        except self._faults as error:
            self.fail(error)
            raise NotShared from None

    async def open(self) -> bool:
        """Try whether Redis is there, and keep trying from then on if it is not."""
        try:
            await self._try()
        except NotShared:
            return False
        return True

    async def close(self) -> None:
        """Close all connections."""
        self.closed = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        for client in (self.redis, self.waiting):
            try:
                async with asyncio.timeout(self._timeout):
                    await client.aclose(close_connection_pool=True)
            except self._faults:
                continue

    def fail(self, error: BaseException) -> None:
        """Begin an outage, unless there is one."""
        if not self.up:
            return
        self.up = False
        self._outage()
        log.warning(
            "redis is out of reach: limits, sessions and answers are this server's own until it is back",
            fault=type(error).__name__,
        )
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while not self.closed:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self._try()
                if self.recover is not None:
                    await self.recover()
            except NotShared:
                continue
            self.up = True
            log.warning("redis is back: limits, sessions and answers are shared again")
            return

    async def _try(self) -> None:
        await self.ask(lambda: self.redis.set(self._probe, "1", px=1000), probing=True)
