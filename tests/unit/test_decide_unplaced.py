"""The scheduler's messages in words: each first text is what Kubernetes 1.36's scheduler writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.unplaced import unplaced_text

H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
TAIL = (
    "no new claims to deallocate, preemption: 0/7 nodes are available: 7 No preemption victims found for incoming pod."
)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            (
                "0/7 nodes are available: 4 node(s) didn't match Pod's node affinity/selector, "
                f"3 Insufficient nvidia.com/gpu. {TAIL}"
            ),
            (
                "none of 7 nodes takes it: 4 lack nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3, "
                "3 have too little nvidia.com/gpu free"
            ),
        ),
        (
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            "the only node does not take it: 1 has too little nvidia.com/gpu free",
        ),
        (
            (
                "0/3 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}, "
                "2 node(s) were unschedulable."
            ),
            (
                "none of 3 nodes takes it: 1 has taint nvidia.com/gpu=present, which it does not tolerate, "
                "2 are cordoned"
            ),
        ),
        (
            "0/3 nodes are available: 1 Too many pods, 2 node(s) had untolerated taint(s).",
            ("none of 3 nodes takes it: 1 has as many pods as it may have, 2 have taints that it does not tolerate"),
        ),
        (
            '0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: }. preemption: none, "x"',
            "the only node does not take it: 1 has taint dedicated, which it does not tolerate",
        ),
        (
            '0/2 nodes are available: persistentvolumeclaim "models" not found.',
            'none of 2 nodes takes it: persistentvolumeclaim "models" not found',
        ),
        ("0/2 nodes are available: 2 something new.", "none of 2 nodes takes it: 2 something new"),
        ("no nodes available to schedule pods", "the cluster has no node"),
        ("Scheduling is blocked due to non-empty scheduling gates", None),
    ],
)
def test_each_reason_names_what_lacks_on_how_many_nodes(message: str, words: str | None) -> None:
    assert unplaced_text(message, H100) == (words or message)


def test_without_a_node_selector_it_is_the_affinity_that_matches_no_node() -> None:
    message = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
    assert unplaced_text(message) == "none of 2 nodes takes it: 2 lack the labels of its node affinity"


@given(st.text())
def test_no_message_is_too_odd_for_it(message: str) -> None:
    unplaced_text(message, H100)
    unplaced_text(f"0/4 nodes are available: {message}", H100)
