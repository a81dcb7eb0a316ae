"""Variants without room leave the choice to the others for a while."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.placement import AGAIN_MS, LONGEST_WAIT_MS, NoRoom, placeable, without_room
from fairlead_operator.decide.variants import distribute
from tests.builders.decisions import NOW, option, pod

TWENTY_MINUTES = 1_200_000
WORDS = "0/7 nodes are available: 7 Insufficient nvidia.com/gpu."


def pending(name: str, variant: str = "h100") -> PodFact:
    return pod(name, variant=variant, ready=False, unscheduled=WORDS)


def found(pods: list[PodFact], age_ms: int, startup_ms: int = TWENTY_MINUTES) -> dict[str, NoRoom]:
    created = {one.key: NOW - age_ms for one in pods}
    return without_room({}, pods, created, startup_ms, NOW)


def test_pods_without_a_node_past_five_minutes_say_that_their_variant_has_no_room() -> None:
    pods = [pod("a"), pending("b"), pending("c")]
    said = "none of 7 nodes takes it: 7 have too little nvidia.com/gpu free"
    assert found(pods, LONGEST_WAIT_MS) == {"h100": NoRoom(1, NOW + AGAIN_MS, said)}
    assert found(pods, LONGEST_WAIT_MS - 1) == {}


def test_a_shorter_startup_timeout_is_the_deadline() -> None:
    assert "h100" in found([pending("b")], 60_000, startup_ms=60_000)


@pytest.mark.parametrize(
    "fine", [pod("a"), pod("a", ready=False), pod("a", ready=False, unscheduled=WORDS, deleting=True)]
)
def test_a_pod_that_has_a_node_or_leaves_says_nothing_of_room(fine: PodFact) -> None:
    assert found([fine], TWENTY_MINUTES) == {}


def test_it_holds_for_a_while_after_the_pods_are_gone() -> None:
    before = {"h100": NoRoom(1, NOW + 1, "")}
    assert without_room(before, [], {}, TWENTY_MINUTES, NOW) == before
    assert without_room(before, [], {}, TWENTY_MINUTES, NOW + 1) == {}


def test_the_rest_goes_to_a_variant_with_room_though_it_is_dearer() -> None:
    options = (option("cheap", 3, 1), option("dear", 0, 9))
    full = {"cheap": NoRoom(1, NOW + 1, "")}
    assert distribute(3, placeable(options, full)).counts == (("cheap", 1), ("dear", 2))


@pytest.mark.parametrize("other", [option("dear", 2, 9, maximum=2), None])
def test_without_another_variant_pods_wait_for_a_node(other: object) -> None:
    options = (option("cheap", 3, 1), *([option("dear", 2, 9, maximum=2)] if other is not None else []))
    assert placeable(options, {"cheap": NoRoom(1, NOW + 1, "")}) == options


def test_reserved_replicas_stay_wanted() -> None:
    options = (option("cheap", 3, 1, minimum=2), option("dear", 0, 9))
    assert placeable(options, {"cheap": NoRoom(0, NOW + 1, "")})[0].maximum == 2


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 4), st.integers(0, 8))
def test_no_replica_is_lost_by_it(total: int, running: int, minimum: int, held: int) -> None:
    options = (option("cheap", running, 1, minimum=minimum), option("dear", 0, 9))
    split = distribute(total, placeable(options, {"cheap": NoRoom(held, NOW + 1, "")}))
    assert (split.total, split.short) == (total, 0)
