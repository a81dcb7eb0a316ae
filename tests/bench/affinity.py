"""Prefix affinity on a recorded hour of conversations: what the replicas' caches save, and how even the load is.

The choice is the router's own code. The replicas are a model: each has a cache of prompt blocks that forgets the least
recently used, does prefills one after another and gives each output token in the same time. Everything is seeded. The
last line is one JSON object.
"""

import gzip
import heapq
import random
import resource
import statistics
import sys
import time
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fairlead_router.affinity import NO_PREFIX, Key, prefix_key, ring
from fairlead_router.replicas import Fleet, Replica
from fairlead_router.upstream import Target

TRACE: Final = Path(__file__).parent / "data" / "mooncake_conversation_trace.jsonl.gz"
REPLICAS: Final = 8
SLOTS: Final = 256
BLOCK: Final = 512
BLOCK_BYTES: Final = 2048
KV_TOKENS: Final = 1_000_000
SMALL_KV_TOKENS: Final = 350_000
PREFILL_PER_S: Final = 30_000.0
OUTPUT_TOKEN_S: Final = 0.02
MANY_ROUTERS: Final = 8
FASTER: Final = 4
RENDERED_BLOCKS: Final = 8
TABLE_DEPTHS: Final = (8, 4, 2)
TABLE_ENTRIES: Final = 1 << 16
CALLS: Final = 1_000_000
DISTINCT: Final = 100_000
SIZES: Final = (1_000, 4_000, 400_000)


class Arrival(msgspec.Struct):
    """One line of the trace."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]
    key: Key = NO_PREFIX


@dataclass
class Cache:
    """A replica's cache of prompt blocks; the end of a prompt is forgotten before its beginning, as engines do."""

    tokens: int
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def known(self, ids: Sequence[int]) -> int:
        return next((at for at, block in enumerate(ids) if block not in self.blocks), len(ids))

    def add(self, ids: Sequence[int]) -> None:
        for block in reversed(ids):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) * BLOCK > self.tokens:
            self.blocks.popitem(last=False)


@dataclass
class View:
    """What a choice may look at: the router's own fleet, and, for the one that knows all, the caches."""

    fleet: Fleet
    caches: list[Cache]
    rng: random.Random
    turn: int = 0
    table: OrderedDict[tuple[int, ...], Replica] = field(default_factory=OrderedDict)


Choice = Callable[[Arrival, View, float], Replica]


def ours(arrival: Arrival, view: View, now: float) -> Replica:
    return taken(view.fleet.take(arrival.key, SLOTS, now))


def least_load(_: Arrival, view: View, now: float) -> Replica:
    return taken(view.fleet.take(NO_PREFIX, SLOTS, now))


def taken(replica: Replica | None) -> Replica:
    if replica is None:
        raise RuntimeError("a request found no replica: the modelled pool is too small")
    return replica


def direct(view: View, replica: Replica) -> Replica:
    """Give it a request without asking the fleet."""
    replica.in_flight += 1
    view.fleet.running += 1
    return replica


def round_robin(_: Arrival, view: View, __: float) -> Replica:
    view.turn += 1
    return direct(view, view.fleet.replicas[view.turn % REPLICAS])


def at_random(_: Arrival, view: View, __: float) -> Replica:
    return direct(view, view.rng.choice(view.fleet.replicas))


PLACES, ORDERS = ring([f"bench/replica-{index}" for index in range(REPLICAS)])


def strict(running: int) -> int:
    """The bound without the one to spare."""
    return -(-5 * (running + 1) // (4 * REPLICAS))


def ring_unbounded(arrival: Arrival, view: View, _: float) -> Replica:
    return direct(view, view.fleet.replicas[ORDERS[bisect(PLACES, arrival.key)][0]])


def ring_strict(arrival: Arrival, view: View, _: float) -> Replica:
    most = strict(view.fleet.running)
    order = [view.fleet.replicas[index] for index in ORDERS[bisect(PLACES, arrival.key)]]
    return direct(view, next(replica for replica in order if replica.in_flight < most))


def first_block(arrival: Arrival, view: View, now: float) -> Replica:
    """The key of the first 512 tokens, which all conversations of the trace share."""
    return taken(view.fleet.take(arrival.hash_ids[0] + 1, SLOTS, now))


def known_prefix(arrival: Arrival, view: View, now: float) -> Replica:
    """Each router remembers where it sent the latest prefixes; a new one goes to the least loaded."""
    ids, most = arrival.hash_ids, strict(view.fleet.running) + 1
    prefixes = [ids[:depth] for depth in TABLE_DEPTHS if len(ids) >= depth]
    found = next((view.table[prefix] for prefix in prefixes if prefix in view.table), None)
    if found is None or found.in_flight >= most:
        found = taken(view.fleet.take(NO_PREFIX, SLOTS, now))
    else:
        direct(view, found)
    for prefix in prefixes:
        view.table[prefix] = found
        view.table.move_to_end(prefix)
    while len(view.table) > TABLE_ENTRIES:
        view.table.popitem(last=False)
    return found


def caches_known(arrival: Arrival, view: View, _: float) -> Replica:
    """Sees all caches as they are, and takes the best within the bound."""
    most = strict(view.fleet.running) + 1
    within = [index for index, replica in enumerate(view.fleet.replicas) if replica.in_flight < most]
    best = max(within, key=lambda i: (view.caches[i].known(arrival.hash_ids), -view.fleet.replicas[i].in_flight))
    return direct(view, view.fleet.replicas[best])


@dataclass
class Result:
    """One run. ``in_flight`` is the mean over arrivals of the fullest replica's requests by the average one's."""

    hit_rate: float
    tokens_spread: float
    in_flight_spread: float
    ttft_mean_s: float
    ttft_p99_s: float


class Run:
    """One way of choosing over the whole trace."""

    def __init__(self, choice: Choice, routers: int, faster: int, kv_tokens: int) -> None:
        self.choice = choice
        self.faster = faster
        self.rng = random.Random(1)  # noqa: S311 - the same in each run
        self.caches = [Cache(kv_tokens) for _ in range(REPLICAS)]
        self.views = [View(fleet(), self.caches, self.rng) for _ in range(routers)]
        self.free_at = [0.0] * REPLICAS
        self.in_flight = [0] * REPLICAS
        self.prompt_tokens = [0] * REPLICAS
        self.ending: list[tuple[float, int, View, Replica]] = []
        self.cached = 0
        self.spreads: list[float] = []
        self.ttfts: list[float] = []

    def over(self, trace: Sequence[Arrival]) -> Result:
        for number, arrival in enumerate(trace):
            self.arrive(number, arrival, arrival.timestamp / 1000 / self.faster)
        total = sum(self.prompt_tokens)
        return Result(
            hit_rate=self.cached / total,
            tokens_spread=max(self.prompt_tokens) * REPLICAS / total,
            in_flight_spread=statistics.mean(self.spreads),
            ttft_mean_s=statistics.mean(self.ttfts),
            ttft_p99_s=statistics.quantiles(self.ttfts, n=100)[98],
        )

    def arrive(self, number: int, arrival: Arrival, now: float) -> None:
        while self.ending and self.ending[0][0] <= now:
            _, _, view, replica = heapq.heappop(self.ending)
            view.fleet.release(replica)
            self.in_flight[view.fleet.replicas.index(replica)] -= 1
        view = self.rng.choice(self.views)
        replica = self.choice(arrival, view, now)
        index = view.fleet.replicas.index(replica)
        end = self.serve(index, arrival, now)
        heapq.heappush(self.ending, (end, number, view, replica))
        self.in_flight[index] += 1
        running = sum(self.in_flight)
        if running >= REPLICAS:
            self.spreads.append(max(self.in_flight) * REPLICAS / running)

    def serve(self, index: int, arrival: Arrival, now: float) -> float:
        """When the replica is done with it."""
        cached = min(self.caches[index].known(arrival.hash_ids) * BLOCK, arrival.input_length)
        self.caches[index].add(arrival.hash_ids)
        self.cached += cached
        self.prompt_tokens[index] += arrival.input_length
        first = max(now, self.free_at[index]) + (arrival.input_length - cached) / PREFILL_PER_S
        self.free_at[index] = first
        self.ttfts.append(first - now)
        return first + arrival.output_length * OUTPUT_TOKEN_S


def fleet() -> Fleet:
    made = Fleet()
    made.update(Replica(f"bench/replica-{index}", "bench", Target(path=str(index))) for index in range(REPLICAS))
    return made


def read() -> list[Arrival]:
    """The trace, with the keys of its prompts."""
    with gzip.open(TRACE) as lines:
        trace = [msgspec.json.decode(line, type=Arrival) for line in lines]
    for arrival in trace:
        arrival.key = prefix_key(rendered(arrival.hash_ids))
    return trace


def rendered(ids: Sequence[int]) -> bytes:
    """A chat whose system prompt is the first block and whose user message is the beginning of the others."""
    text = [f"{block:07x} " * (BLOCK_BYTES // 8) for block in ids[:RENDERED_BLOCKS]]
    roles = [{"role": "system", "content": text[0]}, {"role": "user", "content": "".join(text[1:])}]
    return msgspec.json.encode(roles)


def one_cache(trace: Sequence[Arrival], tokens: int) -> float:
    """The hit rate if all replicas were one."""
    cache = Cache(tokens)
    cached = 0
    for arrival in trace:
        cached += min(cache.known(arrival.hash_ids) * BLOCK, arrival.input_length)
        cache.add(arrival.hash_ids)
    return cached / sum(arrival.input_length for arrival in trace)


def nanoseconds(work: Callable[[], object], calls: int) -> float:
    """The best of five, each the mean of so many calls."""

    def once() -> float:
        started = time.perf_counter_ns()
        for _ in range(calls):
            work()
        return (time.perf_counter_ns() - started) / calls

    return min(once() for _ in range(5))


def key_ns(prompt: bytes) -> float:
    return nanoseconds(lambda: prefix_key(prompt), 5_000)


def choosing_ns(replicas: int, key: Key) -> float:
    pool = Fleet()
    pool.update(Replica(f"bench/replica-{index}", "bench", Target(path=str(index))) for index in range(replicas))
    return nanoseconds(lambda: pool.release(taken(pool.take(key, SLOTS, 1.0))), 20_000)


def growth_mb() -> float:
    """What a million requests with 100,000 distinct beginnings leave in memory."""
    pool = fleet()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(CALLS):
        prompt = b'[{"role":"user","content":"%d%b"}]' % (number % DISTINCT, b"x" * 2048)
        pool.release(taken(pool.take(prefix_key(prompt), SLOTS, 1.0)))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def sized(size: int) -> bytes:
    return rendered(range(1, 1 + RENDERED_BLOCKS))[: size - 3].ljust(size - 3, b"x") + b'"}]'


CHOICES: Final[dict[str, Choice]] = {
    "round robin": round_robin,
    "random": at_random,
    "least load": least_load,
    "key of the first block, bound": first_block,
    "conversation key, no bound": ring_unbounded,
    "conversation key, 1.25 without the spare one": ring_strict,
    "conversation key, bound (Fairlead)": ours,
    "longest prefix remembered, else least load": known_prefix,
    "all caches known, bound": caches_known,
}


def table(trace: Sequence[Arrival], routers: int, faster: int, kv_tokens: int) -> dict[str, Result]:
    say(f"\n{routers} router{'s' * (routers > 1)}, arrivals x {faster}, KV cache of {kv_tokens:,} tokens a replica")
    say(f"{'':46}{'hit rate':>9}{'max/mean prompt':>17}{'in flight':>11}{'TTFT mean':>11}{'p99':>8}")
    results = {}
    for name, choice in CHOICES.items():
        got = results[name] = Run(choice, routers, faster, kv_tokens).over(trace)
        spreads = f"{got.tokens_spread:>17.2f}{got.in_flight_spread:>11.2f}"
        say(f"{name:46}{got.hit_rate:>9.1%}{spreads}{got.ttft_mean_s:>10.2f}s{got.ttft_p99_s:>7.2f}s")
    return results


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    trace = read()
    tokens = sum(arrival.input_length for arrival in trace)
    say(
        f"{len(trace):,} requests, {tokens:,} prompt tokens, {REPLICAS} replicas; modelled engine: {PREFILL_PER_S:,.0f}"
    )
    say(f"prompt tokens/s, {OUTPUT_TOKEN_S * 1000:.0f} ms an output token. Hit rate: prompt tokens found in the cache.")
    limits = {"endless": one_cache(trace, 1 << 60), "as large as all": one_cache(trace, REPLICAS * KV_TOKENS)}
    say(f"one cache for all: endless {limits['endless']:.1%}, as large as all together {limits['as large as all']:.1%}")
    runs = {
        f"{routers} routers x{faster} {kv_tokens}": table(trace, routers, faster, kv_tokens)
        for routers, faster, kv_tokens in (
            (1, 1, KV_TOKENS),
            (1, FASTER, KV_TOKENS),
            (MANY_ROUTERS, 1, KV_TOKENS),
            (MANY_ROUTERS, FASTER, KV_TOKENS),
            (1, FASTER, SMALL_KV_TOKENS),
        )
    }
    costs = {f"key_{size}_ns": key_ns(sized(size)) for size in SIZES}
    costs |= {f"take_{n}_ns": choosing_ns(n, 1 << 31) for n in (2, REPLICAS, 64)}
    costs["take_2_without_key_ns"] = choosing_ns(2, NO_PREFIX)
    costs["growth_mb"] = growth_mb()
    say("\n" + "  ".join(f"{name} {value:,.0f}" for name, value in costs.items()))
    say(msgspec.json.encode({"one_cache": limits, "runs": runs, "costs": costs}).decode())


if __name__ == "__main__":
    main()
