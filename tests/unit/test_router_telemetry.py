"""The router's metrics: what is counted where, its bounds, and the text that Prometheus reads."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fairlead_router.contract import Card
from fairlead_router.exposition import SLOTS, Buckets, Metric
from fairlead_router.telemetry import (
    ACCESS_LOG_DROPPED,
    CONFIG_INFO,
    COST,
    MAX_SERIES,
    MAX_TENANTS,
    METRICS,
    OTHER_TENANT,
    STAGE,
    STAGES,
    TPOT,
    TTFT,
    Recent,
    Telemetry,
    Totals,
)

POOL = "ai-platform/chat-8b"
CARD = Card(version=1, prompt_pico=32_000, cached_pico=3_200, output_pico=96_000)
ROUTE = {"pool": POOL, "route": "small", "priority": "Standard"}
SECONDS = st.floats(min_value=1e-6, max_value=400)
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(telemetry: Telemetry) -> Values:
    """Every sample by name and labels, as Prometheus' own parser reads them."""
    text = b"".join(telemetry.render()).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(telemetry: Telemetry, name: str, labels: Mapping[str, str]) -> float:
    return scraped(telemetry)[name, frozenset(labels.items())]


def lowest_bound(telemetry: Telemetry, name: str, labels: Mapping[str, str]) -> float:
    """The smallest bucket that has the only value of a histogram."""
    wanted = frozenset(labels.items())
    bounds = [
        float(dict(found)["le"])
        for (sample, found), count in scraped(telemetry).items()
        if sample == f"{name}_bucket" and found > wanted and count == 1
    ]
    return min(bounds)


# --- what is counted where ---


def test_an_outcome_is_counted_by_tenant_pool_and_route() -> None:
    telemetry = Telemetry()
    standard = telemetry.series("support", POOL, "small", "Standard")
    batch = telemetry.series("support", POOL, "small", "Batch")
    for series, code in ((standard, "ok"), (standard, "ok"), (batch, "ok"), (batch, "queue_full")):
        series.outcome(code)
    labels = {"tenant": "support", "pool": POOL, "route": "small"}
    assert value(telemetry, "fairlead_requests_total", {**labels, "outcome": "ok"}) == 3
    assert value(telemetry, "fairlead_requests_total", {**labels, "outcome": "queue_full"}) == 1


def test_tokens_and_charges_are_counted_by_kind() -> None:
    telemetry = Telemetry()
    telemetry.series("support", POOL, "small", "Standard").settled(1_000_000, 500_000, 250_000, CARD, 57_600_000)
    labels = {"tenant": "support", "pool": POOL}
    tokens = [
        value(telemetry, "fairlead_tokens_total", {**labels, "kind": kind}) for kind in ("uncached", "cached", "output")
    ]
    charged = [
        value(telemetry, "fairlead_charged_usd_total", {**labels, "kind": kind})
        for kind in ("uncached", "cached", "output")
    ]
    assert tokens == [1_000_000, 500_000, 250_000]
    assert charged == [0.032, 0.0016, 0.024]
    assert value(telemetry, "fairlead_request_cost_usd_sum", {"pool": POOL, "route": "small"}) == 0.0576


def test_a_request_without_a_price_counts_tokens_and_no_charge() -> None:
    telemetry = Telemetry()
    telemetry.series("support", POOL, "small", "Standard").settled(10, 0, 5, None, 0)
    labels = {"tenant": "support", "pool": POOL, "kind": "uncached"}
    assert value(telemetry, "fairlead_tokens_total", labels) == 10
    assert value(telemetry, "fairlead_charged_usd_total", labels) == 0
    assert not [name for name, _ in scraped(telemetry) if name.startswith("fairlead_request_cost_usd")]


CARDS = st.none() | st.builds(
    Card,
    version=st.just(1),
    prompt_pico=st.integers(0, 10**9),
    cached_pico=st.integers(0, 10**9),
    output_pico=st.integers(0, 10**9),
)


@settings(deadline=None)
@given(st.lists(st.tuples(CARDS, st.lists(st.integers(0, 10**6), min_size=3, max_size=3)), max_size=12))
def test_charges_are_exact_however_often_the_card_changes(requests: list[tuple[Card | None, list[int]]]) -> None:
    telemetry = Telemetry()
    series = telemetry.series("support", POOL, "small", "Standard")
    pico = [0, 0, 0]
    for card, tokens in requests:
        series.settled(tokens[0], tokens[1], tokens[2], card, 0)
        prices = (card.prompt_pico, card.cached_pico, card.output_pico) if card is not None else (0, 0, 0)
        pico = [total + count * price for total, count, price in zip(pico, tokens, prices, strict=True)]
    if sum(sum(tokens) for _, tokens in requests):
        for kind, total in zip(("uncached", "cached", "output"), pico, strict=True):
            labels = {"tenant": "support", "pool": POOL, "kind": kind}
            assert value(telemetry, "fairlead_charged_usd_total", labels) == float(Fraction(total, 10**12))


def test_stages_are_told_apart_and_waits_have_their_own_metrics() -> None:
    telemetry = Telemetry()
    series = telemetry.series("support", POOL, "small", "Standard")
    series.stages(0.00003, 0.0, 0.0, 0.5)
    series.stages(0.00005, 2.0, 0.001, 0.25)
    series.streamed(100.0, 2.3, 4.0, 101)
    found = scraped(telemetry)
    sums = {stage: value(telemetry, f"{STAGE.name}_sum", {**ROUTE, "stage": stage}) for stage in STAGES}
    counts = {stage: value(telemetry, f"{STAGE.name}_count", {**ROUTE, "stage": stage}) for stage in STAGES}
    route = frozenset(ROUTE.items())
    assert sums == {
        "router": pytest.approx(0.00008), "queue": 2.0, "connect": 0.001, "engine": 0.75, "stream": 4.0,
    }  # fmt: skip
    assert counts == {"router": 2, "queue": 2, "connect": 2, "engine": 2, "stream": 1}
    assert found["fairlead_queue_wait_seconds_bucket", route | {("le", "6.4e-05")}] == 1
    assert found["fairlead_queue_wait_seconds_count", route] == 2
    assert found["fairlead_router_overhead_seconds_sum", route] == pytest.approx(0.00008)
    assert found["fairlead_time_to_first_token_seconds_sum", route] == 2.3
    assert found["fairlead_time_per_output_token_seconds_sum", route] == 0.04


def test_a_stream_of_one_token_has_no_time_between_tokens() -> None:
    telemetry = Telemetry()
    telemetry.series("support", POOL, "small", "Standard").streamed(1.0, 0.2, 0.0, 1)
    names = {name for name, _ in scraped(telemetry)}
    assert "fairlead_time_to_first_token_seconds_count" in names
    assert "fairlead_time_per_output_token_seconds_count" not in names
    assert telemetry.pool(POOL).tpot.p99_ms(2.0) == 0


def test_series_of_equal_labels_add_to_the_same_numbers() -> None:
    telemetry = Telemetry()
    for _ in range(2):
        telemetry.series("support", POOL, "small", "Standard").stages(0.1, 0.1, 0.1, 0.1)
    telemetry.series("search", POOL, "small", "Standard").stages(0.1, 0.1, 0.1, 0.1)
    assert value(telemetry, "fairlead_router_overhead_seconds_count", ROUTE) == 3


def test_the_totals_of_a_pool_are_sums_over_tenants_and_routes() -> None:
    telemetry = Telemetry()
    for tenant, route in (("support", "small"), ("search", "small"), ("search", "long")):
        series = telemetry.series(tenant, POOL, route, "Standard")
        series.outcome("ok")
        series.settled(100, 20, 3, CARD, 5)
    telemetry.series("search", "ai-platform/other", "small", "Standard").outcome("ok")
    assert telemetry.pool(POOL).totals() == Totals(requests=3, prompt=360, cached=60, output=9, nano_usd=15)
    assert telemetry.pool("ai-platform/unknown").totals() == Totals(0, 0, 0, 0, 0)


# --- buckets ---


@settings(deadline=None)
@given(SECONDS)
def test_a_time_is_in_the_bucket_with_the_next_larger_bound(seconds: float) -> None:
    telemetry = Telemetry()
    telemetry.series("support", POOL, "small", "Standard").stages(0.0, 0.0, 0.0, seconds)
    bound = lowest_bound(telemetry, STAGE.name, {**ROUTE, "stage": "engine"})
    assert seconds <= bound * (1 + 1e-12)
    assert seconds > bound / 2 * (1 - 1e-12) or bound == 1.6e-05


@pytest.mark.parametrize("exponent", range(10, 30))
def test_a_time_equal_to_a_bound_is_within_it(exponent: int) -> None:
    telemetry = Telemetry()
    telemetry.series("support", POOL, "small", "Standard").streamed(1.0, 2**exponent * 1e-6, 1.0, 2)
    assert lowest_bound(telemetry, TTFT.name, ROUTE) == 2**exponent * 1e-6


@settings(deadline=None)
@given(st.integers(0, 10**10) | st.sampled_from([1000 * 2**exponent for exponent in range(24)]))
def test_a_charge_is_in_the_bucket_with_the_next_larger_bound_to_the_nano_usd(nano: int) -> None:
    telemetry = Telemetry()
    telemetry.series("support", POOL, "small", "Standard").settled(1, 0, 0, CARD, nano)
    bound = lowest_bound(telemetry, COST.name, {"pool": POOL, "route": "small"})
    in_micro = 1 if nano <= 1000 else 2 ** math.ceil(math.log2(Fraction(nano, 1000)))
    expected = in_micro * 1e-6 if in_micro <= 2**23 else math.inf
    assert bound == expected


@settings(deadline=None)
@given(st.just(0.0) | st.floats(min_value=1e-9, max_value=1e7))
def test_no_duration_breaks_a_request(seconds: float) -> None:
    telemetry = Telemetry()
    series = telemetry.series("support", POOL, "small", "Standard")
    series.stages(seconds, seconds, seconds, seconds)
    series.streamed(seconds, seconds, seconds, 2)
    found = scraped(telemetry)
    for stage in STAGES:
        labels = frozenset({**ROUTE, "stage": stage}.items())
        assert found[f"{STAGE.name}_count", labels] == 1
        assert found[f"{STAGE.name}_bucket", labels | {("le", "+Inf")}] == 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=SLOTS, max_size=SLOTS))
def test_cumulated_counts_grow_to_the_number_of_all_values(counts: list[int]) -> None:
    buckets = Buckets(1e-6, 4, 20)
    found = buckets.cumulated(counts)
    assert len(found) == len(buckets.bounds()) + 1
    assert found == sorted(found)
    assert found[-1] == sum(counts)
    # Exponents below the first bound, the negative ones at the list's end among them, are within the first bucket.
    assert found[0] == sum(counts[:5]) + sum(counts[44:])


# --- bounds ---


def test_tenants_beyond_the_bound_share_one_label() -> None:
    telemetry = Telemetry()
    for number in range(MAX_TENANTS + 5):
        telemetry.series(f"team-{number}", POOL, "small", "Standard").outcome("ok")
    labels = {"pool": POOL, "route": "small", "outcome": "ok"}
    assert value(telemetry, "fairlead_requests_total", {**labels, "tenant": OTHER_TENANT}) == 5
    assert value(telemetry, "fairlead_requests_total", {**labels, "tenant": "team-0"}) == 1


def test_no_metric_shows_more_series_than_the_bound_and_the_rest_is_counted() -> None:
    telemetry = Telemetry()
    for number in range(MAX_SERIES + 7):
        series = telemetry.series("support", f"ai/{number}", "small", "Standard")
        series.outcome("ok")
        series.settled(1, 1, 1, CARD, 1_000)
        series.stages(0.1, 0.1, 0.1, 0.1)
        series.streamed(1.0, 0.1, 0.1, 2)
        telemetry.retries.add((f"ai/{number}", "ok"))
    lines = [line for part in telemetry.render() for line in part.decode().splitlines()]
    shown = Counter(line.partition("{")[0] for line in lines)
    for metric in METRICS:
        assert shown[metric.name] + shown[f"{metric.name}_count"] <= MAX_SERIES
    assert shown["fairlead_requests_total"] == shown["fairlead_retries_total"] == MAX_SERIES
    assert {line for line in lines if line.startswith("fairlead_series_dropped")} == {
        f'fairlead_series_dropped_total{{metric="fairlead_{name}"}} {count}.0'
        for name, count in {
            "requests_total": 7,
            "request_cost_usd": 7,
            "retries_total": 7,
            "time_to_first_token_seconds": 7,
            "time_per_output_token_seconds": 7,
            "queue_wait_seconds": 7,
            "router_overhead_seconds": 7,
            "tokens_total": MAX_SERIES + 7 - MAX_SERIES // 3,
            "charged_usd_total": MAX_SERIES + 7 - MAX_SERIES // 3,
            "request_stage_seconds": MAX_SERIES + 7 - MAX_SERIES // 5,
        }.items()
    }


def test_what_has_no_series_is_still_in_its_pools_totals() -> None:
    telemetry = Telemetry()
    for number in range(MAX_SERIES):
        telemetry.series("support", POOL, f"route-{number}", "Standard").outcome("ok")
    late = telemetry.series("support", POOL, "late", "Standard")
    late.outcome("ok")
    late.settled(10, 0, 2, CARD, 40)
    assert telemetry.pool(POOL).totals() == Totals(MAX_SERIES + 1, 10, 0, 2, 40)


def test_outcomes_beyond_the_bound_of_series_are_counted_without_one() -> None:
    telemetry = Telemetry()
    series = telemetry.series("support", POOL, "small", "Standard")
    for number in range(MAX_SERIES + 3):
        series.outcome(f"engine_{number}")
    found = scraped(telemetry)
    assert len([name for name, _ in found if name == "fairlead_requests_total"]) == MAX_SERIES
    assert value(telemetry, "fairlead_series_dropped_total", {"metric": "fairlead_requests_total"}) == 3
    assert telemetry.pool(POOL).totals().requests == MAX_SERIES + 3


def test_a_stream_that_claims_absurdly_many_tokens_counts_as_a_fast_one() -> None:
    telemetry = Telemetry()
    telemetry.series("support", POOL, "small", "Standard").streamed(1.0, 0.1, 1e-9, 1 << 28)
    assert lowest_bound(telemetry, TPOT.name, ROUTE) == 0.000256


def test_pools_beyond_the_bound_share_one_tally() -> None:
    telemetry = Telemetry()
    tallies = [telemetry.pool(f"ai/{number}") for number in range(MAX_SERIES + 2)]
    assert tallies[-1] is tallies[-2]
    assert tallies[0] is telemetry.pool("ai/0")


# --- the last five minutes ---


def exact_p99_ms(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1] * 1000


@settings(deadline=None)
@given(st.lists(st.floats(min_value=0.002, max_value=400), min_size=1, max_size=300))
def test_the_99th_percentile_is_right_within_its_bins(values: list[float]) -> None:
    recent = Recent()
    for number, seconds in enumerate(values):
        recent.add(number / 10, seconds)
    assert recent.p99_ms(30.0) == pytest.approx(exact_p99_ms(values), rel=0.035, abs=0.51)


def test_values_older_than_five_minutes_leave() -> None:
    recent = Recent()
    recent.add(1000.0, 10.0)
    recent.add(1200.0, 0.1)
    assert recent.p99_ms(1210.0) > 9_000
    assert recent.p99_ms(1299.0) > 9_000, "a value counts for at least five minutes"
    assert recent.p99_ms(1331.0) == pytest.approx(100, rel=0.04)
    assert recent.p99_ms(1531.0) == 0


def test_traffic_without_a_pause_keeps_no_more_than_the_last_parts() -> None:
    recent = Recent()
    recent.add(0.0, 100.0)
    for second in range(1, 1000):
        recent.add(float(second), 0.01)
    assert len(recent._past) <= 10
    assert recent.p99_ms(1000.0) == 10


def test_a_latency_below_a_millisecond_is_told_apart_from_no_data() -> None:
    recent = Recent()
    assert recent.p99_ms(5.0) == 0
    recent.add(5.0, 0.0)
    assert recent.p99_ms(5.0) == 1


@settings(deadline=None)
@given(SECONDS, SECONDS)
def test_a_stream_is_remembered_like_a_value_that_is_added(ttft: float, between: float) -> None:
    telemetry, first, gap = Telemetry(), Recent(), Recent()
    telemetry.series("support", POOL, "small", "Standard").streamed(7.0, ttft, between * 4, 5)
    first.add(7.0, ttft)
    gap.add(7.0, between)
    tally = telemetry.pool(POOL)
    assert (tally.ttft.p99_ms(8.0), tally.tpot.p99_ms(8.0)) == (first.p99_ms(8.0), gap.p99_ms(8.0))


# --- the text ---


@settings(deadline=None)
@given(st.text(), st.text())
@example("\\n", '\\"')
def test_any_label_value_comes_back_as_it_was(version: str, endpoints: str) -> None:
    telemetry = Telemetry()
    telemetry.read(CONFIG_INFO, lambda: [((version, endpoints), 1)])
    labels = {"version": version, "endpoints_version": endpoints}
    assert value(telemetry, "fairlead_config_info", labels) == 1


def test_every_family_says_what_it_is_once() -> None:
    telemetry = Telemetry()
    telemetry.read(ACCESS_LOG_DROPPED, lambda: [((), 3)])
    telemetry.renewals.add(("ok",))
    telemetry.series("support", POOL, "small", "Standard").stages(0.1, 0.1, 0.1, 0.1)
    text = b"".join(telemetry.render()).decode()
    for metric in METRICS:
        assert text.count(f"# TYPE {metric.name} {metric.kind}\n") <= 1
    assert "# TYPE fairlead_access_log_dropped_total counter\nfairlead_access_log_dropped_total 3.0\n" in text
    assert 'fairlead_lease_renewals_total{result="ok"} 1.0\n' in text
    assert text.endswith("\n")


def test_labels_are_written_in_alphabetical_order() -> None:
    metric = Metric("x_total", "counter", "X.", ("pool", "kind"))
    assert metric.sample(("a/b", "output"), 2) == 'x_total{kind="output",pool="a/b"} 2.0\n'


def test_names_are_unique_and_end_as_their_type_asks() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert (metric.buckets is not None) == (metric.kind == "histogram")
        assert metric.name.startswith("fairlead_")
