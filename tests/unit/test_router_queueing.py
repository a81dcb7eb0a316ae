"""The line for a pool's replicas."""

import asyncio
from dataclasses import dataclass, field

from fairlead_router.contract import PoolConfig
from fairlead_router.queueing import Line, Place
from fairlead_router.replicas import Replica
from fairlead_router.upstream import Target
from tests.builders.router import POOL


@dataclass(eq=False)
class Guest:
    places: list[Replica] = field(default_factory=list)

    def placed(self, replica: Replica) -> None:
        self.places.append(replica)

    def timed_out(self, *, cold: bool) -> None:
        raise AssertionError(cold)

    def replan(self) -> None:
        raise AssertionError


def place(guest: Guest, *skip: Replica) -> Place:
    return Place(guest, 10.0, 10.0, 0.0, skip)


async def test_a_request_that_may_not_use_the_free_replica_holds_up_nobody_behind_it() -> None:
    line = Line(PoolConfig(pool=POOL, slots=1), asyncio.get_running_loop().time)
    one, two = Replica("a/1", "v", Target(path="1")), Replica("a/2", "v", Target(path="2"))
    line.update(line.config, (one, two))
    busy = [line.enter(place(Guest())) for _ in range(2)]
    assert set(busy) == {one, two}
    picky, easy = Guest(), Guest()
    waiting = place(picky, one)
    assert line.wait(waiting)
    assert line.wait(place(easy))
    line.release(one)
    assert (picky.places, easy.places) == ([], [one])
    line.release(two)
    assert picky.places == [two]
