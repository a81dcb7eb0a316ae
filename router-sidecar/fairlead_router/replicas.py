"""Which replica gets the next request: the nearest on the prompt's ring that has room, else the least loaded. Pure.

Load. A replica may tell its load with each answer. What it runs and holds beyond our own requests there is the others';
that number stays until the next answer, or for ``TOLD_S``, and our own in flight are counted on top as they come and
go, so nothing is counted twice. The bound of the affinity looks at our own requests only: a router that compared the
others' load at the replicas that lately answered with none at those that did not would send everything to the latter.

Room. There is none at a replica with its slots full, counting the others', nor at one whose engine has requests waiting
or its KV cache full. Where none of ours run, one request is sent all the same: its answer tells the load anew.

Health is passive. A replica that cannot be reached is left alone at once; one that fails at requests is when it fails
thrice in a row or at half of its last ten, for it may be the request that is at fault, and only while at least half of
the pool stays. The time doubles with each ejection, and the replica comes back slowly: one request at a time, then two,
four …, so a sick one costs little. If all are out, the one whose time ends first is tried: a pool is never emptied.
"""

import re
from bisect import bisect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Final, NamedTuple

from fairlead_router.affinity import Key, bound, ring
from fairlead_router.upstream import Pool, Target

FIRST_EJECTION_S: Final = 1.0
LONGEST_EJECTION_S: Final = 60.0
LEAVING_S: Final = 2.0
LACKING_S: Final = 2.0
NO_BOUNDS: Final[Mapping[str, int]] = MappingProxyType({})
_MOST_LACKING: Final = 64
TOLD_S: Final = 2.0
HEAR_EVERY_S: Final = 0.05
"""A busy replica answers more often than its load is worth reading."""
KV_FULL_PERMILLE: Final = 950
FAILURES_IN_A_ROW: Final = 3
FAILURES_OF_LATEST: Final = 5
_LATEST: Final = (1 << 10) - 1
_WHOLE: Final = 1 << 30
_RECOVERED: Final = 64
"""Requests at once from which on a replica counts as well again."""
_LOAD: Final = re.compile(rb"(\d{1,7}),(\d{1,7}),(\d{1,4})", re.ASCII)
_KV_WHOLE_PERMILLE: Final = 1000


class Load(NamedTuple):
    """What a replica says of itself: requests that run and that wait at its engine, and the KV cache's use."""

    running: int
    waiting: int
    kv_permille: int


def parse_load(raw: bytes) -> Load | None:
    """The value of ``x-fairlead-load``: ``running,waiting,kv``; ``None`` for anything else."""
    found = _LOAD.fullmatch(raw)
    if found is None:
        return None
    load = Load(int(found[1]), int(found[2]), int(found[3]))
    return load if load.kv_permille <= _KV_WHOLE_PERMILLE else None


@dataclass(slots=True, eq=False)
class Replica:
    """One endpoint of a pool. ``local``: this pod's own engine, reached over its socket."""

    pod: str
    variant: str
    target: Target
    local: bool = False
    connections: Pool | None = field(default=None, repr=False)
    """To it, for whoever sends requests there."""
    in_flight: int = 0
    limit: int = 0
    """How many requests it may have of us at once, as it was at the latest change; 0 while it is left alone."""
    recheck_at: float = 0.0
    """When ``limit`` may have risen by time alone."""
    slots: int = 0
    others: int = 0
    """Requests of other routers there when it last told its load."""
    full: bool = False
    told_until: float = 0.0
    hear_at: float = 0.0
    troubled: bool = False
    """It failed lately: successes count until it is well again."""
    in_a_row: int = 0
    latest: int = 0
    """Its latest results, the newest as the lowest bit, failures as ones."""
    ejections: int = 0
    """Since it was last well."""
    ejected_until: float = 0.0
    allowance: int = _WHOLE
    """How many requests at once its health is trusted with."""
    leaving_until: float = 0.0
    lacking: dict[str, float] = field(default_factory=dict)
    """Adapters that its engine said it has not loaded, and until when that is believed."""
    peers: Sequence["Replica"] = field(default=(), repr=False)

    def has_room(self, now: float) -> bool:
        """Whether it may have one more request."""
        return self.in_flight < self.limit or (now >= self.recheck_at and self.in_flight < self.checked(now))

    def may_be_asked(self, now: float) -> bool:
        """Whether it may have a request although it said that it has no room: its answer tells how it is now."""
        return not self.in_flight and not self.out(now)

    def out(self, now: float) -> bool:
        """Ejected or leaving."""
        return self.ejected_until > now or self.leaving_until > now

    def load(self, now: float) -> int:
        """Requests there, ours and the others'."""
        return self.in_flight + self.others if self.told_until > now else self.in_flight

    def hear(self, raw: bytes, now: float) -> None:
        """An answer had this ``x-fairlead-load``; what cannot be read is as if it had none."""
        if now < self.hear_at:
            return
        self.hear_at = now + HEAR_EVERY_S
        load = parse_load(raw)
        if load is not None:
            self.told(load, now)

    def told(self, load: Load, now: float) -> None:
        """It told its load in an answer to us."""
        self.others = max(0, load.running + load.waiting - self.in_flight)
        self.full = load.waiting > 0 or load.kv_permille >= KV_FULL_PERMILLE
        self.told_until = now + TOLD_S
        self.checked(now)

    def checked(self, now: float) -> int:
        """Bring ``limit`` up to date, and return it."""
        if self.out(now):
            self.limit, self.recheck_at = 0, max(self.ejected_until, self.leaving_until)
        elif self.told_until > now:
            room = 0 if self.full else self.slots - self.others
            self.limit, self.recheck_at = max(0, min(self.allowance, room)), self.told_until
        else:
            self.limit, self.recheck_at = min(self.allowance, self.slots), inf
        return self.limit

    def leave(self, now: float) -> None:
        """It said that it drains: it counts as gone until the endpoints say so, or it is asked again."""
        self.leaving_until = now + LEAVING_S
        self.checked(now)

    def lack(self, adapter: str, now: float) -> None:
        """Its engine said that it does not have this adapter: it is asked for it again after a while."""
        if len(self.lacking) >= _MOST_LACKING:
            self.lacking.clear()
        self.lacking[adapter] = now + LACKING_S

    def succeeded(self) -> None:
        """It answered as it should."""
        if self.troubled:
            self._recover()

    def failed(self, now: float, *, reached: bool = False) -> bool:
        """It did not answer as it should; whether it is left alone from now on for that.

        ``reached``: it took the request and failed at it (5xx, abort, a broken stream). Failures of one moment count
        once: those that end while it is left alone began before.
        """
        if now < self.ejected_until:
            return False
        self.troubled = True
        self.in_a_row += 1
        self.latest = (self.latest << 1 | 1) & _LATEST
        if reached and not (self._outlier() and self._enough_stay(now)):
            return False
        self._eject(now)
        return True

    def _outlier(self) -> bool:
        recovering = self.allowance != _WHOLE
        return recovering or self.in_a_row >= FAILURES_IN_A_ROW or self.latest.bit_count() >= FAILURES_OF_LATEST

    def _enough_stay(self, now: float) -> bool:
        out = sum(peer.ejected_until > now for peer in self.peers if peer is not self)
        return 2 * (out + 1) <= len(self.peers)

    def _eject(self, now: float) -> None:
        self.ejected_until = now + min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2.0 ** min(self.ejections, 10))
        self.ejections += 1
        self.allowance = 1
        self.checked(now)

    def _recover(self) -> None:
        """Trust it with twice as much; well again, it starts anew."""
        self.in_a_row = 0
        self.latest = self.latest << 1 & _LATEST
        if self.allowance != _WHOLE:
            self.allowance *= 2
            if self.allowance >= _RECOVERED:
                self.allowance, self.ejections = _WHOLE, 0
            self.recheck_at = 0.0
        self.troubled = self.latest != 0 or self.allowance != _WHOLE


class Fleet:
    """The replicas of one pool, who of them takes which prompts, and what of ours they run."""

    def __init__(self) -> None:
        self.replicas: tuple[Replica, ...] = ()
        self.running = 0
        self._slots = 0
        self._bounds: dict[str, int] = {}
        self._places: list[int] = []
        self._orders: list[tuple[Replica, ...]] = [()]
        self._turn = 0
        self._quarters = 4

    def update(self, wanted: Iterable[Replica], bounds: Mapping[str, int] = NO_BOUNDS) -> None:
        """The pool has these replicas now; those that were there before keep what is known of them.

        ``bounds``: requests that a replica of a variant runs at once, where that is less than what others do.
        """
        if bounds != self._bounds:
            self._bounds = dict(bounds)
            for replica in self.replicas:
                replica.slots, replica.limit, replica.recheck_at = self._slots_of(replica), 0, 0.0
        known = {(replica.pod, replica.target): replica for replica in self.replicas}
        replicas = tuple(known.get((replica.pod, replica.target), replica) for replica in wanted)
        if replicas == self.replicas:
            return
        for replica in replicas:
            replica.peers, replica.slots, replica.recheck_at = replicas, self._slots_of(replica), 0.0
        self.replicas = replicas
        # By pod, because a router knows its own pod by another address than the others do.
        self._places, orders = ring([replica.pod or str(replica.target) for replica in replicas])
        kept: dict[tuple[int, ...], tuple[Replica, ...]] = {}  # small pools have few orders
        self._orders = [kept.setdefault(order, tuple(replicas[index] for index in order)) for order in orders] or [()]
        self._turn, self._quarters = 0, 4 * max(1, len(replicas))

    def take(self, key: Key, slots: int, now: float, skip: Collection[Replica] = ()) -> Replica | None:
        """A replica with one request more, to be given back with ``release``; ``None``: nobody has room.

        ``slots`` is how many requests one replica runs at once at most; those in ``skip`` are not taken.
        """
        if slots != self._slots:
            self._resize(slots, now)
        running = self.running
        if skip:
            taken = self._search(key, now, skip)
        elif key:
            # Every request comes by here or by `_least`: `bound` and `has_room` are written out.
            most = -(-5 * (running + 1) // self._quarters) + 1
            for taken in self._orders[bisect(self._places, key)]:
                own = taken.in_flight
                if own < most and (own < taken.limit or (now >= taken.recheck_at and own < taken.checked(now))):
                    break
            else:
                taken = self._search(key, now, skip)
        else:
            taken = self._least(now) or self._search(key, now, skip)
        if taken is not None:
            taken.in_flight += 1
            self.running = running + 1
        return taken

    def release(self, replica: Replica) -> None:
        """A request of ours ended there, whether or not it still is in the pool."""
        replica.in_flight -= 1
        self.running -= 1

    def empty(self, now: float) -> bool:
        """Whether no replica is there, or all that are there drain."""
        return all(replica.leaving_until > now for replica in self.replicas)

    def _resize(self, slots: int, now: float) -> None:
        self._slots = slots
        for replica in self.replicas:
            replica.slots = self._slots_of(replica)
            replica.checked(now)

    def _slots_of(self, replica: Replica) -> int:
        return min(self._slots, self._bounds.get(replica.variant, self._slots))

    def _least(self, now: float) -> Replica | None:
        """The least loaded of some that stand together on the ring, each time from another place on.

        Whoever always began with the same replica would send all that comes while nothing runs to that one, and so
        would every other router.
        """
        self._turn = turn = (self._turn + 1) % len(self._orders)
        best: Replica | None = None
        least = _WHOLE
        for replica in self._orders[turn]:
            own = replica.in_flight
            load = own + replica.others if replica.told_until > now else own
            if load < least and (own < replica.limit or (now >= replica.recheck_at and own < replica.checked(now))):
                best, least = replica, load
        return best

    def _search(self, key: Key, now: float, skip: Collection[Replica]) -> Replica | None:
        """Those that come first are out, full, busy or skipped: look at the whole pool."""
        ready = [replica for replica in self.replicas if replica.has_room(now) and replica not in skip]
        if not ready:
            return self._despite(now, skip)
        if key:
            # The bound is that of the replicas that are left: they carry what the others cannot.
            most = bound(sum(replica.in_flight for replica in ready), len(ready))
            for replica in self._orders[bisect(self._places, key)]:
                if replica.in_flight < most and replica in ready:
                    return replica
        return min(ready, key=lambda replica: replica.load(now))

    def _despite(self, now: float, skip: Collection[Replica]) -> Replica | None:
        """One that told that it is full, if none of ours run there; if all are ejected, the first to come back."""
        allowed = [replica for replica in self.replicas if replica not in skip]
        asked = [replica for replica in allowed if replica.may_be_asked(now)]
        if asked:
            return min(asked, key=lambda replica: replica.load(now))
        staying = [replica for replica in self.replicas if replica.leaving_until <= now]
        if any(replica.ejected_until <= now for replica in staying):
            return None
        tried = [replica for replica in staying if replica.in_flight < replica.slots and replica not in skip]
        return min(tried, key=lambda replica: replica.ejected_until, default=None)
