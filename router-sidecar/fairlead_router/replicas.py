"""Which replica gets the next request: the one with the fewest in flight among those that answer. Pure.

Health is passive. A failure takes a replica out for a time that doubles with each failure in a row; after that it comes
back slowly, one request at a time, then two, four …, so a sick replica costs little. A pool is never emptied: if all
are out, the one whose time ends first is tried.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead_router.upstream import Target

FIRST_EJECTION_S: Final = 1.0
LONGEST_EJECTION_S: Final = 60.0
LEAVING_S: Final = 2.0
_WHOLE: Final = 1 << 30
_RECOVERED: Final = 64
"""Requests at once from which on a replica counts as well again."""


@dataclass(slots=True, eq=False)
class Replica:
    """One endpoint of a pool. ``local``: this pod's own engine, reached over its socket."""

    pod: str
    variant: str
    target: Target
    local: bool = False
    in_flight: int = 0
    failures: int = 0
    ejected_until: float = 0.0
    allowance: int = _WHOLE
    """How many requests at once it is trusted with."""
    leaving_until: float = 0.0

    def leave(self, now: float) -> None:
        """It said that it drains: it counts as gone until the endpoints say so, or it is asked again."""
        self.leaving_until = now + LEAVING_S

    def succeeded(self) -> None:
        """It answered: trust it with twice as much."""
        if self.allowance != _WHOLE:
            self.allowance *= 2
            if self.allowance >= _RECOVERED:
                self.allowance, self.failures = _WHOLE, 0
        else:
            self.failures = 0

    def failed(self, now: float) -> None:
        """It did not answer as it should: leave it alone for a while. Failures of one moment count once."""
        if now < self.ejected_until:
            return
        self.ejected_until = now + min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2.0 ** min(self.failures, 10))
        self.failures += 1
        self.allowance = 1


def choose(replicas: Sequence[Replica], slots: int, now: float, skip: Iterable[Replica] = ()) -> Replica | None:
    """The replica for the next request; ``None`` when all have their slots full."""
    best: Replica | None = None
    staying = [replica for replica in replicas if replica.leaving_until <= now]
    for replica in staying:
        room = min(replica.allowance, slots)
        if replica.in_flight >= room or replica.ejected_until > now or replica in skip:
            continue
        if best is None or replica.in_flight < best.in_flight:
            best = replica
    if best is None and all(replica.ejected_until > now for replica in staying):
        return _least_ejected(staying, slots, skip)
    return best


def _least_ejected(replicas: Sequence[Replica], slots: int, skip: Iterable[Replica]) -> Replica | None:
    with_room = [replica for replica in replicas if replica.in_flight < slots and replica not in skip]
    return min(with_room, key=lambda replica: replica.ejected_until, default=None)


def merged(present: Sequence[Replica], wanted: Iterable[Replica]) -> list[Replica]:
    """The wanted replicas; those that were there before keep what is known of them."""
    known = {(replica.pod, replica.target): replica for replica in present}
    return [known.get((replica.pod, replica.target), replica) for replica in wanted]
