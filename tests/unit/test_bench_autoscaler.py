"""The autoscaler's benchmark: its scenarios are those defined, and its slice shows what no clock decides."""

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from fairlead_operator.simulate.clairvoyant import Reference
from fairlead_operator.simulate.report import Row
from tests.bench.autoscaler import cases as bench
from tests.bench.autoscaler.__main__ import cases, options, rows_of, summary
from tests.bench.autoscaler.cases import CLAIRVOYANT, OURS, Case, origin, reference, result
from tests.bench.autoscaler.scenarios import LLAMA, QWEN, SCENARIOS, client_windows, lengths, workload


def test_the_engines_are_those_of_the_scenarios() -> None:
    assert LLAMA.step.base == pytest.approx(0.01163, abs=1e-5)
    assert LLAMA.step.per_token == pytest.approx(28.8e-6, rel=0.01)
    assert LLAMA.kv_tokens == pytest.approx(1_241_455, abs=1)
    assert QWEN.step.base == pytest.approx(0.01524, abs=1e-5)


def test_the_ramp_has_its_stages_and_its_lengths() -> None:
    of = workload(SCENARIOS["S8"])
    assert of.duration == SCENARIOS["S8"].seconds == 2430.0
    stage = [at for at in of.arrivals if 1410.0 <= at < 1770.0]
    assert len(stage) / 360.0 == pytest.approx(10.0, abs=0.9)
    assert 3500 <= min(of.prompt_tokens) <= max(of.prompt_tokens) <= 4500
    assert 900 <= min(of.output_tokens) <= max(of.output_tokens) <= 1100


def test_a_day_has_its_mean_and_its_seed() -> None:
    of = workload(SCENARIOS["S1"], mean=0.5)
    assert len(of.arrivals) / 86_400.0 == pytest.approx(0.5, rel=0.03)
    assert of == workload(SCENARIOS["S1"], mean=0.5)
    assert of != workload(SCENARIOS["S1"], 2, mean=0.5)
    assert set(zip(of.prompt_tokens, of.output_tokens, strict=True)) <= set(lengths("code"))


def test_recorded_hours_come_again_and_keep_their_prefixes() -> None:
    of = workload(SCENARIOS["S5"])
    assert of.duration == SCENARIOS["S5"].seconds
    assert len(of.arrivals) == 4 * 12_031
    assert of.prefixes is not None
    assert of.prefixes[0] == of.prefixes[12_031]


def test_sparse_clients_are_silent_for_most_of_the_day() -> None:
    for client, active in ((67, 13), (36, 21), (14, 10)):
        windows = client_windows("m-large", 5, client.__eq__)
        assert len(windows) == 144
        assert sum(rate > 0 for _since, _until, rate in windows) == active


def test_unknown_words_run_nothing_but_what_was_asked() -> None:
    asked = cases(options(["--scenarios", "S1,S8", "--seeds", "2", "--cold", "30", "--baselines", "wva-v1"]))
    assert [(case.scenario, case.policy, case.cold_start, case.seed) for case in asked] == [
        ("S1", CLAIRVOYANT, 30.0, 2),
        ("S1", OURS, 30.0, 2),
        ("S1", "wva-v1", 30.0, 2),
        ("S8", CLAIRVOYANT, 100.0, 2),
        ("S8", OURS, 100.0, 2),
        ("S8", "wva-v1", 100.0, 2),
    ]


def test_the_last_line_tells_the_worst() -> None:
    asked = cases(options(["--slice", "--scenarios", "S8", "--baselines", "wva-v1"]))
    rows = rows_of([(case, result(replace(case, rate_scale=0.1))) for case in asked])
    worse = replace(next(row for row in rows if row.policy == OURS), scenario="S1", attainment=0.5)
    better = replace(worse, attainment=0.999, over_percent=4.0)
    assert summary([worse, better])["S1"]["attainment_percent"] == 50.0
    assert summary([better, replace(better, over_percent=7.5)])["S1"]["over_clairvoyant_percent"] == 7.5
    assert summary([better, replace(better, over_percent=None)])["S1"]["over_clairvoyant_percent"] is None
    assert set(summary(rows)["S8"]) == {"attainment_percent", "replicas"}


@pytest.fixture(scope="module")
def slice_rows() -> Mapping[tuple[str, str], Row]:
    """Two hours in which demand doubles and falls back, at two fifths of the rate to be quick, and the ramp."""
    ramp, steps = cases(options(["--slice", "--scenarios", "S8"])), cases(options(["--slice", "--scenarios", "S3"]))
    rows = rows_of([(case, result(case)) for case in [*ramp, *(replace(step, rate_scale=0.4) for step in steps)]])
    return {(row.scenario, row.policy): row for row in rows}


@pytest.mark.timeout(600)
def test_our_law_keeps_the_objectives_on_the_ramp(slice_rows: Mapping[tuple[str, str], Row]) -> None:
    assert slice_rows["S8", OURS].attainment >= 0.99


@pytest.mark.timeout(600)
def test_the_clairvoyant_schedule_is_the_cheapest_that_keeps_them(
    slice_rows: Mapping[tuple[str, str], Row],
) -> None:
    for (scenario, _policy), row in slice_rows.items():
        least = slice_rows[scenario, CLAIRVOYANT]
        assert least.attainment >= 0.99
        assert row.attainment < 0.99 or row.dollars >= least.dollars


@pytest.mark.timeout(600)
def test_no_other_law_attains_more_for_less(slice_rows: Mapping[tuple[str, str], Row]) -> None:
    # No law can see the steps of S3 coming: two hours of them spend what a day may miss.
    ours = slice_rows["S3", OURS]
    for name in ("slo-aware", "keda-running"):
        other = slice_rows["S3", name]
        assert other.attainment < ours.attainment or other.dollars > ours.dollars


@pytest.mark.parametrize(
    ("option", "word", "known"), [("--scenarios", "S99", "S8"), ("--baselines", "aibrix", "wva-v1")]
)
def test_a_name_that_is_unknown_is_refused_with_those_that_are_known(
    option: str, word: str, known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options([option, f"{known},{word}"])
    assert re.search(rf"{option}: {word} is none of .*{known}", capsys.readouterr().err)


def test_the_search_for_a_schedule_begins_where_that_of_the_first_seed_and_cold_start_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Case("S8", CLAIRVOYANT, SCENARIOS["S8"].cold_start, rate_scale=0.1)
    ended = replace(reference(whole), asked=0.75)
    begun: list[float | None] = []

    def search(*_workload: object, asked: float | None, **_rest: object) -> Reference:
        begun.append(asked)
        return ended

    monkeypatch.setattr(bench, "kept", lambda _folder, _key, _kind, make: make())
    monkeypatch.setattr(bench, "table", lambda _case: None)
    monkeypatch.setattr(bench, "clairvoyant", search)
    assert origin(replace(whole, cold_start=30.0, seed=2)) == origin(whole) == whole
    reference(replace(whole, cold_start=30.0))
    reference(replace(whole, seed=2))
    assert begun == [None, 0.75, None, 0.75]


def test_a_reference_that_misses_the_goal_itself_is_no_reference() -> None:
    asked = cases(options(["--slice", "--scenarios", "S8"]))
    results = [(case, result(replace(case, rate_scale=0.1))) for case in asked]
    spoiled = [(case, replace(one, met=one.met // 2) if case.policy == CLAIRVOYANT else one) for case, one in results]
    assert next(row for row in rows_of(results) if row.policy == OURS).over_percent is not None
    assert next(row for row in rows_of(spoiled) if row.policy == OURS).over_percent is None
