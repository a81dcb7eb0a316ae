"""``fairlead``: what it prints adds up, and what it cannot do it says."""

import csv
import io
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.cli.ask import UsageError, parse_time
from fairlead_operator.cli.cost import cost_csv, cost_table, count_text, parse_dimensions, rounded
from fairlead_operator.cli.main import main
from fairlead_router.contract import CostRow, UsageAnswer, UsageRow

STEP = 10_000_000


def row(*group: str, nano_usd: int, requests: int = 1000) -> UsageRow:
    return UsageRow(
        group=group,
        requests=requests,
        prompt=requests * 2000,
        cached=requests * 500,
        output=requests * 300,
        nano_usd=nano_usd,
        saved=0,
        cost_p50_nano=0,
        cost_p95_nano=0,
        cost_p99_nano=0,
    )


NOON = 1_795_258_800_000
"""2026-11-21T11:00:00Z"""


def bill(nano_usd: int, charged: int, pool: str = "ai-platform/chat", variant: str = "l40s") -> CostRow:
    return CostRow(pool=pool, variant=variant, bucket=0, replica_ms=7_200_000, nano_usd=nano_usd, charged=charged)


def answer(
    *rows: UsageRow, costs: tuple[CostRow, ...], by: tuple[str, ...] = ("namespace",), **more: int
) -> UsageAnswer:
    return UsageAnswer(since=NOON - 86_400_000, until=NOON, by=by, rows=rows, costs=costs, **more)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**15), max_size=20))
def test_rounded_amounts_add_up_to_the_rounded_sum(amounts: list[int]) -> None:
    texts = rounded(amounts, 2)
    assert abs(sum(texts) - sum(amounts)) <= STEP // 2
    assert all(abs(text - amount) < STEP for text, amount in zip(texts, amounts, strict=True))


def test_charged_and_idle_are_the_bill_in_print() -> None:
    costs = (bill(60_000_000_000, 33_333_333_333), bill(40_000_000_000, 11_116_666_667, "ai-platform/big", "h100"))
    rows = (row("support", nano_usd=33_333_333_333), row("search", nano_usd=11_116_666_667))
    assert (
        cost_table(answer(*rows, costs=costs, settled=NOON - 2_000))
        == """\
2026-11-20T11:00Z to 2026-11-21T11:00Z     settled up to 10:59:58Z
NAMESPACE  REQUESTS  PROMPT  CACHED   OUTPUT  CHARGED   SHARE    $/1K
support       1,000   2.00M     25%  300,000    33.33   75.0%  33.333
search        1,000   2.00M     25%  300,000    11.12   25.0%  11.117
charged       2,000   4.00M     25%  600,000    44.45  100.0%  22.225
idle     chat 26.67 + big 28.88                 55.55  owner: ai-platform
bill     2 × 30.00 + 2 × 20.00                 100.00  50.000"""
    )


def team(name: str, requests: int, tokens: tuple[int, int], cached: int, cents: int) -> UsageRow:
    prompt, output = (millions * 1_000_000 for millions in tokens)
    sums = {"requests": requests, "prompt": prompt, "cached": prompt * cached // 100, "output": output}
    zeros = dict.fromkeys(("saved", "cost_p50_nano", "cost_p95_nano", "cost_p99_nano"), 0)
    namespace, feature = name.split("/")
    return UsageRow(group=(namespace, feature), nano_usd=cents * STEP, **sums, **zeros)


def hours(pool: str, variant: str, count: int, cents: int, charged: int) -> CostRow:
    ms = count * 3_600_000
    total = count * cents * STEP
    return CostRow(
        pool=f"ai-platform/{pool}", variant=variant, bucket=0, replica_ms=ms, nano_usd=total, charged=charged * STEP
    )


def test_a_week_of_two_teams() -> None:
    rows = (
        team("support/ticket-summary", 2_900_000, (16_240, 900), 10, 70_503),
        team("search/rag-answer", 2_800_000, (9_430, 730), 30, 30_250),
        team("support/reply-draft", 3_600_000, (5_040, 790), 50, 16_474),
        team("search/extract", 100_000, (390, 60), 10, 6_835),
        team("support/agent", 1_100_000, (2_860, 200), 70, 5_287),
        team("ai-platform/eval", 80_000, (80, 20), 50, 294),
    )
    costs = (
        hours("chat-8b", "h100", 352, 295, 80_000),
        hours("chat-8b", "l40s", 74, 155, 8_456),
        hours("chat-8b-long", "h100", 210, 295, 34_352),
        hours("extract-32b", "h200", 29, 345, 6_835),
    )
    week = UsageAnswer(since=NOON - 7 * 86_400_000, until=NOON, by=("namespace", "feature"), rows=rows, costs=costs)
    assert cost_table(week).splitlines()[1:] == GOLDEN.splitlines()
    assert GOLDEN in (ROOT / "docs/how-to/see-costs.md").read_text(encoding="utf-8")


ROOT = Path(__file__).resolve().parents[2]
GOLDEN = """\
NAMESPACE    FEATURE         REQUESTS  PROMPT  CACHED  OUTPUT  CHARGED   SHARE   $/1K
support      ticket-summary     2.90M  16.24B     10%   0.90B   705.03   54.4%  0.243
search       rag-answer         2.80M   9.43B     30%   0.73B   302.50   23.3%  0.108
support      reply-draft        3.60M   5.04B     50%   0.79B   164.74   12.7%  0.046
search       extract            0.10M   0.39B     10%   0.06B    68.35    5.3%  0.684
support      agent              1.10M   2.86B     70%   0.20B    52.87    4.1%  0.048
ai-platform  eval               0.08M   0.08B     50%   0.02B     2.94    0.2%  0.037
charged                        10.58M  34.04B     27%   2.70B  1296.43  100.0%  0.123
idle                                                            576.22  owner: ai-platform
  chat-8b 268.54 + chat-8b-long 275.98 + extract-32b 31.70
bill     352 × 2.95 + 74 × 1.55 + 210 × 2.95 + 29 × 3.45       1872.65  0.177
"""


def test_a_list_of_pools_that_does_not_fit_is_a_line_of_its_own() -> None:
    costs = tuple(bill(10**10, 0, f"team-{name}/a-long-name-of-a-pool") for name in "abc")
    lines = cost_table(answer(costs=costs)).splitlines()
    idle = next(line for line in lines if line.startswith("idle"))
    assert idle.split()[1:] == ["30.00", "owner:", "team-a,", "team-b,", "team-c"]
    assert "  team-a/a-long-name-of-a-pool 10.00 + team-b/a-long-name-of-a-pool 10.00" in lines[lines.index(idle) + 1]


def test_the_replicas_of_a_pool_are_told_once_whatever_the_steps_of_time() -> None:
    costs = (bill(2 * 10**9, 0), bill(4 * 10**9, 0))
    text = cost_table(
        answer(*(row(str(NOON + hour), nano_usd=0) for hour in (0, 3_600_000)), costs=costs, by=("time",))
    )
    assert "4 × 1.50" in text
    assert text.count("×") == 1


def test_charges_above_the_bill_show_as_negative_idle() -> None:
    table = cost_table(answer(row("support", nano_usd=20_000_000_000), costs=(bill(15_000_000_000, 20_000_000_000),)))
    assert re.search(r"^idle .*chat -5\.00 .* -5\.00  owner: ai-platform$", table, re.MULTILINE)
    assert re.search(r"^bill .* 15\.00 ", table, re.MULTILINE)


def test_a_part_of_the_requests_is_not_set_against_everybodys_bill() -> None:
    rows = (row("support", nano_usd=10_000_000_000),)
    table = cost_table(answer(*rows, costs=(bill(50_000_000_000, 30_000_000_000),)))
    assert "idle 20.00 of the bill 50.00 of these pools (owner: ai-platform)" in table
    assert "does not add up" in table
    assert not re.search("^bill", cost_table(answer(*rows, costs=())), re.MULTILINE)


def test_small_amounts_keep_six_places() -> None:
    table = cost_table(answer(row("support", nano_usd=142_000, requests=1), costs=(bill(200_000, 142_000),)))
    assert "0.000142" in table
    assert "0.000058" in table


def test_a_time_without_requests_has_a_bill_all_the_same() -> None:
    table = cost_table(answer(costs=(bill(3_100_000_000, 0),)))
    assert "3.100000" in table
    assert "2 × 1.55" in table


def test_a_time_among_days_is_noted() -> None:
    assert "by day (UTC) only" in cost_table(answer(costs=(), days_until=NOON))
    assert "by day (UTC) only" not in cost_table(answer(costs=(), days_until=NOON - 86_400_000))


def test_time_is_written_as_people_read_it() -> None:
    assert "2026-11-21T11:00Z  " in cost_table(answer(row(str(NOON), nano_usd=1), costs=(bill(1, 1),), by=("time",)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), min_size=1, max_size=5))
def test_the_column_usd_of_the_csv_adds_up_to_the_bill_to_the_nano(amounts: list[tuple[int, int]]) -> None:
    costs = tuple(bill(cost, charged, f"p/{number}") for number, (cost, charged) in enumerate(amounts))
    rows = tuple(row(f"p/{number}", nano_usd=charged) for number, (_cost, charged) in enumerate(amounts))
    lines = list(csv.DictReader(cost_csv(answer(*rows, costs=costs, by=("pool",))).splitlines()))
    assert sum(Decimal(line["usd"]) for line in lines) * 10**9 == sum(cost for cost, _charged in amounts)
    assert {line["pool"] for line in lines if line["kind"] == "idle"} == {cost.pool for cost in costs}


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_name_that_a_client_chose_is_no_formula_in_the_csv(name: str) -> None:
    text = cost_csv(answer(row(name, nano_usd=1), costs=(), by=("feature",)))
    (line,) = csv.DictReader(io.StringIO(text, newline=""))
    assert line["feature"] == f"'{name}"


def test_a_name_with_control_characters_neither_ends_a_line_nor_reaches_the_terminal() -> None:
    told = answer(row("\x1b[2J\r=1\n", nano_usd=1), costs=(), by=("feature",))
    assert "\ufffd[2J\ufffd=1\ufffd" in cost_table(told)
    (line,) = csv.DictReader(io.StringIO(cost_csv(told), newline=""))
    assert line["feature"] == "\ufffd[2J\ufffd=1\ufffd"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("7d", NOON - 604_800_000),
        ("24h", NOON - 86_400_000),
        ("1h30m", NOON - 5_400_000),
        ("now", NOON),
        ("2026-11-21", NOON - 11 * 3_600_000),
        ("2026-11-21T11:00+01:00", NOON - 3_600_000),
        ("2026-11-20T10:59:30Z", NOON - 86_430_000),
    ],
)
def test_a_time_is_a_length_before_now_or_a_date(text: str, at: int) -> None:
    assert parse_time(text, "--since", NOON) == at


@pytest.mark.parametrize("text", ["", "yesterday", "0d", "999d", "-1h", "2026-13-01", "²d"])
def test_a_since_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write 7d, 24h or 1h30m, 400d at most, or a date"):
        parse_time(text, "--since", NOON)


@pytest.mark.parametrize("text", ["2027-01-01", "2020-01-01"])
def test_a_date_that_nothing_is_kept_of_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not within the 400 days"):
        parse_time(text, "--since", NOON)


def test_an_unknown_dimension_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match="there is namespace, caller"):
        parse_dimensions("namespace,team")


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (27_800, "27,800"), (2_900_000, "2.90M"), (16_240_000_000, "16.24B")]
)
def test_counts_are_short(count: int, text: str) -> None:
    assert count_text(count) == text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("fairlead 0.")


def test_a_ledger_that_does_not_answer_is_said_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("t", encoding="utf-8")
    assert main(["cost", "--ledger", "http://127.0.0.1:9", "--token-file", str(token)]) == 3
    assert "port-forward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--since", "soon"], "soon"),
        (["--since", "1h", "--until", "2h"], "is not before"),
        (["--by", "pool,pool"], "each once"),
        (["--step", "1h"], "add time to --by"),
        (["--by", "time", "--step", "10m"], "multiple of 15m"),
        (["export", "--feature", "search"], "no filter but --namespace and --pool"),
    ],
)
def test_an_option_that_cannot_be_used_is_status_two(
    options: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *options]) == 2
    assert word in capsys.readouterr().err
