"""The price list, the price of a variant, rate cards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.facts import NodeFact, node_fact
from fairlead_operator.decide.pricing import (
    PriceList,
    Seeds,
    VariantHardware,
    VariantPrice,
    half_even,
    hardware_of,
    parse_cpu_milli,
    parse_prices,
    price_on,
    price_variant,
    seeds_for,
)
from fairlead_operator.decide.rates import (
    Rates,
    card_from_seeds,
    card_of,
    card_row,
    dearest,
    next_card,
    pool_rates,
    wire_card,
)
from tests.builders.decisions import NOW, pod
from tests.builders.resources import make_pool

LIST = """
accelerators:
- {resourceName: nvidia.com/gpu, nodeSelector: {product: H100}, perHour: '2.95', effectiveFrom: 2026-10-01, source: c-1}
- {resourceName: nvidia.com/gpu, nodeSelector: {product: H100}, perHour: '9.00', effectiveFrom: 2027-01-01, source: c-2}
- {resourceName: nvidia.com/gpu, nodeSelector: {product: H100}, perHour: "3.10", effectiveFrom: 2026-09-01, source: c-0}
- {resourceName: nvidia.com/gpu, nodeSelector: {product: H100, zone: eu}, perHour: "3.50", effectiveFrom: "2026-01-01"}
- {resourceName: cpu, perHour: "0.04", effectiveFrom: "2026-01-01", source: cores}
rateCard:
  seeds:
    default: {promptTokensPerSecond: 1000, cachedTokensPerSecond: 10000, outputTokensPerSecond: 100}
    H100: {promptTokensPerSecond: 27777, cachedTokensPerSecond: 277777, outputTokensPerSecond: 9259}
"""
PRICES = parse_prices(LIST)
H100 = VariantHardware("h100", "nvidia.com/gpu", {"product": "H100"}, 1000)


def node(name: str = "gpu-1", **labels: str) -> NodeFact:
    return NodeFact(name, labels, {"nvidia.com/gpu": "8", "cpu": "96"})


def test_the_list_is_read_without_problems() -> None:
    assert PRICES.problems == ()
    assert len(PRICES.accelerators) == 5
    assert str(PRICES.newest) == "2027-01-01"


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ("accelerators: [{perHour: 1.55, effectiveFrom: 2026-01-01}]", "accelerators[0]", "quoted decimal"),
        ("accelerators: [{perHour: '1.55', effectiveFrom: soon}]", "accelerators[0]", "date such as"),
        ("accelerators: [{perHour: '-1', effectiveFrom: 2026-01-01}]", "accelerators[0]", "not an amount"),
        ("accelerators: [3]", "accelerators[0]", "not a mapping"),
        ("accelerators: [{nodeSelector: x, perHour: 1, effectiveFrom: 2026-01-01}]", "accelerators[0]", "map labels"),
        ("accelerators: {}x", "", "not YAML"),
        ("accelerators: 7", "accelerators", "must be a list"),
        ("- 1", "", "must be a mapping"),
        ("rateCard: {seeds: {a: {promptTokensPerSecond: 0}}}", "rateCard.seeds.a", "from 1 to"),
        ("rateCard: {seeds: [1]}", "rateCard.seeds", "must map"),
        ("rateCard: {seeds: {a: 4}}", "rateCard.seeds.a", "not a mapping"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, where: str, part: str) -> None:
    problem = parse_prices(text).problems[0]
    assert problem.path == where
    assert part in problem.message


def test_an_entry_beside_a_broken_one_still_holds() -> None:
    good = "{resourceName: cpu, perHour: '1', effectiveFrom: 2026-01-01}"
    assert len(parse_prices(f"accelerators: [3, {good}]").accelerators) == 1


def test_the_same_entry_twice_is_told() -> None:
    entry = "{resourceName: cpu, perHour: '1', effectiveFrom: 2026-01-01}"
    assert "twice" in parse_prices(f"accelerators: [{entry}, {entry}]").problems[0].message


def test_a_date_that_no_calendar_has_is_named_and_ends_nothing() -> None:
    broken = parse_prices("accelerators: [{resourceName: cpu, perHour: '1', effectiveFrom: 2026-13-01}]")
    assert "month must be in 1..12" in broken.problems[0].message


def test_an_empty_list_has_no_prices() -> None:
    assert parse_prices("") == PriceList(seeds={})


def test_the_newest_entry_in_force_holds() -> None:
    assert price_on(PRICES, H100, node(product="H100"), NOW) == 2_950_000_000


def test_the_most_specific_entry_wins_over_a_newer_one() -> None:
    assert price_on(PRICES, H100, node(product="H100", zone="eu"), NOW) == 3_500_000_000


def test_a_replica_of_two_accelerators_costs_twice_as_much() -> None:
    double = VariantHardware("h100", "nvidia.com/gpu", {"product": "H100"}, 2000)
    assert price_on(PRICES, double, node(product="H100"), NOW) == 5_900_000_000


def test_a_variant_costs_what_its_pods_nodes_cost() -> None:
    nodes = [node(product="H100"), node("gpu-2", product="H100", zone="eu")]
    assert price_variant(PRICES, H100, [pod()], nodes, NOW) == VariantPrice("h100", 2_950_000_000, 2_950_000_000, "c-1")


def test_without_pods_the_dearest_matching_node_counts() -> None:
    nodes = [node(product="H100"), node("gpu-2", product="H100", zone="eu"), node("other", product="L40S")]
    assert price_variant(PRICES, H100, [], nodes, NOW).replica == 3_500_000_000


def test_without_nodes_the_entry_of_the_same_selector_counts() -> None:
    assert price_variant(PRICES, H100, [], [], NOW).replica == 2_950_000_000


def test_a_pod_on_a_node_without_a_price_leaves_the_variant_without_one() -> None:
    price = price_variant(PRICES, H100, [pod(), pod(node="gpu-2")], [node(product="H100"), node("gpu-2")], NOW)
    assert price.replica is None
    assert price.problem == (
        "Variant h100 has no price: no entry of the price list (5 entries, newest 2027-01-01) matches nvidia.com/gpu "
        "on node gpu-2, OpenCost is not configured."
    )


def test_no_entry_at_all_names_the_selector() -> None:
    h200 = VariantHardware("h200", "nvidia.com/gpu", {"product": "H200"}, 1000)
    assert (
        "matches nvidia.com/gpu on product=H200, OpenCost is not configured."
        in price_variant(PRICES, h200, [], [], NOW).problem
    )


def test_cpu_hardware_is_the_engines_request() -> None:
    engine = {"name": "engine", "resources": {"requests": {"cpu": "1500m"}}}
    pool = make_pool("chat").variant("cpu", accelerator={"resourceName": "cpu"})
    pool = pool.pod_template(spec={"containers": [engine]})
    spec = pool.parsed().spec
    hardware = hardware_of(spec, spec.variants[0])
    assert hardware.milli_units == 1500
    assert price_variant(PRICES, hardware, [], [], NOW).replica == 60_000_000


@pytest.mark.parametrize(
    ("text", "milli"),
    [
        *[("2", 2000), ("0.5", 500), ("250m", 250), (3, 3000), ("x", None), ("0", None), ("NaN", None), ("-1", None)],
        *[("1e99999999", None), ("9E+999999999", None), ("٣", None), ("0.0001", None)],
    ],
)
def test_cpu_quantities(text: object, milli: int | None) -> None:
    assert parse_cpu_milli(text) == milli


def test_seeds_are_found_by_the_selectors_value_then_the_default() -> None:
    assert seeds_for(PRICES, H100) == Seeds(27777, 277777, 9259)
    assert seeds_for(PRICES, VariantHardware("x", "cpu", {}, 1000)) == Seeds(1000, 10000, 100)
    assert seeds_for(PriceList(), H100) is None


def test_a_card_from_seeds_is_the_price_of_a_tokens_time() -> None:
    rates = card_from_seeds(2_950_000_000, Seeds(27777, 277777, 9259))
    assert rates == Rates(29501, 2950, 88502)


def test_a_pool_of_two_variants_is_charged_at_the_dearer_rates() -> None:
    assert dearest([Rates(1, 5, 3), Rates(2, 4, 3)]) == Rates(2, 5, 3)
    assert dearest([]) is None


def test_a_pool_has_no_rates_while_a_variant_has_no_price() -> None:
    priced = {"h100": VariantPrice("h100", 2_950_000_000, 2_950_000_000)}
    assert pool_rates(PRICES, [H100], priced) == Rates(29501, 2950, 88502)
    assert pool_rates(PRICES, [H100], {"h100": VariantPrice("h100", None, None)}) is None


def test_a_card_gets_a_version_only_when_its_rates_change() -> None:
    first = next_card(None, Rates(1, 2, 3), "Seed", NOW)
    assert first is not None
    assert next_card(first, Rates(1, 2, 3), "Seed", NOW + 5) is first
    second = next_card(first, Rates(1, 2, 4), "Seed", NOW + 5)
    assert second is not None
    assert second.version == 2
    assert next_card(second, None, "Seed", NOW) is None
    assert card_of(card_row("a/b", second)) == second
    assert wire_card(second).output_pico == 4


def test_a_node_that_allocates_nothing_of_a_resource_lacks_it() -> None:
    fact = node_fact({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "nvidia.com/gpu": "0"}}})
    assert fact.resources == {"cpu": "2"}


@given(st.integers(0, 10**15), st.integers(1, 10**9))
def test_half_even_is_off_by_at_most_a_half(number: int, divisor: int) -> None:
    assert abs(2 * (half_even(number, divisor) * divisor - number)) <= divisor
