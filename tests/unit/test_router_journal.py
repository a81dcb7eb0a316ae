"""The journal: what any part of it adds up to, what a killed process leaves, and what happens without room."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_router import archive
from fairlead_router.archive import Archive, make_folder, take_lock
from fairlead_router.budget import CLASS, Claim, Reservation
from fairlead_router.contract import Holding, SyncRequest
from fairlead_router.control import NoLedger
from fairlead_router.journal import Segment
from fairlead_router.local_lease import LocalLease
from fairlead_router.records import HEAD, MAGIC, SEAL, SEAL_FIELDS, SNAPSHOT, Estate, Snapshot, fold, key_of
from tests.builders import router as routers
from tests.builders.router import Process

HOUR = 3_600_000


@dataclass(frozen=True)
class Truth:
    """What had happened when so many bytes of the segment were written."""

    at: int
    charged: int
    open: int
    used: int
    """Of what was used, what no message told yet."""


@dataclass
class World:
    """A process under two budgets, with what really happened."""

    folder: Path
    process: Process
    claims: list[list[Claim]] = field(default_factory=list)
    running: list[Reservation] = field(default_factory=list)
    charged: int = 0
    used: int = 0
    told: int = 0
    truths: list[Truth] = field(default_factory=list)
    path: Path | None = None

    def purses(self, amount: int) -> list[Claim]:
        configs = [routers.budget("team-a", name, per="Total", namespaces=("team-a",)) for name in ("one", "two")]
        return [Claim(self.process.wallet.purse(config, "", ""), amount) for config in configs]

    def reserve(self, amount: int) -> None:
        self.running.append(self.process.reserve(self.purses(amount)))

    def extend(self, index: int, more: int) -> None:
        if self.running:
            reservation = self.running[index % len(self.running)]
            amount = reservation.pieces[0].amount + more
            assert self.process.session.extend(reservation, self.purses(amount)) is None

    def settle(self, index: int, percent: int) -> None:
        if self.running:
            reservation = self.running.pop(index % len(self.running))
            charge = reservation.pieces[0].amount * percent // 100
            self.charged += charge
            self.used += charge
            self.process.settle(reservation, charge, charge)

    def free(self, cost: int) -> None:
        """A request without a budget."""
        self.used += cost
        self.process.settle(None, cost)

    async def talk(self) -> None:
        self.told = self.used
        assert await self.process.talk()

    def note(self) -> None:
        """Remember what is true now."""
        segment = self.process.journal._segment
        assert segment is not None
        if segment.path != self.path:
            self.path, self.truths = segment.path, []
        bounds = sum(reservation.pieces[0].amount for reservation in self.running)
        self.truths.append(Truth(self.process.journal._at, self.charged, bounds, self.used - self.told))


async def world(folder: Path, segment: int = 1 << 16) -> World:
    """A process that holds plenty of both budgets."""
    ledger = LocalLease({"team-a/one": 10**9, "team-a/two": 10**9}, lambda: int(time.time() * 1000))
    found = World(folder, Process(folder, ledger, segment=segment))
    assert await found.process.talk()
    reservation = await found.process.fetch(found.purses(100_000))
    found.process.session.settle(reservation, [0, 0])
    found.note()
    return found


def folded(data: bytes) -> Estate:
    estate = fold(data)
    assert estate is not None
    return estate


def sums(estate: Estate, name: int = 1) -> tuple[int, int, int]:
    """Charged, open, and usage that was not told, of one account."""
    key = key_of(name, CLASS)
    held = estate.holdings.get(key)
    return (
        held.charged if held is not None else 0,
        estate.unknown().get(key, 0),
        sum(counts.nano_usd for counts in estate.usage.values()),
    )


steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(1, 500), st.just(0)),
        st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 100)),
        st.tuples(st.just("extend"), st.integers(0, 9), st.integers(0, 300)),
        st.tuples(st.just("free"), st.integers(0, 500), st.just(0)),
        st.tuples(st.just("talk"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


async def run(found: World, script: list[tuple[str, int, int]]) -> None:
    for name, first, second in script:
        if name == "talk":
            await found.talk()
        elif name in {"reserve", "free"}:
            getattr(found, name)(first)
        else:
            getattr(found, name)(first, second)
        found.note()


@settings(max_examples=40, deadline=None)
@given(script=steps, cuts=st.lists(st.floats(0, 1), min_size=1, max_size=8), small=st.booleans())
def test_any_part_of_a_journal_never_adds_up_to_less_than_what_was_charged(
    script: list[tuple[str, int, int]], cuts: list[float], small: bool
) -> None:
    async def scenario() -> None:
        with tempfile.TemporaryDirectory() as folder:
            # A small segment turns within the script, and the next one begins with a snapshot.
            found = await world(Path(folder), 6_000 if small else 1 << 16)
            await run(found, script)
            assert found.path is not None
            whole = found.path.read_bytes()
            found.process.kill()
            last = found.truths[-1]
            assert sums(folded(whole)) == sums(folded(whole), 2) == (last.charged, last.open, last.used)
            first = found.truths[0].at
            for cut in cuts:
                end = first + int(cut * (last.at - first))
                check(found.truths, folded(whole[:end] + bytes(len(whole) - end)), end)

    asyncio.run(scenario())


def check(truths: list[Truth], estate: Estate, end: int) -> None:
    """What was cut off in the midst of a record counts as before it: a torn SETTLE is an open bound."""
    before = max((truth for truth in truths if truth.at <= end), key=lambda truth: truth.at)
    writing = min((truth for truth in truths if truth.at > end), key=lambda truth: truth.at, default=before)
    charged, bounds, _ = sums(estate)
    assert charged + bounds >= before.charged
    if writing.charged > before.charged:
        assert charged + bounds >= writing.charged
    assert charged >= before.charged


@settings(max_examples=60, deadline=None)
@given(script=steps, at=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_ends_the_journal_there(script: list[tuple[str, int, int]], at: float, bit: int) -> None:
    async def scenario() -> None:
        with tempfile.TemporaryDirectory() as folder:
            found = await world(Path(folder))
            await run(found, script)
            assert found.path is not None
            whole = found.path.read_bytes()
            found.process.kill()
            first = found.truths[0].at
            place = first + int(at * (found.truths[-1].at - first - 1)) if found.truths[-1].at > first else first
            torn = bytearray(whole)
            torn[place] ^= 1 << bit
            estate = folded(bytes(torn))
            assert estate.end <= place
            assert estate.torn or place >= found.truths[-1].at

    asyncio.run(scenario())


_CHILD = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.unit.test_router_journal import world

async def main():
    found = await world(Path(sys.argv[1]), int(sys.argv[2]))
    step = 0
    while True:
        found.reserve(100 + step % 7)
        os.write(1, b"r%d\\n" % found.running[-1].pieces[0].amount)
        if step % 3:
            before = found.charged
            found.settle(step, step % 101)
            os.write(1, b"s%d\\n" % (found.charged - before))
        step += 1
        if step % 50 == 0:
            await found.talk()

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_is_killed_loses_no_record(seed: int, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent.parent
    size = 20_000 if seed % 2 else 1 << 20  # a small one turns all the time
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD.format(root=str(root)), str(tmp_path), str(size)],
        stdout=subprocess.PIPE,
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}/router-sidecar:{root}/operator"},
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range((50, 311, 1_207, 1_999)[seed])]
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.readlines()
    child.stdout.close()
    child.wait()
    facts = [(line[:1], int(line[1:])) for line in lines if line.endswith(b"\n")]
    charged = sum(amount for kind, amount in facts if kind == b"s")
    logs = sorted((tmp_path / "s1").glob("log-*"), reverse=True)
    estate = next(estate for path in logs if (estate := fold(path.read_bytes())) is not None)
    # The process tells each fact after it was recorded; one more may be in the journal.
    assert charged <= sums(estate)[0] <= charged + 106
    settled = sum(kind == b"s" for kind, _ in facts)
    reserved = sum(kind == b"r" for kind, _ in facts)
    assert abs(len(estate.open) - (reserved - settled)) <= 1
    assert take_lock(tmp_path / "s1") is not None


async def test_a_full_segment_gives_way_to_the_next_and_nothing_is_told_twice(tmp_path: Path) -> None:
    found = await world(tmp_path, 4_096)
    for _ in range(200):
        found.reserve(10)
        found.settle(0, 100)
        found.note()
    assert found.path is not None
    assert found.path.name > "log-000003"
    assert len(list((tmp_path / "s1").glob("log-*"))) == 1
    assert sums(folded(found.path.read_bytes())) == (2_000, 0, 2_000)
    found.process.kill()


async def test_without_room_enforced_budgets_wait_for_it_and_others_pass(tmp_path: Path) -> None:
    found = await world(tmp_path, 4_096)
    session, journal = found.process.session, found.process.journal
    found.reserve(10)
    _no_room(tmp_path / "s1")
    outcome = None
    for _ in range(200):
        outcome = session.reserve(found.purses(10), time.monotonic())
        if outcome is None:
            break
        assert isinstance(outcome, Reservation)
        session.settle(outcome, [5, 5])
    assert outcome is None
    assert journal.full
    audit = routers.budget("team-a", "watched", per="Total", namespaces=("team-a",), enforcement="Audit")
    passed = session.reserve([Claim(found.process.wallet.purse(audit, "", ""), 10)], time.monotonic())
    assert isinstance(passed, Reservation)
    assert session.extend(found.running[0], found.purses(20)) is not None
    journal.flush()
    assert journal.full
    for path in (tmp_path / "s1").glob("log-*"):
        if path.is_dir():
            path.rmdir()
    journal.flush()  # as the session does each second
    journal.renew()
    assert not journal.full
    assert isinstance(session.reserve(found.purses(10), time.monotonic()), Reservation)
    found.process.kill()


async def test_a_raise_for_which_there_is_no_room_does_not_happen(tmp_path: Path) -> None:
    found = await world(tmp_path, 4_096)
    session, journal = found.process.session, found.process.journal
    found.reserve(10)
    _no_room(tmp_path / "s1")
    held = [piece.holding for piece in found.running[0].pieces]
    raised = 10
    while session.extend(found.running[0], found.purses(raised + 1)) is None:
        raised += 1
        assert not journal.full
    assert journal.full
    assert [piece.amount for piece in found.running[0].pieces] == [raised, raised]
    assert [holding.reserved for holding in held if holding is not None] == [raised, raised]
    out = sum(holding.granted - holding.returned for holding in held if holding is not None)
    assert sum(holding.out for holding in held if holding is not None) == out
    found.process.kill()


@pytest.mark.skipif("FAIRLEAD_COMPILED" in os.environ, reason="a compiled journal takes no segment but its own")
async def test_a_flush_that_outlasts_its_session_makes_nothing_new(tmp_path: Path) -> None:
    found = await world(tmp_path)
    journal = found.process.journal
    segment = journal._segment
    assert segment is not None

    class Slow:
        def flush(self) -> None:
            journal._segment = segment
            journal.discard()

    journal._segment = cast("Segment", Slow())
    journal.flush()
    assert not _left(tmp_path)


def _left(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def _no_room(folder: Path) -> None:
    """Nothing can be made in the places of the next segments."""
    for number in range(2, 60):
        (folder / f"log-{number:06d}").mkdir()


async def test_a_journal_that_cannot_begin_is_full_and_its_session_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    process = Process(place / "journal", NoLedger())
    assert process.journal.full
    process.settle(None, 5)
    assert [line.nano_usd for line in process.book.take()] == [5]
    process.kill()


def test_a_segment_for_which_there_is_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"File too large|No space"):
        Segment(tmp_path / "log-1", 1 << 60)
    assert not list(tmp_path.iterdir())


def test_what_is_no_journal_adds_up_to_nothing() -> None:
    assert fold(b"") is None
    assert fold(bytes(100)) is None
    assert fold(MAGIC + bytes(100)) is None
    assert fold(MAGIC + HEAD.pack(1, 2**31) + bytes(100)) is None


def record(payload: bytes) -> bytes:
    return HEAD.pack(zlib.crc32(payload, len(payload)), len(payload)) + payload


def test_a_holding_that_was_forgotten_with_a_message_is_not_told_again() -> None:
    held = [Holding(account=7, granted=100, returned=60, charged=40, final=final) for final in (True, False)]
    held[1] = msgspec.structs.replace(held[1], account=8)
    message = SyncRequest(session="s1", seq=2, holdings=tuple(held))
    begun = Snapshot("s1", "boot", seq=1, holdings=((key_of(7, 1), 100, 0, 0, 0), (key_of(8, 1), 100, 0, 0, 0)))
    data = MAGIC + record(bytes((SNAPSHOT,)) + msgspec.msgpack.encode(begun))
    data += record(SEAL_FIELDS.pack(SEAL, 2) + msgspec.json.encode(message))
    assert list(folded(data).holdings) == [key_of(8, 1)]


# --- the messages


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Archive]:
    found = Archive(tmp_path)
    yield found
    found.close()


def test_messages_are_read_again_from_a_number_on_and_a_torn_one_is_not(kept: Archive, tmp_path: Path) -> None:
    for seq in (1, 2, 3):
        kept.add(seq, b"message %d" % seq)
    assert kept.since(2) == [(2, b"message 2"), (3, b"message 3")]
    assert kept.since(9) == []
    (file,) = tmp_path.iterdir()
    os.truncate(file, file.stat().st_size - 1)
    assert kept.last() == (2, b"message 2")


def test_messages_behind_a_gap_are_not_told(kept: Archive) -> None:
    for seq in (5, 7, 8):
        kept.add(seq, b"message %d" % seq)
    assert kept.since(5) == [(5, b"message 5")]
    assert kept.since(6) == []
    assert kept.since(7) == [(7, b"message 7"), (8, b"message 8")]


def test_a_message_that_was_written_in_part_hides_none_after_it(tmp_path: Path) -> None:
    kept = Archive(tmp_path)
    kept.add(1, b"message 1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (file,) = tmp_path.iterdir()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 5, limits[1]))
    try:
        kept.add(2, b"message 2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    kept.add(3, b"message 3")
    assert kept.since(1) == [(1, b"message 1")]
    assert kept.last() == (3, b"message 3")
    kept.close()


def test_reading_again_opens_no_file_without_a_message_that_is_asked_for(kept: Archive) -> None:
    large = bytes(archive.FILE_BYTES)
    for seq in (1, 2, 3, 4):  # a file each
        kept.add(seq, large)
    assert [path.name[-1] for path, _, _ in kept.files()] == ["1", "2", "3", "4"]
    for path, _, _ in kept.files()[:2]:
        path.unlink()
        os.mkfifo(path)  # whoever opened it would wait for ever
    assert [seq for seq, _ in kept.since(3)] == [3, 4]
    assert kept.last() == (4, large)


def test_the_newest_message_is_found_when_the_newest_file_holds_none(kept: Archive, tmp_path: Path) -> None:
    kept.add(7, b"message 7")
    (tmp_path / f"sealed-{8:020d}").write_bytes(b"torn")
    assert kept.last() == (7, b"message 7")
    assert kept.since(7) == [(7, b"message 7")]


def test_messages_are_kept_for_an_hour_or_64_mib(kept: Archive) -> None:
    large = bytes(archive.FILE_BYTES)
    for seq in range(1, 20):
        kept.add(seq, large)
    kept.prune()
    assert sum(size for _, size, _ in kept.files()) <= archive.KEEP_BYTES
    assert kept.last() == (19, large)
    old = time.time() - archive.KEEP_S - 1
    for path, _, _ in kept.files():
        os.utime(path, (old, old))
    kept.prune()
    assert [path.name[-2:] for path, _, _ in kept.files()] == ["19"]


def test_a_folder_has_its_name_only_once_it_is_locked(tmp_path: Path) -> None:
    lock = make_folder(tmp_path / "s")
    assert take_lock(tmp_path / "s") is None
    os.close(lock)
    again = take_lock(tmp_path / "s")
    assert again is not None
    os.close(again)
    with pytest.raises(OSError, match="not empty"):
        make_folder(tmp_path / "s")


async def test_a_ledger_that_lost_what_memory_no_longer_has_is_told_from_the_journal(tmp_path: Path) -> None:
    found = await world(tmp_path)
    session = found.process.session
    for _ in range(5):
        await found.talk()
    session._kept.clear()
    session._rewind(3)
    again = [msgspec.json.decode(sealed.body, type=SyncRequest) for sealed in session._outstanding]
    assert [message.seq for message in again] == list(range(3, session._seq + 1))
    assert all(message.rewind for message in again)
    found.process.kill()


async def test_usage_that_the_ledger_never_took_is_told_by_the_next_session(tmp_path: Path) -> None:
    found = await world(tmp_path)
    session = found.process.session
    found.free(77)

    class Refuses:
        async def sync(self, body: bytes) -> tuple[int, bytes]:
            del body
            return 422, b'{"reason":"no"}'

    session._transport, before = Refuses(), session._transport
    assert not await found.process.talk()
    session._transport = before
    assert session._id == "s1-1"
    assert not (tmp_path / "s1").exists()
    (log,) = (tmp_path / "s1-1").glob("log-*")
    assert sums(folded(log.read_bytes()))[2] == 77
    session._seal()
    message = msgspec.json.decode(session._outstanding[0].body, type=SyncRequest)
    assert [line.nano_usd for line in message.usage] == [77]
    found.process.kill()
