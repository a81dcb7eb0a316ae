"""What keeps pods from being made and from serving, in words."""

from typing import Any

import pytest

from fairlead_operator.status.pods import pod_text, refusal_text
from tests.builders.decisions import pod

QUOTA = (
    'pods "chat-8b-h100-5d7-x" is forbidden: exceeded quota: gpu, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=6, limited: requests.nvidia.com/gpu=6"
)


def deployment(message: str, status: str = "True") -> dict[str, Any]:
    return {"status": {"conditions": [{"type": "ReplicaFailure", "status": status, "message": message}]}}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (deployment(QUOTA), "ResourceQuota gpu allows 6 nvidia.com/gpu and 6 are used."),
        (
            deployment('admission webhook "images.example" denied the request: no latest tag.'),
            'The API server refuses more pods: admission webhook "images.example" denied the request: no latest tag.',
        ),
        (deployment(QUOTA, "False"), ""),
        ({}, ""),
        ({"status": {"conditions": [{"type": "Available", "status": "False", "message": "x"}]}}, ""),
    ],
)
def test_what_the_api_server_refuses_is_told_with_its_amounts(found: dict[str, Any], text: str) -> None:
    assert refusal_text(found) == text


def test_an_engine_that_ended_without_an_error_code_is_in_trouble_too() -> None:
    body = pod(
        "a",
        ready=False,
        waiting={"reason": "CrashLoopBackOff"},
        ended={"exitCode": 0, "reason": "Completed", "message": "INFO: Shutting down\nEngineDeadError: core died\n"},
    )
    assert pod_text(body) == "Pod a container engine ended 3 times (exit code 0: EngineDeadError: core died)."


def test_a_pod_without_trouble_has_no_text() -> None:
    assert pod_text(pod()) == ""
