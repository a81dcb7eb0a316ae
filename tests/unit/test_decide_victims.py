"""Which pods go first when a variant shrinks."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.facts import DELETION_COST, pod_fact
from fairlead_operator.decide.victims import LEAVES, deletion_costs
from tests.builders.decisions import pod, pod_object

H100 = (("h100", 2),)


def key(name: str) -> str:
    return f"ai-platform/{name}"


def test_the_emptiest_pod_goes_first() -> None:
    pods = [pod("a"), pod("b"), pod("c")]
    assert deletion_costs(pods, H100, {key("a"): 9, key("b"): 2, key("c"): 5}) == {key("b"): LEAVES}


def test_nothing_is_marked_while_no_variant_shrinks() -> None:
    assert deletion_costs([pod("a"), pod("b")], H100, {}) == {}
    assert deletion_costs([pod("a"), pod("b"), pod("c", deleting=True)], H100, {}) == {}


def test_a_pod_that_does_not_serve_yet_goes_before_one_that_does() -> None:
    pods = [pod("a"), pod("b", ready=False), pod("c")]
    assert deletion_costs(pods, H100, {key("a"): 0, key("c"): 0}) == {key("b"): LEAVES}


def test_a_pod_whose_load_is_not_known_goes_last() -> None:
    assert deletion_costs([pod("a"), pod("b"), pod("c")], H100, {key("b"): 100, key("c"): 99}) == {key("c"): LEAVES}


def test_of_those_that_run_as_much_the_youngest_goes() -> None:
    young = replace(pod("a"), started_ms=pod("a").started_ms or 0)
    old = replace(pod("b"), started_ms=1)
    assert deletion_costs([old, young], (("h100", 1),), {key("a"): 3, key("b"): 3}) == {key("a"): LEAVES}


def test_other_variants_are_left_alone() -> None:
    pods = [pod("a"), pod("b"), pod("c", variant="l40s")]
    assert deletion_costs(pods, (("h100", 1), ("l40s", 1)), {key("a"): 1, key("b"): 2}) == {key("a"): LEAVES}


def test_a_mark_of_before_is_taken_back_and_one_that_still_holds_is_not_written_again() -> None:
    marked = replace(pod("a"), deletion_cost=LEAVES)
    running = {key("a"): 9, key("b"): 1, key("c"): 5}
    assert deletion_costs([marked, pod("b"), pod("c")], H100, running) == {key("a"): 0, key("b"): LEAVES}
    assert deletion_costs([marked, pod("b")], (("h100", 1),), {key("a"): 0, key("b"): 1}) == {}


def test_a_mark_is_read_from_the_pods_annotation_and_nonsense_is_none() -> None:
    body = pod_object()
    body["metadata"]["annotations"] = {DELETION_COST: "-1"}
    assert pod_fact(body).deletion_cost == LEAVES
    body["metadata"]["annotations"] = {DELETION_COST: "much"}
    assert pod_fact(body).deletion_cost == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.booleans()), max_size=9), st.integers(0, 9))
def test_as_many_are_marked_as_go_and_none_runs_more_than_one_that_stays(
    given_pods: list[tuple[bool, int, bool]], count: int
) -> None:
    pods = [pod(f"p{place}", ready=ready, deleting=gone) for place, (ready, _, gone) in enumerate(given_pods)]
    running = {key(f"p{place}"): load for place, (_, load, _) in enumerate(given_pods)}
    leaving = {name for name, cost in deletion_costs(pods, (("h100", count),), running).items() if cost == LEAVES}
    alive = [one for one in pods if not one.terminating]
    assert len(leaving) == max(0, len(alive) - count)
    loads = {one.key: running[one.key] if one.ready else -1 for one in alive}
    most = max((loads[name] for name in leaving), default=-1)
    assert all(loads[one.key] >= most for one in alive if one.key not in leaving)
