"""A router that is killed and the one after it, on the real ledger: what was charged is told once, the rest returns."""

import asyncio
import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from fairlead_operator.ledger.escrow import Refusal
from fairlead_router import successor as successors
from fairlead_router.archive import KEEP_S
from fairlead_router.budget import Claim
from fairlead_router.contract import SyncRefusal, SyncRequest
from fairlead_router.records import HEAD, MAGIC, MAX_LINES, SNAPSHOT, Estate, Totals, last_words
from fairlead_router.successor import Successor
from tests.builders import ledger as ledgers
from tests.builders import router as routers
from tests.builders.ledger import SqliteLedger
from tests.builders.router import BOOT, Process


@dataclass
class Line:
    """A pod's way to the ledger. ``lose`` names what happens to the next messages."""

    ledger: SqliteLedger
    pod: str = "pod-1"
    lose: list[str] = field(default_factory=list)
    sent: list[SyncRequest] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        step = self.lose.pop(0) if self.lose else ""
        if step == "request":
            raise ConnectionResetError
        message = msgspec.json.decode(body, type=SyncRequest)
        self.sent.append(message)
        answer = self.ledger.sync(ledgers.caller(self.pod), message)
        if step == "answer":
            raise TimeoutError
        if isinstance(answer, Refusal):
            self.statuses.append(answer.status)
            refusal = SyncRefusal(expected=answer.expected, reason=answer.reason, retry_after_ms=answer.retry_after_ms)
            return answer.status, msgspec.json.encode(refusal)
        self.statuses.append(200)
        return 200, msgspec.json.encode(answer)


@pytest.fixture
def ledger() -> Iterator[SqliteLedger]:
    found = SqliteLedger()
    found.put(1, ledgers.budget(limit=10_000))
    yield found
    assert found.upkeep() == 0
    found.close()


def claim(process: Process, amount: int) -> list[Claim]:
    config = routers.budget("team-a", "monthly", per="Total", namespaces=("team-a",))
    return [Claim(process.wallet.purse(config, "", ""), amount)]


def books(ledger: SqliteLedger) -> tuple[int, int, int]:
    """Held, charged and unreconciled of the only account."""
    (book,) = ledger.books()
    return book.account.held, book.account.charged, book.account.unreconciled


def left(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def successor(folder: Path, line: Line, boot: str = BOOT) -> Successor:
    return Successor(folder, line, boot, time.time)


async def succeed(folder: Path, line: Line, boot: str = BOOT, rounds: int = 1) -> Successor:
    """A successor that finds what is there and speaks so many times."""
    found = successor(folder, line, boot)
    await found.find()
    for _ in range(rounds):
        await found.round()
    return found


async def killed(folder: Path, line: Line, *, told: bool = True) -> Process:
    """One request settled at 300, one under way with a bound of 500, and 200 more settled that nobody was told of."""
    process = Process(folder, line)
    assert await process.talk()
    first = await process.fetch(claim(process, 1_000))
    process.settle(first, 300)
    if told:
        assert await process.talk()
    process.reserve(claim(process, 500))
    second = process.reserve(claim(process, 200))
    process.settle(second, 200)
    process.kill()
    return process


async def test_what_a_killed_router_charged_is_told_its_bounds_stay_and_the_rest_returns(
    ledger: SqliteLedger, tmp_path: Path
) -> None:
    line = Line(ledger)
    await killed(tmp_path, line)
    found = await succeed(tmp_path, line)
    assert found.unfinished() == 0
    assert books(ledger) == (1_000, 500, 500)
    assert ledger.usage() == 500
    found.release()


async def test_a_machine_that_was_rebooted_gives_nothing_back(ledger: SqliteLedger, tmp_path: Path) -> None:
    line = Line(ledger)
    await killed(tmp_path, line)
    held, _, _ = books(ledger)
    (await succeed(tmp_path, line, boot="boot-2")).release()
    assert books(ledger) == (held, 500, held - 500)
    assert ledger.usage() == 500


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_message_that_nobody_answered_is_told_again_and_counts_once(
    ledger: SqliteLedger, tmp_path: Path, lost: str
) -> None:
    line = Line(ledger)
    process = Process(tmp_path, line)
    assert await process.talk()
    process.settle(await process.fetch(claim(process, 1_000)), 300)
    line.lose.append(lost)
    assert not await process.talk()
    process.settle(process.reserve(claim(process, 100)), 100)
    process.kill()
    (await succeed(tmp_path, line)).release()
    assert books(ledger) == (400, 400, 0)
    assert ledger.usage() == 400


async def test_a_successor_that_is_killed_is_succeeded(ledger: SqliteLedger, tmp_path: Path) -> None:
    line = Line(ledger)
    await killed(tmp_path, line)
    for lost in ("request", "answer", "request"):
        line.lose.append(lost)
        found = await succeed(tmp_path, line)
        assert found.unfinished() == 1
        found.release()
    (await succeed(tmp_path, line)).release()
    assert books(ledger) == (1_000, 500, 500)
    assert ledger.usage() == 500


async def test_usage_of_a_router_that_was_killed_before_its_first_message_is_told(
    ledger: SqliteLedger, tmp_path: Path
) -> None:
    line = Line(ledger)
    process = Process(tmp_path, line)
    process.settle(None, 70)
    process.kill()
    found = await succeed(tmp_path, line)
    assert found.unfinished() == 0
    assert ledger.usage() == 70
    found.release()


async def test_a_volume_that_came_to_another_pod_waits_until_the_session_is_silent(
    ledger: SqliteLedger, tmp_path: Path
) -> None:
    line = Line(ledger)
    await killed(tmp_path, line)
    other = Line(ledger, pod="pod-2")
    found = await succeed(tmp_path, other)
    assert other.statuses == [425]
    assert found.unfinished() == 1
    ledger.now += ledgers.TTL_MS * 2
    await found.round()
    assert found.unfinished() == 0
    assert books(ledger) == (1_000, 500, 500)
    found.release()


async def test_a_session_that_said_goodbye_leaves_nothing_to_tell(ledger: SqliteLedger, tmp_path: Path) -> None:
    line = Line(ledger)
    process = Process(tmp_path, line)
    assert await process.talk()
    process.settle(await process.fetch(claim(process, 1_000)), 300)
    assert await process.session.close(5)
    process.kill()
    before = books(ledger)
    found = await succeed(tmp_path, line)
    assert (found.unfinished(), line.statuses[-1]) == (0, 410)
    assert before == books(ledger) == (300, 300, 0)
    found.release()


async def test_a_goodbye_leaves_the_bounds_of_cut_requests_counted(ledger: SqliteLedger, tmp_path: Path) -> None:
    line = Line(ledger)
    process = Process(tmp_path, line)
    assert await process.talk()
    await process.fetch(claim(process, 1_000))
    assert await process.session.close(5)
    assert books(ledger) == (1_000, 0, 1_000)
    process.kill()


async def test_a_journal_whose_process_lives_is_left_alone(ledger: SqliteLedger, tmp_path: Path) -> None:
    line = Line(ledger)
    process = Process(tmp_path, line)
    assert await process.talk()
    found = await succeed(tmp_path, line)
    assert (found.unfinished(), len(line.sent)) == (0, 1)
    found.release()
    process.kill()


async def test_a_ledger_restored_from_an_older_copy_is_told_closed_sessions_again(
    ledger: SqliteLedger, tmp_path: Path
) -> None:
    line = Line(ledger)
    process = Process(tmp_path, line)
    assert await process.talk()
    process.settle(await process.fetch(claim(process, 1_000)), 300)
    older = SqliteLedger()
    older.engine.dispose()
    with (
        contextlib.closing(sqlite3.connect(Path(ledger.folder.name) / "ledger.db")) as source,
        contextlib.closing(sqlite3.connect(Path(older.folder.name) / "ledger.db")) as copy,
    ):
        source.backup(copy)
    process.settle(process.reserve(claim(process, 100)), 100)
    process.kill()
    found = await succeed(tmp_path, line)
    assert books(ledger) == (400, 400, 0)
    line.ledger = older
    found.restored()
    await found.round()
    assert books(older) == (400, 400, 0)
    assert older.usage() == 400
    found.release()
    older.close()


async def test_what_was_told_is_forgotten_after_an_hour(
    ledger: SqliteLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(ledger)
    await killed(tmp_path, line)
    found = await succeed(tmp_path, line)
    assert left(tmp_path)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + KEEP_S + 1)
    await found.round()
    assert not left(tmp_path)


async def test_a_folder_in_which_nothing_began_is_removed(ledger: SqliteLedger, tmp_path: Path) -> None:
    (tmp_path / "s9").mkdir()
    (tmp_path / "s9" / "lock").touch()
    (tmp_path / "s9" / "log-000001").write_bytes(bytes(4096))
    line = Line(ledger)
    await succeed(tmp_path, line)
    assert not line.sent
    assert not left(tmp_path)


async def test_a_session_that_the_ledger_will_not_hear_of_is_forgotten(ledger: SqliteLedger, tmp_path: Path) -> None:
    line = Line(ledger)
    await killed(tmp_path, line)
    line.ledger = SqliteLedger()  # an empty one: it does not know the session, and the first messages
    line.ledger.now = ledger.now
    (tmp_path / "s1" / "sealed-00000000000000000001").unlink()  # ... are not kept
    found = await succeed(tmp_path, line)
    assert (found.unfinished(), left(tmp_path)) == (0, [])
    line.ledger.close()


def test_last_words_that_do_not_fit_one_message_come_in_several_and_the_last_one_closes() -> None:
    estate = Estate("s", "b", seq=7)
    estate.holdings = {key: Totals(charged=key) for key in range(2, 2 * MAX_LINES + 3)}
    messages = last_words(estate, "b", 0)
    assert [(message.seq, len(message.holdings)) for message in messages] == [(8, 4_000), (9, 4_000), (10, 1)]
    assert [message.close is not None for message in messages] == [False, False, True]


async def test_a_journal_that_cannot_be_read_is_left_and_the_others_are_told(
    ledger: SqliteLedger, tmp_path: Path
) -> None:
    line = Line(ledger)
    await killed(tmp_path, line)
    (tmp_path / "s0").mkdir()
    (tmp_path / "s0" / "lock").touch()
    payload = bytes((SNAPSHOT,)) + b"not msgpack"
    (tmp_path / "s0" / "log-000001").write_bytes(
        MAGIC + HEAD.pack(zlib.crc32(payload, len(payload)), len(payload)) + payload
    )
    found = await succeed(tmp_path, line)
    assert found.unfinished() == 0
    assert ledger.usage() == 500
    assert (tmp_path / "s0").exists()
    found.release()


async def test_a_ledger_that_rewinds_for_ever_is_left_alone(ledger: SqliteLedger, tmp_path: Path) -> None:
    await killed(tmp_path, Line(ledger))

    class Confused:
        count = 0

        async def sync(self, body: bytes) -> tuple[int, bytes]:
            del body
            self.count += 1
            return 409, b'{"expected":%d}' % (1 + self.count % 2)

    confused = Confused()
    found = Successor(tmp_path, confused, BOOT, time.time)
    await found.find()
    await found.round()
    assert (found.unfinished(), confused.count) == (0, 4)


async def test_a_successor_runs_beside_the_router_until_it_is_told_to_stop(
    ledger: SqliteLedger, tmp_path: Path
) -> None:
    line = Line(ledger)
    await killed(tmp_path, line)
    found, before = successor(tmp_path, line), len(line.statuses)
    task = asyncio.create_task(found.run())
    await routers.until(lambda: len(line.statuses) > before and not found.unfinished(), "the last word")
    count = len(line.sent)
    found.restored()
    await routers.until(lambda: len(line.sent) > count, "the last word again")
    assert line.statuses[-1] == 410
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert books(ledger) == (1_000, 500, 500)


async def test_a_folder_that_cannot_be_looked_at_does_not_end_the_router(
    ledger: SqliteLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await killed(tmp_path, Line(ledger))
    (tmp_path / ".s2").mkdir()
    stat = Path.stat

    def gone(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.name == ".s2":  # it got its name meanwhile
            raise FileNotFoundError(path)
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", gone)
    found = await succeed(tmp_path, Line(ledger))
    assert books(ledger) == (1_000, 500, 500)
    found.release()
    monkeypatch.undo()

    def closed(_path: Path) -> Iterator[Path]:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", closed)
    assert (await succeed(tmp_path, Line(ledger))).unfinished() == 0


async def test_a_file_that_cannot_be_removed_does_not_end_the_router(
    ledger: SqliteLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await killed(tmp_path, Line(ledger))
    monkeypatch.setattr(successors, "KEEP_BYTES", 0)

    def read_only(_path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(missing_ok)

    monkeypatch.setattr(Path, "unlink", read_only)
    found = await succeed(tmp_path, Line(ledger))
    assert books(ledger) == (1_000, 500, 500)
    found.release()
