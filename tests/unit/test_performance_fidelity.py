"""The performance model against published measurements of vLLM, and the tools that compare them."""

import math
import statistics

import pytest

from fairlead_operator.performance.seeds import Constants
from tests.bench.autoscaler import fidelity
from tests.bench.autoscaler.fidelity import ClosedRun, Latencies, OpenRun


@pytest.fixture(scope="module")
def closed_runs() -> list[ClosedRun]:
    return fidelity.read(fidelity.CLOSED_LOOP, fidelity.closed_run)


@pytest.fixture(scope="module")
def open_runs() -> list[OpenRun]:
    return fidelity.read(fidelity.OPEN_LOOP, fidelity.open_run)


@pytest.fixture(scope="module")
def said(closed_runs: list[ClosedRun]) -> list[Latencies]:
    return [fidelity.closed_loop(run, fidelity.closed_engine(run)) for run in closed_runs]


def test_open_loops_are_foretold_within_the_gates(open_runs: list[OpenRun]) -> None:
    assert len(open_runs) == 50
    bare, whole = fidelity.open_errors(open_runs)
    assert statistics.fmean(whole.tpot) <= fidelity.OPEN_TPOT_GATE
    assert statistics.median(whole.ttft) <= fidelity.OPEN_TTFT_GATE
    assert statistics.median(bare.ttft) < 0.3


def test_closed_loops_of_dense_models_are_foretold_within_the_gate(
    closed_runs: list[ClosedRun], said: list[Latencies]
) -> None:
    assert len(closed_runs) == 318
    assert statistics.fmean(fidelity.closed_errors(closed_runs, said).tpot) <= fidelity.CLOSED_TPOT_GATE


def test_models_and_accelerators_that_the_constants_never_saw_are_foretold_too(closed_runs: list[ClosedRun]) -> None:
    errors = fidelity.left_out(closed_runs)
    assert len(errors) == 4
    assert max(statistics.fmean(one.tpot) for one in errors.values()) <= fidelity.CLOSED_TPOT_GATE


def test_the_cheapest_configuration_is_ranked_right(closed_runs: list[ClosedRun], said: list[Latencies]) -> None:
    ranked = fidelity.choices(closed_runs, said)
    assert len(ranked) > 150
    assert sum(one.ratio <= fidelity.NEAR for one in ranked) / len(ranked) >= fidelity.RANKING_GATE
    assert all(one.ratio >= 1 for one in ranked)


def test_measurements_ranked_by_themselves_are_always_right_and_by_their_opposite_hardly(
    closed_runs: list[ClosedRun],
) -> None:
    perfect = fidelity.choices(closed_runs, [run.measured for run in closed_runs])
    assert {one.ratio for one in perfect} == {1.0}
    opposite = [Latencies(run.measured.ttft, 1e-3 / run.measured.tpot / 20) for run in closed_runs]
    wrong = fidelity.choices(closed_runs, opposite)
    assert sum(one.ratio <= fidelity.NEAR for one in wrong) / len(wrong) < 0.5


def test_the_closed_form_agrees_with_the_simulated_replica(closed_runs: list[ClosedRun], said: list[Latencies]) -> None:
    apart = [
        fidelity.off(fidelity.steady_tpot(run, fidelity.closed_engine(run)), one.tpot)
        for run, one in zip(closed_runs, said, strict=True)
    ]
    assert statistics.median(apart) < 0.03


def test_constants_are_found_again_from_what_they_foretell(closed_runs: list[ClosedRun]) -> None:
    truth = Constants(step=1.5e-3, layer=50e-6, bandwidth=0.9, flops=0.7, link=0.4)
    made = []
    for run in closed_runs[::3]:
        tpot = fidelity.steady_tpot(run, fidelity.closed_engine(run, truth))
        row = {field: getattr(run, field) for field in run.__slots__}
        made.append(ClosedRun(**{**row, "measured": Latencies(0.1, tpot)}))
    found = fidelity.fit_constants(made)
    for name in ("bandwidth", "flops", "link"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.05), name
    assert found.step + 70 * found.layer == pytest.approx(truth.step + 70 * truth.layer, rel=0.05)


@pytest.mark.parametrize(("mean", "sigma"), [(206, 1.15), (215, 0.95), (20, 0.5)])
def test_lengths_have_the_mean_that_was_measured(mean: float, sigma: float) -> None:
    lengths = fidelity.spread(200, mean, sigma)
    assert statistics.fmean(lengths) == pytest.approx(mean, rel=0.01)
    assert 4 <= min(lengths) <= max(lengths) <= fidelity.LONGEST


def test_least_squares_solve_what_can_be_solved() -> None:
    rows = [[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]]
    exact = fidelity.least_squares(rows[:2], [1e6, 1e6], [1.0, 0.5])
    assert exact == pytest.approx([1.0, 0.5])
    assert all(math.isfinite(one) for one in fidelity.least_squares(rows, [1.0] * 3, [1.0, 0.5]))
