"""``fairlead simulate budget``: the ledger's own decisions on usage that was, told as people need them."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.cli.ask import UsageError
from fairlead_operator.cli.main import main
from fairlead_operator.cli.replay import Demand, Outcome, replay
from fairlead_operator.cli.simulate import read_budget, simulated, simulation_text
from fairlead_router.contract import BUCKET_MS, BudgetAction, LedgerBudget, TemporaryIncrease, UsageAnswer, UsageRow
from tests.builders.ledger import budget as hourly

DAY = 86_400_000
MIDNIGHT = 1_795_219_200_000
"""2026-11-21T00:00:00Z"""
QUARTERS = 96


def daily(limit: int = 1_000, *actions: tuple[int, str], **changes: Any) -> LedgerBudget:
    told = tuple(BudgetAction(at_percent=percent, action=action) for percent, action in actions)  # type: ignore[arg-type]
    return hourly("daily", period="Day", limit=limit, actions=told, unit=changes.pop("unit", "Requests"), **changes)


def steady(amount: int, quarters: int = QUARTERS, *, start: int = MIDNIGHT, key: str = "") -> list[Demand]:
    return [Demand(key, start + number * BUCKET_MS, amount, amount) for number in range(quarters)]


def only(outcomes: list[Outcome]) -> Outcome:
    assert len(outcomes) == 1
    return outcomes[0]


def test_below_every_share_nothing_happens() -> None:
    outcome = only(replay(daily(1_000, (70, "Alert")), steady(5)))
    assert (outcome.spent, outcome.asked, outcome.refused, outcome.begun) == (480, 480, 0, ())


def test_actions_begin_when_their_share_is_reached_within_the_quarter_hour() -> None:
    outcome = only(replay(daily(1_000, (50, "Alert"), (80, "Downgrade")), steady(10)))
    assert [(begun.action, begun.at) for begun in outcome.begun] == [
        ("Alert", MIDNIGHT + 50 * BUCKET_MS),
        ("Downgrade", MIDNIGHT + 80 * BUCKET_MS),
    ]
    half = only(replay(daily(1_000, (50, "Alert")), steady(8)))
    assert [(begun.action, begun.at) for begun in half.begun] == [("Alert", MIDNIGHT + 62 * BUCKET_MS + BUCKET_MS // 2)]


def test_at_the_limit_the_rest_is_refused() -> None:
    outcome = only(replay(daily(480), steady(10)))
    assert (outcome.spent, outcome.refused, outcome.since) == (480, 480, 480)
    assert [(begun.action, begun.at) for begun in outcome.begun] == [("Reject", MIDNIGHT + 48 * BUCKET_MS)]


def test_pace_spreads_what_is_left_and_is_never_refused_at_the_limit() -> None:
    outcome = only(replay(daily(480, (50, "Pace")), steady(10)))
    assert [begun.action for begun in outcome.begun][:1] == ["Pace"]
    assert outcome.begun[0].at == MIDNIGHT + 24 * BUCKET_MS
    assert outcome.pace_per_hour == 240 * 4 // 72
    assert 470 <= outcome.spent <= 480
    assert outcome.refused >= 960 - 480


def test_every_window_begins_anew_in_the_budgets_time_zone() -> None:
    outcomes = replay(daily(300, time_zone="Europe/Berlin"), steady(10))
    assert [(outcome.window.label, outcome.spent, outcome.refused) for outcome in outcomes] == [
        ("2026-11-21", 300, 920 - 300),
        ("2026-11-22", 40, 0),
    ]


def test_a_temporary_increase_counts_until_it_ends() -> None:
    increase = TemporaryIncrease(amount=200, until=MIDNIGHT + 40 * BUCKET_MS)
    outcome = only(replay(daily(100, temporary_increase=increase), steady(10)))
    assert outcome.spent == 300


def test_keys_are_apart_and_the_fullest_comes_first() -> None:
    demands = [*steady(1, key="team-a/web"), *steady(3, key="team-a/batch")]
    outcomes = replay(daily(200, per="Caller"), demands)
    assert [(outcome.key, outcome.spent, outcome.refused) for outcome in outcomes] == [
        ("team-a/batch", 200, 88),
        ("team-a/web", 96, 0),
    ]


demands = st.lists(
    st.builds(
        lambda quarter, amount, requests: Demand("", MIDNIGHT + quarter * BUCKET_MS, amount, requests),
        st.integers(0, 3 * QUARTERS),
        st.integers(0, 10**6),
        st.integers(0, 1000),
    ),
    max_size=30,
    unique_by=lambda one: one.at,
)
actions = st.lists(
    st.tuples(st.integers(1, 99), st.sampled_from(["Alert", "Pace", "Deprioritize", "Downgrade", "RejectBatch"])),
    max_size=4,
)


@settings(deadline=None)
@given(demands, st.integers(0, 10**7), actions)
def test_nothing_is_overspent_and_nothing_is_refused_that_fits(
    some: list[Demand], limit: int, told: list[tuple[int, str]]
) -> None:
    for outcome in replay(daily(limit, *told), some):
        assert outcome.spent <= min(limit, outcome.asked)
        assert outcome.refused <= outcome.since <= outcome.requests
        if outcome.spent < min(limit, outcome.asked):
            assert any(begun.action == "Pace" for begun in outcome.begun)
        if outcome.spent == outcome.asked:
            assert outcome.refused == 0
        assert list(outcome.begun) == sorted(outcome.begun, key=lambda begun: begun.at)


@settings(deadline=None)
@given(demands, st.integers(1, 10**6), st.integers(1, 10))
def test_a_higher_limit_refuses_no_more(some: list[Demand], limit: int, times: int) -> None:
    tight, wide = replay(daily(limit), some), replay(daily(limit * times), some)
    assert sum(one.refused for one in wide) <= sum(one.refused for one in tight)


# --- what is printed


def test_the_story_of_one_window() -> None:
    told = daily(96_000_000_000, (50, "Alert"), (75, "Pace"), unit="USD")
    some = [Demand("", one.at, one.amount, 100) for one in steady(2_000_000_000, 60)]
    now = MIDNIGHT + 60 * BUCKET_MS
    assert (
        simulation_text(simulated(told, some, MIDNIGHT, now))
        == """\
team-a/daily: 96 USD a day, Alert 50, Pace 75; 15h replayed
Alert at 2026-11-21T06:00Z, Pace at 2026-11-21T09:00Z. Spent by now 81.73 instead of 120.00: \
38.27 (31.8%) held back, overspend 0.00.
1,914 of the 2,400 requests since Pace (79%) would have waited or got 429.
Pace admitted 1.60 an hour.
Smallest limit without Pace this day: 257 (75% = 192.75, forecast 192.00).
Assumed: what was refused did not come again. Refusals are at most this many."""
    )


def test_several_windows_are_a_table() -> None:
    text = simulation_text(simulated(daily(500, (50, "Alert")), steady(10, 2 * QUARTERS), MIDNIGHT, MIDNIGHT + 2 * DAY))
    lines = text.splitlines()
    assert lines[1].split() == ["WINDOW", "KEY", "ASKED", "SPENT", "REFUSED", "ACTIONS"]
    assert lines[2].split()[:5] == ["2026-11-21", "team-a", "960", "500", "460"]
    assert "Reject 2026-11-21T12:30Z" in lines[2]
    assert lines[4].split() == ["all", "2", "1,920", "1,000", "920"]


def test_no_usage_is_said() -> None:
    assert "There was no usage" in simulation_text(simulated(daily(), [], MIDNIGHT, MIDNIGHT + DAY))


def test_days_instead_of_quarter_hours_are_said() -> None:
    text = simulation_text(simulated(daily(), steady(1), MIDNIGHT, MIDNIGHT + DAY, MIDNIGHT + DAY // 2))
    assert "usage is kept by day (UTC): times there are rough" in text


def test_what_cannot_be_replayed_is_assumed_aloud() -> None:
    text = simulation_text(simulated(daily(500, (60, "Downgrade"), (70, "RejectBatch")), steady(1), MIDNIGHT, MIDNIGHT))
    assert "no request was Batch; none went to a cheaper route" in text


# --- the manifest

MANIFEST = """\
apiVersion: fairlead.dev/v1alpha1
kind: CostBudget
metadata: {name: search, namespace: search}
spec:
  limit: {amount: 1000, unit: USD, per: PER, period: PERIOD, timeZone: Europe/Berlin}
  actions: [{atPercent: 70, action: Alert}, {atPercent: 85, action: Pace}]
"""


@pytest.fixture(name="manifest")
def _manifest(tmp_path: Path) -> Path:
    path = tmp_path / "search-1000.yaml"
    path.write_text(MANIFEST.replace("PER,", "Total,").replace("PERIOD", "Month"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no manifest of a CostBudget"),
        ("[", "no manifest of a CostBudget"),
        ("kind: Pod", "no manifest of a CostBudget"),
        ("just text", "no manifest of a CostBudget"),
        (MANIFEST.replace("PER,", "Team,").replace("PERIOD", "Month"), "Input should be 'Total'"),
        (MANIFEST.replace("PER,", "Workflow,").replace("PERIOD", "Month"), "usage does not tell workflows"),
        (MANIFEST.replace("PER,", "Total,").replace("PERIOD", "Minute"), "kept in quarter hours"),
        (
            MANIFEST.replace("PER,", "Total,").replace("PERIOD", "Day")
            + "  appliesTo: {namespaceSelector: {matchLabels: {a: b}}}",
            "say with --namespaces",
        ),
    ],
)
def test_a_manifest_that_cannot_be_replayed_is_refused_with_the_reason(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=word):
        read_budget(path, "")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "budget", "-f", str(tmp_path / "none.yaml")]) == 2
    assert "no manifest of a CostBudget can be read there" in capsys.readouterr().err


# --- from the ledger's answers to the text


class Ledger(BaseHTTPRequestHandler):
    """Answers every question for usage: 100 requests and 1 USD in the first quarter hour of each question's time."""

    asked: list[dict[str, list[str]]]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.asked.append(query)
        since, by = int(query["since"][0]), tuple(query["by"][0].split(","))
        group = tuple(str(since) if name == "time" else name for name in by)
        sums = dict.fromkeys(("prompt", "cached", "output", "saved"), 10)
        costs = dict.fromkeys(("cost_p50_nano", "cost_p95_nano", "cost_p99_nano"), 0)
        row = UsageRow(group=group, requests=100, nano_usd=10**9, **sums, **costs)
        body = msgspec.json.encode(UsageAnswer(since=since, until=int(query["until"][0]), by=by, rows=(row,)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture(name="options")
def _options(tmp_path: Path) -> Iterator[list[str]]:
    Ledger.asked = []
    server = HTTPServer(("127.0.0.1", 0), Ledger)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    token = tmp_path / "token"
    token.write_text("t", encoding="utf-8")
    yield ["--ledger", f"http://127.0.0.1:{server.server_port}", "--token-file", str(token)]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_budget_is_replayed_from_the_ledgers_usage(
    manifest: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "budget", "-f", str(manifest), "--since", "1d", *options]) == 0
    assert capsys.readouterr().out.startswith("search/search: 1000 USD a month, Alert 70, Pace 85; ")
    assert {query["namespace"][0] for query in Ledger.asked} == {"search"}
    assert {query["step"][0] for query in Ledger.asked} == {str(BUCKET_MS)}
    assert len(Ledger.asked) >= 28


def test_every_day_is_exported_once(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "export", "--format", "focus", "--since", "2d", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    days = [int(query["since"][0]) for query in Ledger.asked]
    assert days == list(range(days[0], days[0] + len(days) * DAY, DAY))
    assert len(lines) == 1 + len(days)
    assert days[0] % DAY == 0


def test_filters_and_the_step_reach_the_ledger(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cost", "--by", "time,pool", "--step", "24h", "-n", "team-a", "--feature", "", "-o", "csv"]
    assert main([*arguments, *options]) == 0
    assert capsys.readouterr().out.startswith("kind,time,pool,requests,")
    assert Ledger.asked[0]["namespace"] == ["team-a"]
    assert Ledger.asked[0]["step"] == [str(DAY)]
