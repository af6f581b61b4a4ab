"""Futures that outlast whoever waits for them."""

from __future__ import annotations

import asyncio

import pytest

from chat_grpc.lasting import Lasting, lasting


async def waits(for_it: asyncio.Future[int]) -> int:
    return await lasting(for_it)


async def test_a_task_that_is_cancelled_is_so_once_the_work_is_done() -> None:
    work: Lasting[int] = Lasting()
    task, other = asyncio.ensure_future(waits(work)), asyncio.ensure_future(waits(work))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not work.done()
    assert not task.done()
    work.set_result(7)
    assert await other == 7
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_time_limit_holds_once_the_work_is_done() -> None:
    work: Lasting[int] = Lasting()
    asyncio.get_running_loop().call_later(0.05, work.set_result, 7)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await lasting(work)
    assert work.result() == 7


async def test_other_work_goes_on_without_whoever_was_cancelled() -> None:
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(waits(work))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not work.done()
