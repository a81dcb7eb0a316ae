"""When Fairlead gives way to whoever else writes a Deployment's replicas."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.second_writer import (
    AGAIN_MS,
    PAUSE_MS,
    ForeignWrites,
    Write,
    noted,
    paused,
    writer_of,
)
from tests.builders.decisions import NOW

OURS = "fairlead-operator"
REPLICAS: dict[str, Any] = {"f:spec": {"f:replicas": {}}}


def write(at_ms: int = NOW, after: int = 5) -> Write:
    return Write("A HorizontalPodAutoscaler (kube-controller-manager)", "chat-8b-h100", 3, after, at_ms)


def owner(manager: str, fields: dict[str, Any] | None = None, **more: str) -> dict[str, Any]:
    return {"manager": manager, "operation": "Update", "fieldsV1": REPLICAS if fields is None else fields, **more}


@pytest.mark.parametrize(
    ("owners", "writer"),
    [
        ([], "Somebody"),
        ([owner(OURS)], "Somebody"),
        ([owner(OURS), owner("kubectl")], "kubectl"),
        ([owner("kubectl-edit", {"f:spec": {"f:paused": {}}})], "Somebody"),
        ([owner("keda", time="2026-11-20T10:00:00Z"), owner("kubectl", time="2026-11-20T11:00:00Z")], "kubectl"),
        (
            [owner("kube-controller-manager", subresource="scale")],
            "A HorizontalPodAutoscaler (kube-controller-manager)",
        ),
        ([{"manager": "x"}, {"fieldsV1": None}], "Somebody"),
    ],
)
def test_the_writer_is_the_newest_other_owner_of_the_replicas(owners: list[dict[str, Any]], writer: str) -> None:
    assert writer_of({"metadata": {"managedFields": owners}}, OURS) == writer


def test_one_write_is_set_back_and_said() -> None:
    known = noted(ForeignWrites(), write(), 1)
    assert not paused(known, 1, NOW)
    assert known.text == (
        "A HorizontalPodAutoscaler (kube-controller-manager) set Deployment chat-8b-h100 from 3 to 5 at 11:00:00Z. "
        "Fairlead sets it back to what it decided, once"
    )


def test_a_second_write_within_ten_minutes_stops_the_scaling_of_the_pool_for_an_hour() -> None:
    known = noted(noted(ForeignWrites(), write(), 1), write(NOW + 15_000), 1)
    assert paused(known, 1, NOW + 15_000 + PAUSE_MS - 1)
    assert not paused(known, 1, NOW + 15_000 + PAUSE_MS)
    assert known.text == (
        "A HorizontalPodAutoscaler (kube-controller-manager) set Deployment chat-8b-h100 from 3 to 5 at 11:00:15Z, "
        "again. Fairlead stops scaling this pool for an hour after the last such write: delete the other writer, or "
        "set spec.replicas for spec.autoscaling and aim it at the ModelPool"
    )


def test_two_writes_that_lie_apart_are_two_slips() -> None:
    known = noted(noted(ForeignWrites(), write(), 1), write(NOW + AGAIN_MS + 1), 1)
    assert not paused(known, 1, NOW + AGAIN_MS + 1)


def test_a_changed_spec_ends_the_pause() -> None:
    known = noted(noted(ForeignWrites(), write(), 1), write(NOW + 15_000), 1)
    assert not paused(known, 2, NOW + 20_000)


def test_a_controller_that_goes_on_writing_prolongs_the_pause_and_is_told_once() -> None:
    first = noted(noted(ForeignWrites(), write(), 1), write(NOW + 15_000), 1)
    later = noted(first, write(NOW + 3_000_000, 7), 1)
    assert later.text == first.text
    assert paused(later, 1, NOW + 3_000_000 + PAUSE_MS - 1)


@given(st.lists(st.integers(0, 4 * PAUSE_MS), max_size=20))
def test_a_pause_never_outlasts_an_hour_after_the_last_write(gaps: list[int]) -> None:
    known, at = ForeignWrites(), NOW
    for gap in gaps:
        at += gap
        known = noted(known, write(at), 1)
    assert not paused(known, 1, at + PAUSE_MS)
