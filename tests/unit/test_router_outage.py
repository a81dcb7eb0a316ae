"""What keeps a router from serving is told in its log: once when it begins, each minute, and once when it is over."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router import main, outage
from fairlead_router.answers import unavailable
from fairlead_router.contract import ApiKey, ConfigAnswer, Issuer
from fairlead_router.control import LedgerPeer
from fairlead_router.outage import AGAIN_S, CALM_S, Outages, ledger_words
from fairlead_router.policy import build_index
from fairlead_router.refusals import ledger_unreachable, upstream_error
from fairlead_router.settings import read_settings
from fairlead_router.upstream import Reply
from tests.builders.router import ISSUER, POOL, api_key, configuration, policy, until
from tests.ports import free_ports

TICK_S = 0.5


class Watched:
    """An outage that is there or not, as told, and a clock."""

    def __init__(self) -> None:
        self.outages, self.fault, self.now = Outages(), "", 0.0
        self.outages.watch("ledger_unreachable", lambda _: self.fault)

    def run(self, seconds: float, fault: str, refusals: int = 0) -> None:
        """Be so for some time, with requests refused in the beginning."""
        self.fault = fault
        for _ in range(refusals):
            self.outages.refused(unavailable("ledger_unreachable", "The ledger does not answer."))
        end = self.now + seconds
        while self.now < end:
            self.outages.tick(self.now)
            self.now += TICK_S


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "fairlead_router.outage")
    return caplog


def lines(told: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Event, words, count and length of each line."""
    return [
        {name: vars(record)[name] for name in ("event", "code", "refused", "seconds")} | {"words": record.getMessage()}
        for record in told.records
        if "event" in vars(record)
    ]


def test_an_outage_is_told_when_it_begins_each_minute_and_when_it_is_over(told: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.run(30, "")
    watched.run(61, "gone", refusals=3)
    watched.run(59, "gone, still", refusals=4)
    watched.run(60, "")
    assert [(line["event"], line["refused"], line["seconds"], line["words"]) for line in lines(told)] == [
        ("OutageBegan", 3, 0, "gone"),
        ("OutageLasts", 3, 60, "gone"),
        ("OutageOver", 7, 120, "Over: gone, still"),
    ]
    assert [record.levelname for record in told.records] == ["WARNING", "WARNING", "INFO"]
    assert {line["code"] for line in lines(told)} == {"ledger_unreachable"}


def test_refusals_without_an_outage_are_not_counted_to_the_next_one(told: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.run(5, "", refusals=9)
    watched.outages.refused(unavailable("something_else", "No."))
    watched.run(1, "gone", refusals=1)
    assert [line["refused"] for line in lines(told)] == [1]


@given(st.lists(st.booleans(), max_size=400))
def test_an_outage_that_comes_and_goes_does_not_fill_the_log(seen: list[bool]) -> None:
    watched, events = Watched(), list[str]()
    with patch.object(outage.log, "log", lambda *_, extra: events.append(extra["event"])):
        for here in seen:
            watched.run(TICK_S, "gone" if here else "")
    ends = [event for event in events if event != "OutageLasts"]
    assert ends == ["OutageBegan", "OutageOver"] * (len(ends) // 2) + ["OutageBegan"] * (len(ends) % 2)
    assert bool(events) == any(seen)
    duration = len(seen) * TICK_S
    assert len(events) <= 1 + 2 * duration / CALM_S + duration / AGAIN_S


# --- a whole router ---


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for name in ("control", "ledger", "router"):
        (folder / name).write_text(f"secret-{name}")
    return folder


class Run:
    """A router's parts in this process, without its ports; ``work`` runs beside the ticks."""

    def __init__(self, tmp_path: Path, tokens: Path, *arguments: str) -> None:
        environment = {"FAIRLEAD_TOKENS_DIR": str(tokens), "FAIRLEAD_STATE_DIR": str(tmp_path / "state")}
        self.parts = main.build(read_settings(arguments, environment))
        main._watch(self.parts)
        self.parts.router.hop_token = b"x"

    def close(self) -> None:
        journal = self.parts.session.journal
        assert journal is not None
        journal.close()

    def configure(self, **changes: Any) -> None:
        self.parts.router.configure(build_index(configuration(**changes)))

    def codes(self, told: pytest.LogCaptureFixture) -> set[str]:
        """What is told of by now."""
        self.parts.router.tick()
        return {line["code"] for line in lines(told)}

    async def words(self, told: pytest.LogCaptureFixture, code: str, *work: Coroutine[Any, Any, None]) -> str:
        """What is told first about a code."""
        tasks = [asyncio.create_task(each) for each in work]
        await until(lambda: code in self.codes(told), f"word of {code}")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return str(next(line["words"] for line in lines(told) if line["code"] == code))


@pytest.fixture
async def start(tmp_path: Path, tokens: Path) -> AsyncIterator[Callable[..., Run]]:
    made: list[Run] = []

    def begin(*arguments: str) -> Run:
        made.append(Run(tmp_path, tokens, *arguments))
        return made[-1]

    yield begin
    for run in made:
        run.close()


Start = Callable[..., Run]


async def test_a_ledger_that_does_not_answer_is_named_without_the_secrets_of_its_url(
    start: Start, told: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    run = start("--ledger", f"http://me:hunter2@127.0.0.1:{port}")
    words = await run.words(told, "ledger_unreachable", run.parts.session.run())
    assert words.startswith(f"The ledger at 127.0.0.1:{port} does not answer (127.0.0.1:{port} refused the connection")
    assert "Check that the ledger runs" in words
    assert "hunter2" not in told.text
    assert "secret" not in told.text


async def test_a_ledger_that_refuses_this_router_is_told_of_with_its_status(
    start: Start, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: object, body: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        del body
        return 401, b'{"reason":"no such audience"}'

    monkeypatch.setattr(LedgerPeer, "sync", refuse)
    run = start("--ledger", "http://127.0.0.1:1")
    words = await run.words(told, "ledger_unreachable", run.parts.session.run())
    assert words.startswith("The ledger at 127.0.0.1:1 answers 401 no such audience.")


def test_a_ledger_that_answers_is_an_outage_only_while_requests_are_refused() -> None:
    assert ledger_words("ledger:80", "", "", reachable=True) == ""
    assert ledger_words("ledger:80", "does not answer (not in time)", "", reachable=True) == ""
    words = ledger_words("ledger:80", "", "The ledger does not answer.", reachable=True)
    assert words.startswith("The ledger at ledger:80 answers too late")


async def test_a_router_without_a_ledger_tells_of_it_when_a_request_needed_one(
    start: Start, told: pytest.LogCaptureFixture
) -> None:
    run = start("--ledger", "off")
    run.configure()
    assert run.codes(told) == set()
    run.parts.router.outages.refused(ledger_unreachable("support/support"))
    assert run.codes(told) == {"ledger_unreachable"}
    assert "Set FAIRLEAD_LEDGER_URL" in told.text


async def test_a_ledger_that_keeps_silent_is_said_to_have_done_so_for_so_long(
    start: Start, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead_router.control.SYNC_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        run = start("--ledger", f"http://127.0.0.1:{port}")
        words = await run.words(told, "ledger_unreachable", run.parts.session.run())
        await asyncio.sleep(0.05)  # the last connection closes
    assert f"(127.0.0.1:{port} did not answer within 0.05s)" in words


async def test_journals_that_the_ledger_has_not_heard_of_are_one_line_and_not_one_a_round(
    start: Start, told: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    before = start("--ledger", f"http://127.0.0.1:{port}")
    before.close()  # as a killed process leaves its journal
    run = start("--ledger", f"http://127.0.0.1:{port}")
    successor = run.parts.successor
    assert successor is not None
    await successor.find()
    for _ in range(3):
        await successor.round()
        run.codes(told)
    (line,) = lines(told)
    assert line["code"] == "journal_untold"
    assert f"The ledger at 127.0.0.1:{port} has not heard what 1 earlier sessions" in line["words"]
    assert f"127.0.0.1:{port} refused the connection" in line["words"]
    assert str(tmp_path) not in told.text
    successor.release()


async def test_a_journal_without_room_is_named_with_what_the_system_said(
    start: Start, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    run = start("--ledger", "off")
    words = await run.words(told, "journal_full")
    assert "/state/journal has no room ([Errno 28] No space left on device)" in words
    assert "Make room on its volume" in words
    monkeypatch.undo()
    journal = run.parts.session.journal
    assert journal is not None
    journal.renew()
    assert (journal.full, journal.fault) == (False, "")


async def test_a_journal_that_the_disk_does_not_take_is_told_of_once(
    start: Start, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fdatasync", broken)
    run = start("--ledger", "off")
    journal = run.parts.session.journal
    assert journal is not None
    for _ in range(3):
        journal.flush()
        run.codes(told)
    (line,) = lines(told)
    assert "cannot be written to its disk ([Errno 5] Input/output error). Nothing is refused yet" in line["words"]
    monkeypatch.undo()
    journal.flush()
    assert journal.fault == ""


async def test_an_operator_that_does_not_answer_is_told_of_once_with_what_follows(
    start: Start, told: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    run = start("--operator", f"http://127.0.0.1:{port}")
    operator = run.parts.operator
    assert operator is not None

    async def poll(path: str) -> Reply:
        return await operator.call("GET", path, b"", 1.0)

    words = await run.words(told, "not_configured", run.parts.configuration.follow(poll, None))
    assert words.startswith(f"No new configuration from the operator at 127.0.0.1:{port}: 127.0.0.1:{port} refused")
    assert "There is none yet, so every request is refused." in words
    assert len(lines(told)) == 1


async def test_a_refused_configuration_is_told_of_and_the_next_poll_does_not_wait(
    start: Start, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead_router.config._RETRY_S", 0.01)
    run, waits = start("--operator", "http://127.0.0.1:1"), list[str]()

    async def poll(path: str) -> Reply:
        waits.append(path.rpartition("wait=")[2])
        await asyncio.sleep(0)
        config = configuration() if len(waits) == 1 else configuration(policies=(policy(routes=()),))
        version = str(len(waits))
        return Reply(200, msgspec.json.encode(ConfigAnswer(version=version, endpoints_version="1", config=config)))

    async def follow() -> None:
        await run.parts.configuration.follow(poll, None)

    words = await run.words(told, "not_configured", follow())
    assert "RoutingPolicy ai-platform/chat has no routes. The one in use stays." in words
    assert waits[:2] == ["30", "30"]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(follow(), 0.1)
    assert waits[-1] == "0"


@pytest.mark.parametrize(
    ("issuers", "keys", "words"),
    [
        ((), (), "No caller can be verified"),
        ((Issuer(issuer=ISSUER, jwks='{"keys": []}'),), (), "No caller can be verified"),
        ((Issuer(issuer=ISSUER, jwks="nothing"),), (api_key("sk-1"),), f"Callers of {ISSUER} are refused with 401"),
        ((), (api_key("sk-1"),), ""),
    ],
)
async def test_issuers_without_keys_are_told_of(
    start: Start, told: pytest.LogCaptureFixture, issuers: tuple[Issuer, ...], keys: tuple[ApiKey, ...], words: str
) -> None:
    run = start("--ledger", "off")
    assert run.codes(told) == set()
    run.configure(issuers=issuers, keys=keys)
    assert run.codes(told) == ({"invalid_api_key"} if words else set())
    assert words in told.text


async def test_a_missing_token_for_other_routers_is_told_of_with_its_path(
    start: Start, told: pytest.LogCaptureFixture, tokens: Path
) -> None:
    run = start("--operator", "http://127.0.0.1:1")
    assert run.codes(told) == set()
    run.parts.router.hop_token = b""
    assert run.codes(told) == {"router_token"}
    assert f"There is no token for other routers in {tokens}/router" in told.text


async def test_requests_that_no_replica_answers_are_counted_with_the_last_ones_words(
    start: Start, told: pytest.LogCaptureFixture
) -> None:
    run = start("--ledger", "off")
    for number in range(3):
        run.parts.router.outages.refused(upstream_error(POOL, number, "refused the connection"))
    assert run.codes(told) == {"upstream_error"}
    (line,) = lines(told)
    assert line["refused"] == 3
    assert "(2 tried; the last one refused the connection)" in line["words"]
