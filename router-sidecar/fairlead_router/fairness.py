"""Who is next: strict priority between bands, deficit round robin by cost between the tenants of a band. Pure.

Each priority has two bands: behind those that can still be served in time, those that were put off.

Deficit round robin (Shreedhar and Varghese, 1995) credits each tenant that waits with a quantum a round, and serves its
oldest request once its credit has reached that request's cost. The quantum here is one nano-USD, the finest there is:
no tenant gets a burst, and what two tenants that both wait are served never differs by more than one request. The many
rounds in which nobody can be served are not walked: a tenant's next turn is the round in which its credit began plus
its oldest request's cost, and tenants are kept in the order of these rounds. After its turn a tenant has no credit
left, so nothing need be known of a tenant that waits no more; whoever comes back begins anew in the present round.

A turn costs one search in a sorted list of tenants and the shift of at most a thousand pointers.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

from fairlead_router.contract import Priority

PRIORITIES: Final[tuple[Priority, ...]] = ("Interactive", "Standard", "Batch")


class Job(Protocol):
    """What waits. Compared by identity."""

    @property
    def tenant(self) -> str:
        """Between these the turns are shared."""

    @property
    def priority(self) -> Priority:
        """Its band."""

    @property
    def cost(self) -> int:
        """In one unit for all jobs of a queue; what is less than 1 counts as 1."""


J = TypeVar("J", bound=Job)


class _Tenant(Generic[J]):
    """A tenant's jobs of one band, the oldest first, and the round in which it had no credit."""

    __slots__ = ("jobs", "name", "since", "size", "turn")

    def __init__(self, name: str, since: int) -> None:
        self.name = name
        self.jobs: OrderedDict[J, None] = OrderedDict()  # a dict looks for its first key among those that were deleted
        self.size = 0
        self.since = since
        self.turn = (0, 0)
        """The round of its next turn, and a number that puts who had no turn for longer first."""


_size = attrgetter("size")


class _Band(Generic[J]):
    """The jobs of one priority."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[J]] = {}
        self._turns: list[tuple[tuple[int, int], _Tenant[J]]] = []
        self._round = 0
        self._number = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def __iter__(self) -> Iterator[J]:
        for _, tenant in self._turns:
            yield from tenant.jobs

    def add(self, job: J) -> None:
        """Behind the tenant's other jobs."""
        tenant = self._tenants.get(job.tenant)
        if tenant is None:
            tenant = self._tenants[job.tenant] = _Tenant(job.tenant, self._round)
        tenant.jobs[job] = None
        tenant.size += 1
        if tenant.size == 1:
            self._insert(tenant)

    def remove(self, job: J, charge: int) -> None:
        """The job waits no more, and its tenant pays this much of its credit."""
        tenant = self._tenants[job.tenant]
        moves = bool(charge) or next(iter(tenant.jobs)) is job
        if moves:
            del self._turns[bisect_left(self._turns, (tenant.turn,))]
        del tenant.jobs[job]
        tenant.size -= 1
        tenant.since += charge
        self._round = max(self._round, tenant.since)
        if not tenant.size:
            del self._tenants[tenant.name]
        elif moves:
            self._insert(tenant)

    def size(self, tenant: str) -> int:
        """How many jobs of a tenant wait."""
        found = self._tenants.get(tenant)
        return found.size if found is not None else 0

    def longest(self) -> tuple[int, J]:
        """The most jobs that a tenant has here, and its newest. The band is not empty."""
        tenant = max(self._tenants.values(), key=_size)
        return tenant.size, next(reversed(tenant.jobs))

    def _insert(self, tenant: _Tenant[J]) -> None:
        self._number += 1
        tenant.turn = (tenant.since + max(1, next(iter(tenant.jobs)).cost), self._number)
        insort(self._turns, (tenant.turn, tenant))


class FairQueue(Generic[J]):
    """Jobs in the order in which they are due: iterate for the order, then say who was served."""

    def __init__(self) -> None:
        self._bands: dict[tuple[Priority, bool], _Band[J]] = {
            (priority, late): _Band() for priority in PRIORITIES for late in (False, True)
        }
        self._late: set[J] = set()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[J]:
        """All jobs, who is due first; behind a job that must be passed over its tenant's next. Stop before a change."""
        for band in self._bands.values():
            yield from band

    def late(self) -> Iterator[J]:
        """Those that were put off, who is due first."""
        for (_, late), band in self._bands.items():
            if late:
                yield from band

    def add(self, job: J) -> None:
        """It waits from now on."""
        self._bands[job.priority, False].add(job)
        self._size += 1

    def put_off(self, job: J) -> bool:
        """It goes behind all of its priority that were not put off; false if it was before."""
        if job in self._late:
            return False
        self._bands[job.priority, False].remove(job, 0)
        self._late.add(job)
        self._bands[job.priority, True].add(job)
        return True

    def serve(self, job: J) -> None:
        """It had its turn: its tenant pays the cost."""
        self._take(job, max(1, job.cost))

    def remove(self, job: J) -> None:
        """It waits no more and had no turn: its tenant keeps the credit while others of it wait."""
        self._take(job, 0)

    def _take(self, job: J, charge: int) -> None:
        self._bands[job.priority, job in self._late].remove(job, charge)
        self._late.discard(job)
        self._size -= 1

    def yields_to(self, newcomer: J) -> J | None:
        """Who gives way when all places are taken; ``None``: the newcomer has no more right to wait than they.

        That is the newest job of the tenant with most jobs in the lowest band, if the band is lower than the
        newcomer's, or if that tenant has more jobs there than the newcomer's would have.
        """
        for place, band in reversed(self._bands.items()):
            if band:
                size, newest = band.longest()
                own = band.size(newcomer.tenant) + 1
                return newest if place != (newcomer.priority, False) or size > own else None
            if place == (newcomer.priority, False):
                break
        return None
