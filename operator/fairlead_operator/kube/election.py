"""Who writes: one Lease, taken by one replica at a time.

Times are observed, never compared between machines: a holder is gone when its record has not changed for
``duration`` seconds of our own monotonic clock, as client-go does it. A leader that cannot renew within
``deadline`` raises LeaseLostError, which ends the process: everything it believed may be stale.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from fairlead_operator.clock import Clock
from fairlead_operator.errors import ApiError, ConflictError, ForbiddenError, LeaseLostError, NotFoundError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import LEASES

log = logging.getLogger(__name__)

Version = tuple[int, int]
NEWS = "fairlead.dev/budgets-version"
"""Annotation in which the leader tells the other replicas which budgets the ledger has taken."""


@dataclass(frozen=True, slots=True)
class Seat:
    """The Lease, and the name under which this process holds it."""

    namespace: str
    name: str
    identity: str


@dataclass(frozen=True, slots=True)
class Term:
    """How long a holder may be silent, how long a renewal may take, and how often it is tried."""

    duration_s: float = 15.0
    deadline_s: float = 10.0
    retry_s: float = 2.0


class Election:
    """One candidate. ``leading`` is set while this process holds the Lease, ``transitions`` counts its holders."""

    def __init__(self, api: Api, seat: Seat, clock: Clock, term: Term | None = None) -> None:
        self._api = api
        self._namespace = seat.namespace
        self._name = seat.name
        self.identity = seat.identity
        self._clock = clock
        self._term = term or Term()
        self.leading = asyncio.Event()
        self.transitions = 0
        self.problem: ApiError | None = None
        self._seen: tuple[str, float] = ("", clock.monotonic())
        self._news: Version = (0, 0)
        self.heard: Callable[[Version], None] = lambda _: None

    async def run(self) -> None:
        """Wait for the Lease, then renew it until cancelled or lost."""
        renewed = self._clock.monotonic()
        while not await self._try_once():
            await self._clock.sleep(self._term.retry_s)
            renewed = self._clock.monotonic()
        log.info("leading as %s, transition %d", self.identity, self.transitions)
        self.leading.set()
        while True:
            await self._clock.sleep(self._term.retry_s)
            # Counted from before the attempt: others count from when the record changed, not from when we heard of it.
            begun = self._clock.monotonic()
            left = self._term.deadline_s - (begun - renewed)
            if left > 0 and await self._try_once(left):
                renewed = begun
            elif self._clock.monotonic() - renewed >= self._term.deadline_s:
                self.leading.clear()
                raise LeaseLostError(
                    f"Lease {self._namespace}/{self._name} was not renewed for {self._term.deadline_s:.0f}s"
                )

    def publish(self, version: Version) -> None:
        """Tell the other replicas with the next renewal."""
        self._news = version

    async def outrank(self, transitions: int) -> None:
        """Count our term above one that somebody else remembers; only a leader that has just renewed may say so."""
        if await self._try_once():
            self.transitions = max(self.transitions, transitions + 1)

    async def release(self) -> None:
        """Hand the Lease over at once, so that the next replica need not wait for the holder's silence."""
        if not self.leading.is_set():
            return
        self.leading.clear()
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(self._term.retry_s):
                lease = await self._api.get(LEASES, self._namespace, self._name)
                if lease["spec"].get("holderIdentity") == self.identity:
                    lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._stamp()}
                    await self._api.replace(LEASES, self._namespace, self._name, lease)

    async def _try_once(self, seconds: float | None = None) -> bool:
        """Create, take over or renew; False when somebody else holds it or the server did not answer in time."""
        try:
            async with asyncio.timeout(self._term.deadline_s if seconds is None else seconds):
                held = await self._acquire()
        except ConflictError:
            return False
        except (ApiError, TimeoutError) as error:
            self._note(error)
            return False
        self.problem = None
        return held

    def _note(self, error: ApiError | TimeoutError) -> None:
        self.problem = error if isinstance(error, ForbiddenError) else None
        log.info(
            "lease %s/%s: %s",
            self._namespace,
            self._name,
            error if isinstance(error, ApiError) else "no answer in time",
        )

    async def _acquire(self) -> bool:
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
        except NotFoundError:
            await self._api.create(LEASES, self._namespace, self._record({}, 1))
            self.transitions = 1
            return True
        self._listen(lease)
        spec = lease.get("spec") or {}
        mine = spec.get("holderIdentity") == self.identity
        if self.leading.is_set() and not mine:
            self.leading.clear()
            raise LeaseLostError(f"Lease {self._namespace}/{self._name} is held by {spec.get('holderIdentity')!r}")
        if not mine and not self._vacant(lease):
            return False
        counted = int(spec.get("leaseTransitions") or 0) + (not mine or not self.leading.is_set())
        transitions = max(counted, self.transitions) if self.leading.is_set() else counted
        await self._api.replace(LEASES, self._namespace, self._name, self._record(lease, transitions))
        self.transitions = transitions
        return True

    def _listen(self, lease: Object) -> None:
        """Hand on what the leader tells in the Lease."""
        parts = str((lease["metadata"].get("annotations") or {}).get(NEWS, "")).split(".")
        if len(parts) == 2 and all(part.isdecimal() for part in parts):  # noqa: PLR2004 - term and counter
            self.heard((int(parts[0]), int(parts[1])))

    def _vacant(self, lease: Object) -> bool:
        """Whether nobody holds it, or its record has not changed for the holder's duration of our own clock."""
        version, now = lease["metadata"]["resourceVersion"], self._clock.monotonic()
        if version != self._seen[0]:
            self._seen = (version, now)
        spec = lease.get("spec") or {}
        duration = float(spec.get("leaseDurationSeconds") or self._term.duration_s)
        return not spec.get("holderIdentity") or now - self._seen[1] > duration

    def _record(self, lease: Object, transitions: int) -> Object:
        """The Lease as this candidate writes it: ``transitions`` grows with each term, one of the same holder too."""
        spec = lease.get("spec") or {}
        now = self._stamp()
        meta = dict(lease.get("metadata") or {"name": self._name, "namespace": self._namespace})
        meta["annotations"] = {**(meta.get("annotations") or {}), NEWS: f"{self._news[0]}.{self._news[1]}"}
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": meta,
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": max(1, round(self._term.duration_s)),
                "acquireTime": spec.get("acquireTime", now) if self.leading.is_set() else now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }

    def _stamp(self) -> str:
        moment = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
