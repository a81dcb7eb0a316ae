"""The work queue: each key once, never two at a time, and one bad object never holds up the others."""

import asyncio
import random

import pytest

from fairlead_operator.clock import SystemClock
from fairlead_operator.kube.queue import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Key, WorkQueue
from tests.fakes.clock import FakeClock, eventually, settle

A, B = Key("ModelPool", "ns", "a"), Key("ModelPool", "ns", "b")


def queue(clock: FakeClock | SystemClock | None = None) -> WorkQueue:
    return WorkQueue(clock or FakeClock(), random.Random(1))  # noqa: S311 - spreads retries


async def test_a_key_that_is_added_twice_is_taken_once() -> None:
    work = queue()
    work.add(A)
    work.add(A)
    work.add(B)
    assert [await work.take(), await work.take()] == [A, B]
    assert len(work) == 2


async def test_a_key_that_is_added_while_it_is_worked_on_runs_once_more_afterwards() -> None:
    work = queue()
    work.add(A)
    assert await work.take() == A
    work.add(A)
    work.add(A)
    work.add(B)
    assert await work.take() == B
    work.done(A)
    assert await work.take() == A
    work.done(A)
    work.done(B)
    assert len(work) == 0


async def test_a_key_waits_its_time_and_the_earliest_time_counts() -> None:
    clock = FakeClock()
    work = queue(clock)
    work.add_after(A, 10)
    work.add_after(A, 3)
    work.add_after(A, 30)
    taking = asyncio.create_task(work.take())
    await settle()
    await clock.advance(2.9)
    assert not taking.done()
    await clock.advance(0.2)
    assert await taking == A


async def test_an_error_waits_longer_each_time_and_is_forgotten_after_a_success() -> None:
    work = queue()
    pauses = []
    for _ in range(12):
        work.add(A)
        await work.take()
        pauses.append(work.backoff_s(A))
        work.failed(A)
    assert pauses[0] == pytest.approx(FIRST_BACKOFF_S, rel=0.2)
    assert pauses[-1] <= LONGEST_BACKOFF_S * 1.2
    assert work.failures(A) == 12
    work.add(A)
    await work.take()
    work.done(A)
    assert work.failures(A) == 0


async def test_an_error_in_one_object_touches_no_other() -> None:
    work = queue(SystemClock())
    seen: list[Key] = []
    broken: list[tuple[Key, str]] = []

    async def job(key: Key) -> None:
        seen.append(key)
        if key == A:
            raise ValueError("a is odd")

    worker = asyncio.create_task(work.work(job, lambda key, error: broken.append((key, str(error)))))
    work.add(A)
    work.add(B)
    await eventually(lambda: seen.count(A) >= 2 and B in seen)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    assert seen.count(B) == 1
    assert broken[0] == (A, "a is odd")


async def test_two_workers_never_have_the_same_key() -> None:
    work = queue(SystemClock())
    running: set[Key] = set()
    most = 0
    rounds = 0

    async def job(key: Key) -> None:
        nonlocal most, rounds
        assert key not in running
        running.add(key)
        most = max(most, len(running))
        await asyncio.sleep(0.001)
        running.discard(key)
        rounds += 1
        if rounds < 20:
            work.add(key)

    workers = [asyncio.create_task(work.work(job, lambda *_: None)) for _ in range(4)]
    work.add(A)
    work.add(B)
    await eventually(lambda: rounds >= 20)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert most == 2
