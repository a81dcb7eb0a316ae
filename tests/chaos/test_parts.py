"""The parts of the chaos do what a run relies on: the same seed, the same run; and no more trouble than is told."""

import asyncio
import contextlib
import random
import time
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.engines import Receipts
from tests.chaos.faults import ODDS, SKEW_S, Limits, schedule, skew_of
from tests.chaos.processes import own_ports
from tests.chaos.proxy import Odds, Proxy, read_message
from tests.chaos.truth import Limit
from tests.chaos.world import COVERED, Demand, limits


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - choices that can be repeated


SEEDS = st.integers(0, 1 << 32)
CALM = Odds(1e9, 1e-9, 0, 0, 0, 0, 0, 0)
BAD = replace(CALM, good_s=1e-9, bad_s=1e9)
MESSAGE = b'POST /v1/sync HTTP/1.1\r\ncontent-length: 15\r\n\r\n{"session":"s"}'


@given(SEEDS)
@settings(max_examples=30)
def test_the_same_seed_asks_for_the_same_requests(seed: int) -> None:
    one, other = (Demand(chance(seed)) for _ in range(2))
    assert [one.next(n) for n in range(50)] == [other.next(n) for n in range(50)]


@given(SEEDS)
@settings(max_examples=30)
def test_no_receipt_is_larger_than_the_bound_of_its_request(seed: int) -> None:
    demand, receipts = Demand(chance(seed)), Receipts(seed)
    for number in range(50):
        wanted = demand.next(number)
        asked = wanted.asked("r00.1", 0.0)
        receipt, run_s = receipts.begin(wanted.body)
        assert receipt.nano <= asked.bound
        assert receipt.cached <= receipt.prompt <= asked.size
        assert 0 < receipt.output <= asked.cap
        assert run_s >= 0
    assert sorted(receipts.kept) == list(range(50))
    assert not receipts.twice


def test_a_request_that_runs_again_is_noted() -> None:
    wanted, receipts = Demand(chance(1)).next(7), Receipts(1)
    first, _ = receipts.begin(wanted.body)
    again, _ = receipts.begin(wanted.body)
    assert receipts.twice == [7]
    assert (first.prompt, first.output) == (again.prompt, again.output)


@given(SEEDS, st.floats(60, 4_000), st.booleans())
@settings(max_examples=50)
def test_faults_are_the_seeds_and_leave_time_to_heal(seed: int, seconds: float, skew: bool) -> None:
    faults = schedule(chance(seed), seconds, 4.0, 20, skew=skew)
    assert faults == schedule(chance(seed), seconds, 4.0, 20, skew=skew)
    assert all(0 < fault.at < 0.9 * seconds and 0 <= fault.place < 20 for fault in faults)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert skew or not any(fault.kind == "SkewLedger" for fault in faults)
    assert not any(fault.kind == "Move" and fault.at > seconds - 400 for fault in faults)


def test_every_kind_of_fault_happens_in_an_hour() -> None:
    assert {fault.kind for fault in schedule(chance(1), 3_500, 4.0, 50, skew=True)} == set(ODDS)


@given(st.integers(0, 49), st.floats(0, 1, exclude_max=True))
def test_clocks_are_wrong_by_five_minutes_at_most(place: int, amount: float) -> None:
    assert abs(skew_of(place, amount)) <= SKEW_S


def test_limits_before_an_edit_count_until_the_ledger_took_it() -> None:
    base = limits(100.0, 600.0)
    kept = Limits([], base, dict(base))
    kept._note(10.0, 11.0)
    kept.now["hot/hour"] //= 2
    kept._note(20.0, 23.0)
    own = [limit for limit in kept.ended() if limit.budget == "hot/hour"]
    assert own == [
        Limit("hot/hour", 10.0, 23.0, base["hot/hour"]),
        Limit("hot/hour", 20.0, float("inf"), base["hot/hour"] // 2),
    ]
    assert len(kept.ended()) == len(COVERED) + 1


def test_ports_are_all_different() -> None:
    assert len({*own_ports(5), *own_ports(5)}) == 10


# --- the network


class Ledger:
    """Counts what arrives."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(await read_message(reader))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()


async def carried(odds: Odds, *, cut: bool = False) -> tuple[Ledger, Proxy, bytes, list[tuple[float, float]]]:
    """One message through a proxy: who heard it, and what came back."""
    ledger, slow = Ledger(), list[tuple[float, float]]()
    server = await asyncio.start_server(ledger.connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = Proxy((port,), chance(3), odds, lambda begun, ended: slow.append((begun, ended)), cut)
    url = await proxy.listen()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(MESSAGE)
    answer = b""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        answer = await read_message(reader)
    writer.transport.abort()
    proxy.close()
    server.close()
    await asyncio.sleep(0.05)  # until all connections are closed
    return ledger, proxy, answer, slow


async def test_a_calm_network_passes_messages_as_they_are() -> None:
    ledger, proxy, answer, slow = await carried(CALM)
    assert ledger.heard == [MESSAGE]
    assert answer.endswith(b"{}")
    assert (proxy.sessions, proxy.latest, slow) == ({"s"}, "s", [])


async def test_a_repeated_message_arrives_twice_with_the_same_bytes() -> None:
    ledger, _, answer, _ = await carried(replace(BAD, repeated=1))
    assert ledger.heard == [MESSAGE, MESSAGE]
    assert answer.endswith(b"{}")


async def test_an_answer_gets_lost_after_the_ledger_heard_the_message() -> None:
    ledger, _, answer, _ = await carried(replace(BAD, answer_lost=1))
    assert ledger.heard == [MESSAGE]
    assert answer == b""


async def test_nothing_passes_a_parted_network() -> None:
    ledger, proxy, answer, _ = await carried(CALM, cut=True)
    assert (ledger.heard, answer) == ([], b"")
    assert proxy.fates["request lost"] == 1


async def test_the_time_without_an_answer_is_told_from_its_first_message_on() -> None:
    _, proxy, _, slow = await carried(CALM, cut=True)
    assert slow == []
    proxy._unheard -= 5.0
    proxy.heard()
    begun, ended = slow[0]
    assert 5.0 <= ended - begun < 15.0
    assert ended <= time.time()
