"""A fleet of replicas under a workload and a policy, from event to event: arrivals, the policy's ticks, replicas ready.

A replica is off, starting (paid), ready, or draining: paid, sent nothing more, gone when empty. The router sends each
request to the ready replica with the fewest outstanding tokens by weight, as if it knew the output, lets it wait while
all run as many as they should, and holds it while none is ready. A replica is advanced only where its state matters, so
that an arrival costs one comparison for each that is in the midst of a step. Compiled for speed; runs uncompiled as
well.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Final

from fairlead_operator.performance.replica import BLOCK_TOKENS, NO_BLOCKS, Replica, Request
from fairlead_operator.performance.routing import UNBOUNDED, Place, Router
from fairlead_operator.performance.step import Objectives
from fairlead_operator.simulate.model import Minute, Result, Variant, Workload
from fairlead_operator.simulate.policy import Policy, Recent, View

GRACE: Final = 600.0
"""Seconds that requests may take beyond the workload's end before they count as unfinished."""
RECENT: Final = 60.0
"""Seconds of latencies that a policy sees."""
MAX_SAMPLES: Final = 256
PER_E: Final = 100
"""Buckets of a histogram of latencies for each factor of e: its percentiles are exact to 1 %."""
BUCKETS: Final = 2000
SHORTEST: Final = 1e-5


class Latencies:
    """Counts of latencies by their logarithm."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.total = 0

    def add(self, seconds: float) -> None:
        """Count one."""
        bucket = int(math.log(seconds / SHORTEST) * PER_E) if seconds > SHORTEST else 0
        self.counts[min(bucket, BUCKETS - 1)] += 1
        self.total += 1

    def quantile(self, share: float) -> float:
        """What this share does not exceed, to 1 %; 0 of none."""
        left = share * self.total
        for bucket, count in enumerate(self.counts):
            left -= count
            if count and left <= 0:
                return SHORTEST * math.exp((bucket + 1) / PER_E)
        return 0.0


class Member(Place):
    """A replica of the fleet: what it is paid for, since when, and when it is ready and drains."""

    __slots__ = ("born", "drained_from", "price", "ready_at", "variant")

    def __init__(self, variant: int, kind: Variant, born: float, ready_at: float) -> None:
        slots = UNBOUNDED if kind.slots is None else kind.slots
        super().__init__(Replica(kind.engine, ready_at), 1.0 / kind.weight, slots)
        self.variant = variant
        self.price = kind.price_per_hour
        self.born = born
        self.ready_at = ready_at
        self.drained_from = math.inf


class Since:
    """What happened since the policy's last tick."""

    __slots__ = (
        "arrivals", "finished", "met", "met_tpot", "met_ttft", "output_tokens", "prompt_tokens", "samples", "tpot",
        "ttft",
    )  # fmt: skip

    def __init__(self) -> None:
        self.arrivals = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.finished = 0
        self.met = 0
        self.met_ttft = 0
        self.met_tpot = 0
        self.samples: list[tuple[int, int]] = []
        self.ttft: list[float] = []
        self.tpot: list[float] = []


class Accounts:
    """What the run comes to, from ``since`` to ``until``."""

    __slots__ = (
        "dollars", "dollars_starting", "held", "held_met", "met", "met_tpot", "met_ttft", "minute_arrivals",
        "minute_missed", "minute_ready", "minute_wanted", "pods_started", "preemptions", "refused", "requests",
        "scale_events", "seconds", "since", "tpot", "ttft", "until",
    )  # fmt: skip

    def __init__(self, variants: int, since: float, until: float) -> None:
        self.since = since
        self.until = until
        self.requests = 0
        self.met = 0
        self.met_ttft = 0
        self.met_tpot = 0
        self.held = 0
        self.held_met = 0
        self.refused = 0
        self.seconds = [0.0] * variants
        self.dollars = 0.0
        self.dollars_starting = 0.0
        self.scale_events = 0
        self.pods_started = 0
        self.preemptions = 0
        self.ttft = Latencies()
        self.tpot = Latencies()
        minutes = int(until // 60) + 1
        self.minute_arrivals = [0] * minutes
        self.minute_missed = [0] * minutes
        self.minute_wanted = [0] * minutes
        self.minute_ready = [0] * minutes

    def within(self, start: float, end: float) -> float:
        """Seconds of the time between these that are counted."""
        return max(0.0, min(end, self.until) - max(start, self.since))

    def pay(self, member: Member, end: float) -> None:
        """For a replica that was there until ``end``."""
        paid = self.within(member.born, end)
        self.seconds[member.variant] += paid
        self.dollars += paid * member.price / 3600.0
        starting = self.within(member.born, min(member.ready_at, end))
        self.dollars_starting += starting * member.price / 3600.0
        self.preemptions += member.replica.preemptions


class Fleet:
    """The state between two events. ``ready`` is in the order of becoming so, ``starting`` of being started."""

    __slots__ = (
        "accounts", "cold_starts", "draining", "held", "next_ready", "ready", "recent", "router", "since", "starting",
        "tpot_limit", "ttft_limit", "variants", "wanted",
    )  # fmt: skip

    def __init__(
        self, variants: Sequence[Variant], objectives: Objectives, accounts: Accounts, cold_starts: random.Random
    ) -> None:
        self.variants = list(variants)
        self.ttft_limit = math.inf if objectives.ttft is None else objectives.ttft
        self.tpot_limit = math.inf if objectives.tpot is None else objectives.tpot
        self.accounts = accounts
        self.cold_starts = cold_starts
        self.ready: list[Member] = []
        self.starting: list[Member] = []
        self.draining: list[Member] = []
        self.held: deque[Request] = deque()
        self.router = Router(self.ttft_limit)
        self.since = Since()
        self.recent: deque[tuple[float, list[float], list[float]]] = deque()
        self.next_ready = math.inf
        self.wanted = [kind.minimum if kind.initial is None else kind.initial for kind in variants]
        for variant, kind in enumerate(variants):
            self.ready.extend(Member(variant, kind, 0.0, 0.0) for _ in range(self.wanted[variant]))

    def arrive(self, request: Request, now: float) -> None:
        """Take a request from a client."""
        since = self.since
        since.arrivals += 1
        since.prompt_tokens += request.prompt
        accounts = self.accounts
        minute = int(now / 60.0)
        accounts.minute_arrivals[minute] += 1
        if now >= accounts.since:
            accounts.requests += 1
            accounts.held += not self.ready
        if self.ready:
            self.route(request, now)
        else:
            request.held = True
            self.held.append(request)

    def route(self, request: Request, now: float) -> None:
        """To the ready replica with the fewest outstanding tokens, or into the router's line."""
        if not self.router.arrive(request, now, self.ready):
            self.refuse(request)

    def give(self, now: float) -> None:
        """Let those that wait at the router have the slots that are free by now."""
        for request in self.router.give(now, self.ready):
            self.refuse(request)

    def refuse(self, request: Request) -> None:
        """Answer with an error: it is larger than any KV cache, or has waited too long."""
        accounts = self.accounts
        accounts.minute_missed[self.minute_of(request)] += 1
        if request.arrival >= accounts.since:
            accounts.refused += 1

    def minute_of(self, request: Request) -> int:
        """Of its arrival."""
        return min(int(request.arrival / 60.0), len(self.accounts.minute_missed) - 1)

    def become_ready(self, now: float) -> None:
        """Those whose start is over join, and what was held goes to them."""
        self.ready.extend(member for member in self.starting if member.ready_at <= now)
        self.starting = [member for member in self.starting if member.ready_at > now]
        self.next_ready = min((member.ready_at for member in self.starting), default=math.inf)
        while self.held:
            request = self.held.popleft()
            request.released = now
            self.route(request, now)
        self.give(now)

    def collect(self, now: float) -> None:
        """Bring every replica to the present, judge what has finished, and let go of those drained."""
        for member in self.ready:
            self.gather(member.replica, now)
        left: list[Member] = []
        for member in self.draining:
            self.gather(member.replica, now)
            if member.replica.outstanding:
                left.append(member)
            else:
                self.accounts.pay(member, max(member.replica.clock, member.drained_from))
        self.draining = left
        since = self.since
        self.recent.append((now, since.ttft, since.tpot))
        while self.recent[0][0] <= now - RECENT:
            self.recent.popleft()

    def gather(self, replica: Replica, now: float) -> None:
        """Of one replica."""
        replica.advance(now)
        ttft = self.since.ttft
        for request in replica.started:
            ttft.append(request.first - request.released)
        replica.started.clear()
        for request in replica.finished:
            self.judge(request)
        replica.finished.clear()

    def judge(self, request: Request) -> None:
        """Count a finished request against the objectives."""
        first = request.first - request.released
        rest = (request.last - request.first) / (request.output - 1) if request.output > 1 else 0.0
        met_ttft = first <= self.ttft_limit
        met_tpot = rest <= self.tpot_limit
        met = met_ttft and met_tpot
        since = self.since
        since.finished += 1
        since.output_tokens += request.output
        since.met += met
        since.met_ttft += met_ttft
        since.met_tpot += met_tpot
        if request.output > 1:
            since.tpot.append(rest)
        if len(since.samples) < MAX_SAMPLES:
            since.samples.append((request.prompt, request.output))
        self.account(request, first, rest, met_ttft, met_tpot)

    def account(self, request: Request, first: float, rest: float, met_ttft: bool, met_tpot: bool) -> None:
        """Enter it into the accounts, under the time of its arrival."""
        accounts = self.accounts
        met = met_ttft and met_tpot
        if not met:
            accounts.minute_missed[self.minute_of(request)] += 1
        if request.arrival >= accounts.since:
            accounts.met += met
            accounts.met_ttft += met_ttft
            accounts.met_tpot += met_tpot
            accounts.ttft.add(first)
            accounts.tpot.add(rest)
            accounts.held_met += met and request.held

    def view(self, now: float) -> View:
        """What the policy sees; its counts begin anew."""
        ready = sorted(self.ready, key=lambda member: member.variant) if len(self.variants) > 1 else self.ready
        since = self.since
        self.since = Since()
        replicas = [member.replica for member in ready]
        serving = replicas + [member.replica for member in self.draining]
        waiting_tokens = sum(request.prompt for request in (*self.held, *self.router.unfinished()))
        return View(
            now=now,
            ready=self.by_variant(self.ready),
            starting=self.by_variant(self.starting),
            draining=self.by_variant(self.draining),
            start_ages=tuple(
                tuple(now - member.born for member in self.starting if member.variant == variant)
                for variant in range(len(self.variants))
            ),
            arrivals=since.arrivals,
            finished=since.finished,
            met=since.met,
            missed=since.finished - since.met,
            met_ttft=since.met_ttft,
            missed_ttft=since.finished - since.met_ttft,
            met_tpot=since.met_tpot,
            missed_tpot=since.finished - since.met_tpot,
            prompt_tokens=since.prompt_tokens,
            output_tokens=since.output_tokens,
            running=sum(replica.running for replica in serving),
            waiting=sum(len(replica.waiting) for replica in serving) + self.router.waiting(),
            held=len(self.held),
            waiting_tokens=waiting_tokens + sum(replica.tokens_to_compute() for replica in serving),
            kv_use=tuple(replica.kv_tokens_used(now) / replica.kv_tokens for replica in replicas),
            running_by=tuple(replica.running for replica in replicas),
            waiting_by=tuple(len(replica.waiting) for replica in replicas),
            recent=Recent(tuple(part[1] for part in self.recent), tuple(part[2] for part in self.recent)),
            samples=tuple(since.samples),
        )

    def by_variant(self, members: Sequence[Member]) -> tuple[int, ...]:
        """How many of each."""
        counts = [0] * len(self.variants)
        for member in members:
            counts[member.variant] += 1
        return tuple(counts)

    def scale(self, wanted: Sequence[int], now: float) -> None:
        """Start and remove replicas so that as many are ready or starting as wanted, within the variants' bounds."""
        if len(wanted) != len(self.variants):
            raise ValueError(f"the policy wants {len(wanted)} numbers of replicas: give one for each variant")
        bounded = [
            max(kind.minimum, min(kind.maximum, number)) for kind, number in zip(self.variants, wanted, strict=True)
        ]
        if bounded != self.wanted and self.accounts.since <= now <= self.accounts.until:
            self.accounts.scale_events += 1
        for variant, number in enumerate(bounded):
            change = number - self.wanted[variant]
            for _ in range(change):
                self.start(variant, now)
            for _ in range(-change):
                self.remove(variant, now)
        self.wanted = bounded

    def start(self, variant: int, now: float) -> None:
        """One replica, ready after a cold start."""
        kind = self.variants[variant]
        spread = kind.cold_start_spread * self.cold_starts.uniform(-1.0, 1.0)
        member = Member(variant, kind, now, now + kind.cold_start * (1.0 + spread))
        self.starting.append(member)
        self.next_ready = min(self.next_ready, member.ready_at)
        if self.accounts.since <= now <= self.accounts.until:
            self.accounts.pods_started += 1

    def remove(self, variant: int, now: float) -> None:
        """The youngest that is starting goes at once, else the emptiest ready one when it has finished its requests."""
        for at in range(len(self.starting) - 1, -1, -1):
            if self.starting[at].variant == variant:
                self.accounts.pay(self.starting.pop(at), now)
                self.next_ready = min((member.ready_at for member in self.starting), default=math.inf)
                return
        victim = min(
            (member for member in self.ready if member.variant == variant),
            key=lambda member: (member.replica.outstanding, -member.ready_at),
        )
        victim.drained_from = now
        self.ready.remove(victim)
        self.draining.append(victim)

    def tick(self, policy: Policy, now: float) -> None:
        """Collect, ask the policy, do it."""
        for request in self.router.expired(now):
            self.since.finished += 1
            self.refuse(request)
        self.collect(now)
        self.scale(policy.desired(self.view(now)), now)
        accounts = self.accounts
        minute = int(now / 60.0)
        if minute < len(accounts.minute_ready):
            accounts.minute_ready[minute] = len(self.ready)
            accounts.minute_wanted[minute] = sum(self.wanted)

    def busy(self) -> bool:
        """Whether any request is on its way."""
        if self.held or self.router.waiting():
            return True
        return any(member.replica.outstanding for member in self.ready + self.draining)


def run(
    workload: Workload,
    variants: Sequence[Variant],
    objectives: Objectives,
    policy: Policy,
    *,
    count_from: float = 900.0,
    seed: int = 1,
) -> Result:
    """Simulate until the last request has finished, at most ten minutes beyond the workload's end.

    Args:
        workload: the requests.
        variants: what the fleet may run; those that are ready at the start cost nothing to start.
        objectives: what each request is promised.
        policy: asked every ``policy.interval`` seconds.
        count_from: when the accounts open; they close at the workload's end. Requests count by their arrival,
            replicas by the second.
        seed: of the cold starts, where they vary.

    Raises:
        ValueError: the workload's columns or times are not in order, a request has no tokens, or the policy's answer is
            not one number for each variant.
    """
    if not (len(workload.arrivals) == len(workload.prompt_tokens) == len(workload.output_tokens)):
        raise ValueError("the workload's columns differ in length: give each request a time, a prompt and an output")
    if not policy.interval > 0:
        raise ValueError(f"the policy's interval is {policy.interval}: give seconds above 0")
    accounts = Accounts(len(variants), count_from, workload.duration)
    # Seeded so that a run can be repeated; nothing secret depends on it.
    fleet = Fleet(variants, objectives, accounts, random.Random(seed))  # noqa: S311
    _drive(fleet, workload, policy)
    _close(fleet)
    return _result(accounts)


def _drive(fleet: Fleet, workload: Workload, policy: Policy) -> None:
    """From event to event; of those at one time a replica becomes ready first, then the policy ticks."""
    number = 0
    arrival = _arrival(workload, 0, 0.0)
    interval = policy.interval
    tick = interval
    while True:
        free = fleet.router.free_at(fleet.ready)
        if free <= arrival and free < tick and free < fleet.next_ready:
            fleet.give(free)
        elif arrival < tick and arrival < fleet.next_ready:
            fleet.arrive(_request(workload, number), arrival)
            number += 1
            arrival = _arrival(workload, number, arrival)
        elif fleet.next_ready <= tick:
            fleet.become_ready(fleet.next_ready)
        else:
            fleet.tick(policy, tick)
            if arrival == math.inf and tick >= workload.duration and (_late(workload, tick) or not fleet.busy()):
                return
            tick += interval


def _late(workload: Workload, now: float) -> bool:
    """Whether what has not finished by now counts as unfinished."""
    return now >= workload.duration + GRACE


def _arrival(workload: Workload, number: int, before: float) -> float:
    """Of the request of that number; infinite if there is none."""
    if number >= len(workload.arrivals):
        return math.inf
    arrival = workload.arrivals[number]
    if not before <= arrival <= workload.duration:
        raise ValueError(
            f"request {number} arrives at {arrival} s: give times in order, from 0 to the duration {workload.duration}"
        )
    return arrival


def _request(workload: Workload, number: int) -> Request:
    """The request of that number, with its full blocks."""
    prompt = workload.prompt_tokens[number]
    output = workload.output_tokens[number]
    if prompt < 1 or output < 1:
        raise ValueError(f"request {number} has {prompt} prompt and {output} output tokens: give at least 1 of each")
    blocks = workload.prefixes[number][: prompt // BLOCK_TOKENS] if workload.prefixes else NO_BLOCKS
    return Request(number, workload.arrivals[number], prompt, output, blocks)


def _close(fleet: Fleet) -> None:
    """Count the requests that have not finished as missed, and pay for the replicas that are still there."""
    accounts = fleet.accounts
    unfinished = [*fleet.held, *fleet.router.unfinished()]
    for member in fleet.ready + fleet.draining + fleet.starting:
        accounts.pay(member, accounts.until)
        unfinished.extend(member.replica.unfinished())
    for request in unfinished:
        accounts.minute_missed[fleet.minute_of(request)] += 1


def _result(accounts: Accounts) -> Result:
    return Result(
        requests=accounts.requests,
        met=accounts.met,
        met_ttft=accounts.met_ttft,
        met_tpot=accounts.met_tpot,
        held=accounts.held,
        held_met=accounts.held_met,
        unfinished=accounts.requests - accounts.refused - accounts.ttft.total,
        refused=accounts.refused,
        replica_seconds=tuple(accounts.seconds),
        dollars=accounts.dollars,
        dollars_starting=accounts.dollars_starting,
        scale_events=accounts.scale_events,
        pods_started=accounts.pods_started,
        preemptions=accounts.preemptions,
        ttft_p99=accounts.ttft.quantile(0.99),
        tpot_p99=accounts.tpot.quantile(0.99),
        minutes=tuple(
            Minute(*minute)
            for minute in zip(
                accounts.minute_arrivals,
                accounts.minute_missed,
                accounts.minute_wanted,
                accounts.minute_ready,
                strict=True,
            )
        ),
    )
