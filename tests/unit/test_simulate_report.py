"""What simulations are told as: rows, a table with the spread of the seeds, and plots."""

import xml.etree.ElementTree as ET

import pytest

from fairlead_operator.simulate.model import Minute, Result
from fairlead_operator.simulate.plots import MOST_POINTS, Panel, svg, thin
from fairlead_operator.simulate.report import Row, record, row, table


def result(met: int = 995, dollars: float = 110.0) -> Result:
    return Result(
        requests=1000, met=met, met_ttft=997, met_tpot=998, held=10, held_met=5, unfinished=0, refused=0,
        replica_seconds=(7200.0,), dollars=dollars, dollars_starting=3.0, scale_events=4, pods_started=6,
        preemptions=0, ttft_p99=1.25, tpot_p99=0.041, minutes=(Minute(60, 1, 2, 2),),
    )  # fmt: skip


def told(of: Result, *, seed: int = 1, reference: float | None = 100.0) -> Row:
    return row("S1", "fairlead", of, cold_start=120.0, seed=seed, seconds=3600.0, reference=reference)


def test_a_row_has_the_cost_over_the_reference() -> None:
    one = told(result())
    assert one.over_percent == pytest.approx(10.0)
    assert (one.replicas, one.events_per_day, one.dollars_per_thousand) == (2.0, 96.0, 110.0)


def test_a_policy_that_misses_the_attainment_has_no_ratio() -> None:
    assert told(result(met=980)).over_percent is None
    assert told(result(), reference=None).over_percent is None


def test_the_table_shows_the_spread_of_the_seeds() -> None:
    text = table([told(result(dollars=105.0)), told(result(met=991), seed=2)])
    assert len(text.splitlines()) == 2
    assert "99.30 (99.10…99.50)" in text
    assert "+7.5 (+5.0…+10.0)" in text


def test_one_failing_seed_leaves_no_ratio_in_the_table() -> None:
    assert table([told(result()), told(result(met=900), seed=2)]).splitlines()[1].endswith("-")


def test_a_record_holds_rounded_numbers() -> None:
    shown = record(told(result()))
    assert shown["attainment_percent"] == 99.5
    assert shown["over_clairvoyant_percent"] == 10.0
    assert shown["attainment_of_rest_percent"] == 100.0


def test_a_plot_is_well_formed_whatever_its_names() -> None:
    panels = [Panel("a < b", {"x & y": [1.0, 2.0, 0.5], "none": []}), Panel("empty", {})]
    root = ET.fromstring(svg("<title>", 60.0, panels))  # noqa: S314 - our own text
    assert len(root.findall("{http://www.w3.org/2000/svg}path")) == 4
    assert "prefers-color-scheme" in svg("x", 1.0, panels)


def test_long_series_are_thinned_to_means() -> None:
    values = [float(at % 2) for at in range(10 * MOST_POINTS)]
    thinned = thin(values)
    assert len(thinned) == MOST_POINTS
    assert set(thinned) == {0.5}
    assert thin([]) == []
