"""What OpenCost says of nodes: settings, queries, answers, how long they hold, and what a unit of a node costs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.facts import NodeFact
from fairlead_operator.decide.node_prices import (
    HOUR_MS,
    MAX_NODES,
    NodePrice,
    NodePrices,
    OpenCostSource,
    merge,
    parse_source,
    query,
    read_usd,
    share_of_node,
    still_holding,
)
from fairlead_operator.decide.pricing import PriceList, VariantHardware, parse_prices, price_on, price_variant
from tests.builders.decisions import NOW, USD, pod

LISTED = """
accelerators:
- {resourceName: nvidia.com/gpu, nodeSelector: {product: H100}, perHour: '2.95', effectiveFrom: 2026-10-01, source: c-1}
"""
H100 = VariantHardware("h100", "nvidia.com/gpu", {}, 1000)
CPUS = VariantHardware("cpu", "cpu", {}, 1500)
EIGHT = NodePrice(40 * USD, 3 * USD, NOW, NOW)
PLAIN = NodePrice(USD, 0, NOW, NOW)


def gpu_node(name: str = "gpu-1", **resources: str) -> NodeFact:
    return NodeFact(name, {}, {"cpu": "96", "memory": "1Ti", "nvidia.com/gpu": "8", **resources})


def sample(node: str, usd: str) -> dict[str, Any]:
    return {"metric": {"node": node}, "value": [1.0, usd]}


def with_nodes(text: str, **nodes: NodePrice) -> PriceList:
    listed = parse_prices(text)
    named = {name.replace("_", "-"): price for name, price in nodes.items()}
    return PriceList(listed.accelerators, listed.seeds, (), None, NodePrices(named, "OpenCost has no price for it"))


def test_the_source_is_read_from_the_price_list() -> None:
    text = "openCost: {url: 'https://p:9/x/', matchers: {cluster: a}, caFile: /ca, headersDir: /h, keepMinutes: 5}"
    assert parse_prices(text).source == OpenCostSource("https://p:9/x", (("cluster", "a"),), "/ca", "/h", 300_000)
    assert parse_prices("").source is None


@pytest.mark.parametrize(
    "document",
    [
        *[7, {}, {"url": "p:9090"}, {"url": "ftp://p"}, {"url": "http://me:pw@p"}, {"url": "http://p?x"}],
        *[{"url": "http://[::1"}, {"url": "http://p:99999"}, {"url": "http://p", "matchers": ["a"]}],
        *[{"url": "http://p", "matchers": {"a-b": "c"}}, {"url": "http://p", "matchers": {"a": "x" * 300}}],
        *[{"url": "http://p", "keepMinutes": 0}, {"url": "http://p", "keepMinutes": True}],
    ],
)
def test_a_source_that_cannot_be_used_is_named_and_ends_nothing(document: Any) -> None:
    with pytest.raises(ValueError, match="openCost"):
        parse_source(document)
    found = parse_prices(f"{LISTED}\nopenCost: {document!r}")
    assert found.source is None
    assert found.problems[0].path == "openCost"
    assert len(found.accelerators) == 1


def test_a_query_names_the_metric_and_quotes_what_the_series_must_have() -> None:
    source = OpenCostSource("http://p", (("cluster", 'a"} or up{x="'), ("env", "b\\")))
    assert query("m", source) == 'max by (node) (m{cluster="a\\"} or up{x=\\"",env="b\\\\"})'
    assert query("m", OpenCostSource("http://p")) == "max by (node) (m{})"


def test_amounts_are_read_to_the_micro_usd_and_what_is_no_price_is_left_out() -> None:
    told = {
        "a": "2.95",
        "b": "0.0000006",
        "c": "NaN",
        "d": "+Inf",
        "e": "-1",
        "f": "1e3",
        "g": "1e9",
        "h": "x",
        "i": "0",
    }
    samples = [sample(node, usd) for node, usd in told.items()]
    assert read_usd(samples) == {"a": 2_950_000_000, "b": 0, "f": 1000 * USD, "i": 0}
    assert read_usd([sample("a", "3.2000005"), sample("b", "3.2000015")]) == {"a": 3_200_000_000, "b": 3_200_002_000}


@pytest.mark.parametrize(
    "answer",
    [None, {}, "x", [1], [{"metric": {}, "value": [1, "1"]}], [{"metric": {"node": "a"}}], [{}] * (MAX_NODES + 1)],
)
def test_what_is_no_instant_vector_by_node_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"no sample|no list"):
        read_usd(answer)


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=50))))
def test_whatever_a_sample_says_amounts_are_whole_micro_usd_in_bounds(pairs: list[tuple[str, str]]) -> None:
    found = read_usd([sample(node, usd) for node, usd in pairs])
    assert all(nano % 1000 == 0 and 0 <= nano <= 100_000 * USD for nano in found.values())


def test_a_nodes_price_changes_at_most_once_an_hour() -> None:
    first = merge({}, {"a": USD}, {"a": 1}, NOW)
    soon = merge(first, {"a": 2 * USD}, {"a": 1}, NOW + HOUR_MS - 1)
    assert soon["a"] == NodePrice(USD, 1, NOW, NOW + HOUR_MS - 1)
    later = merge(soon, {"a": 2 * USD}, {"a": 1}, NOW + HOUR_MS)
    assert later["a"] == NodePrice(2 * USD, 1, NOW + HOUR_MS, NOW + HOUR_MS)


@pytest.mark.parametrize(("whole", "each"), [({"a": 0}, {"a": 1}), ({"a": USD}, {}), ({"a": USD}, {"a": 0}), ({}, {})])
def test_a_node_that_lost_its_cost_keeps_what_it_had_until_that_is_too_old(
    whole: dict[str, int], each: dict[str, int]
) -> None:
    before = {"a": NodePrice(8 * USD, USD, NOW, NOW)}
    after = merge(before, whole, each, NOW + 2 * HOUR_MS)
    assert after == before
    assert still_holding(after, HOUR_MS, NOW + HOUR_MS - 1) == before
    assert still_holding(after, HOUR_MS, NOW + HOUR_MS) == {}


def test_only_so_many_nodes_are_kept_those_heard_of_last() -> None:
    many = {f"n{number}": NodePrice(1, 1, NOW, NOW + number) for number in range(MAX_NODES + 1)}
    kept = still_holding(many, 10 * HOUR_MS, NOW)
    assert len(kept) == MAX_NODES
    assert "n0" not in kept


def test_an_accelerator_bears_its_share_of_the_whole_node() -> None:
    prices = with_nodes("", gpu_1=EIGHT)
    assert price_on(prices, H100, gpu_node(), NOW) == 5 * USD
    found = price_variant(prices, H100, [pod()], [gpu_node()], NOW)
    assert found.source == "OpenCost: 40.000000 USD an hour for node gpu-1 / 8 nvidia.com/gpu"
    assert found.problem == ""


def test_a_cpu_bears_its_share_of_a_node_without_accelerators() -> None:
    assert price_on(with_nodes("", n=PLAIN), CPUS, NodeFact("n", {}, {"cpu": "3920m"}), NOW) == 382_653_062


@pytest.mark.parametrize(
    ("price", "node", "resource"),
    [
        (PLAIN, gpu_node(), "nvidia.com/gpu"),
        (EIGHT, gpu_node(), "cpu"),
        (EIGHT, gpu_node(), "amd.com/gpu"),
        (EIGHT, gpu_node(**{"nvidia.com/mig-1g.10gb": "7"}), "nvidia.com/gpu"),
        (NodePrice(0, 1, NOW, NOW), gpu_node(), "nvidia.com/gpu"),
    ],
)
def test_a_node_that_cannot_be_shared_out_has_no_price(price: NodePrice, node: NodeFact, resource: str) -> None:
    assert share_of_node(price, node, resource, "cpu") is None


def test_a_quantity_that_is_no_number_leaves_the_node_without_a_price() -> None:
    assert price_on(with_nodes("", n=PLAIN), CPUS, NodeFact("n", {}, {"cpu": "lots"}), NOW) is None


def test_the_price_list_holds_before_open_cost() -> None:
    node = NodeFact("gpu-1", {"product": "H100"}, {"nvidia.com/gpu": "8"})
    prices = with_nodes(LISTED, gpu_1=EIGHT)
    assert price_variant(prices, H100, [pod()], [node], NOW).source == "c-1"
    assert price_on(prices, H100, node, NOW) == 2_950_000_000


def test_a_variant_on_nodes_of_both_sources_costs_the_dearest() -> None:
    listed = NodeFact("gpu-2", {"product": "H100"}, {"nvidia.com/gpu": "8"})
    prices = with_nodes(LISTED, gpu_1=EIGHT)
    found = price_variant(prices, H100, [pod(), pod(node="gpu-2")], [gpu_node(), listed], NOW)
    assert found.replica == 5 * USD


def test_without_either_the_problem_says_what_both_have() -> None:
    found = price_variant(with_nodes(LISTED), H100, [pod()], [gpu_node()], NOW)
    assert found.problem == (
        "Variant h100 has no price: no entry of the price list (1 entries, newest 2026-10-01) matches nvidia.com/gpu "
        "on node gpu-1, OpenCost has no price for it."
    )
