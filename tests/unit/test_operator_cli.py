"""``fairlead``: what it prints adds up, and what it cannot do it says."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.cli.cost import cost_table, count_text, parse_dimensions, parse_since, rounded
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


def answer(*rows: UsageRow, bill: int) -> UsageAnswer:
    cost = CostRow(pool="ai-platform/chat", variant="l40s", bucket=0, replica_ms=7_200_000, nano_usd=bill)
    return UsageAnswer(since=1_795_172_400_000, until=1_795_258_800_000, by=("namespace",), rows=rows, costs=(cost,))


@given(st.lists(st.integers(0, 10**15), max_size=20))
def test_rounded_amounts_add_up_to_the_rounded_sum(amounts: list[int]) -> None:
    texts = rounded(amounts, 2)
    assert abs(sum(texts) - sum(amounts)) <= STEP // 2
    assert all(abs(text - amount) < STEP for text, amount in zip(texts, amounts, strict=True))


def test_charged_and_idle_are_the_bill_in_print() -> None:
    table = cost_table(
        answer(row("support", nano_usd=33_333_333_333), row("search", nano_usd=11_116_666_667), bill=10**11)
    )
    assert table.splitlines()[0] == "2026-11-20T11:00Z to 2026-11-21T11:00Z"
    amounts = {line.split()[0]: re.findall(r"\d+\.\d\d\b", line) for line in table.splitlines()[2:7]}
    assert amounts["support"][0] == "33.33"
    assert amounts["charged"][0] == "44.45"
    assert amounts["idle"] == ["55.55"]
    assert amounts["bill"][0] == "100.00"


def test_small_amounts_keep_six_places() -> None:
    assert "0.000142" in cost_table(answer(row("support", nano_usd=142_000, requests=1), bill=200_000))


def test_a_time_without_requests_has_a_bill_all_the_same() -> None:
    table = cost_table(answer(bill=3_100_000_000))
    assert "3.100000" in table
    assert "2.00 replica-hours" in table


@pytest.mark.parametrize(("text", "ms"), [("7d", 604_800_000), ("24h", 86_400_000), ("1h30m", 5_400_000)])
def test_since_takes_days_and_durations(text: str, ms: int) -> None:
    assert parse_since(text) == ms


@pytest.mark.parametrize("text", ["", "yesterday", "0d", "999d", "-1h"])
def test_a_since_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 7d, 24h or 1h30m, 400d at most"):
        parse_since(text)


def test_an_unknown_dimension_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="there is namespace, caller"):
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
    assert main(["cost", "--ledger", "http://127.0.0.1:9", "--token-file", str(token)]) == 1
    assert "port-forward" in capsys.readouterr().err


def test_an_option_that_cannot_be_used_is_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--since", "soon"]) == 2
    assert "soon" in capsys.readouterr().err
