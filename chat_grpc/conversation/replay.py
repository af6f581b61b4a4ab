"""Giving a request the answer that an earlier one of the same name got, or is getting on another server."""

from __future__ import annotations

from contextlib import aclosing

from chat_grpc.cache import CachedAnswer
from chat_grpc.conversation import requests
from chat_grpc.conversation.answering import Answering, Common
from chat_grpc.conversation.guarding import Guarding
from chat_grpc.conversation.peers import Peers
from chat_grpc.domain import Message, Retrieved, Status
from chat_grpc.errors import Conflict
from chat_grpc.shared import writer_lost
from chat_grpc.storage import Storage


class Replay:
    """Gives answers that are kept. One instance serves all callers.

    Args:
        storage: where messages are kept.
        guarding: tells what may be asked instead of what was refused.
        peers: the other servers; None where there are none.
    """

    def __init__(self, *, storage: Storage, guarding: Guarding, peers: Peers | None) -> None:
        self._storage = storage
        self._guarding = guarding
        self._peers = peers

    async def give(self, answering: Answering) -> None:
        """Give the answer that is kept for an earlier request of this name.

        Raises:
            Conflict: it is being answered elsewhere, or the name stands for another request.
            ChatError: another server failed to write it.
        """
        kept = await self._storage.find_request(answering.message.request_key)
        if kept is not None and kept.status is Status.PENDING and answering.common:
            kept = await self._read_along(answering, answering.common, kept)
            if kept is None:
                return
        if kept is None or kept.status is Status.PENDING:
            raise Conflict(
                "the request is being answered elsewhere; ask again for its answer",
                reason="REQUEST_IN_PROGRESS",
                retry_after=1.0,
            )
        requests.check_same(answering.digest, kept.request_digest)
        answering.message = kept
        answering.say_started()
        answering.say(Retrieved(kept.passages, 0))
        answering.say_text(kept.answer)
        answering.say_completed(await self._guarding.suggested() if kept.error_reason else ())

    async def _read_along(self, answering: Answering, common: Common, kept: Message) -> Message | None:
        """Give the answer that another server writes for a request of this name.

        Returns:
            The message as it is kept then, if nothing of it has been given; else None.

        Raises:
            ChatError: writing it failed, or broke off.
        """
        opening = common.opening
        if self._peers is None or opening is None or not opening.writer:
            return kept
        requests.check_same(answering.digest, kept.request_digest)
        answering.key = opening.key
        answering.message = kept
        begun = False
        async with aclosing(self._peers.follow(opening.key, opening.writer)) as pieces:
            async for piece in pieces:
                if not begun:
                    begun = True
                    answering.say_started()
                    answering.say(Retrieved(kept.passages, 0))
                if not isinstance(piece, CachedAnswer):
                    answering.say_text(piece)
        # The answer is told to the others once it has been kept.
        settled = await self._storage.find_request(kept.request_key)
        if not begun:
            return settled
        if settled is None or settled.status is not Status.COMPLETED:
            raise writer_lost()
        answering.message = settled
        answering.say_completed(await self._guarding.suggested() if settled.error_reason else ())
        return None
