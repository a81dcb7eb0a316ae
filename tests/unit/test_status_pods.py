"""What keeps pods from being made and from serving, in words."""

from typing import Any

import pytest

from fairlead_operator.decide.facts import drained_pods
from fairlead_operator.status.events import events_of_drained
from fairlead_operator.status.pods import pod_text, refusal_text
from tests.builders.decisions import NOW, pod

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


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (
            '{"requests":61,"tookS":191.6,"timeoutS":600.0}',
            ("Normal", "DrainFinished"),
            "chat-8b-h100-2mwq8: 61 requests ended in 3m12s of 10m, 0 cut",
        ),
        (
            '{"requests":1,"tookS":0.2,"timeoutS":30,"unknown":1}',
            ("Normal", "DrainFinished"),
            "chat-8b-h100-2mwq8: 1 request ended in 0s of 30s, 0 cut",
        ),
        (
            '{"requests":61,"left":2,"tookS":600.04,"timeoutS":600.0}',
            ("Warning", "DrainTimedOut"),
            (
                "chat-8b-h100-2mwq8: 2 of 61 requests still ran after 10m (drainTimeout). The engine got 15s more; "
                "what it did not finish then was cut, and is charged for what ran"
            ),
        ),
    ],
)
def test_how_the_requests_of_a_pod_that_went_ended_is_told(words: str, kind: tuple[str, str], text: str) -> None:
    (event,) = events_of_drained(drained_pods([pod(last_words=words)], "ai-platform/chat-8b", NOW))
    assert ((event.type, event.reason), event.message) == (kind, text)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "Traceback",
        "[]",
        '{"requests":"many"}',
        '{"requests":0,"tookS":0.0,"timeoutS":600.0}',
        '{"requests":1,"left":2,"tookS":1,"timeoutS":600}',
        '{"requests":1,"left":-1,"tookS":1,"timeoutS":600}',
        '{"requests":1,"tookS":1e308,"timeoutS":600}',
        '{"requests":1,"tookS":-1,"timeoutS":600}',
        '{"requests":1,"tookS":1,"timeoutS":600',
    ],
)
def test_last_words_that_say_nothing_of_a_drain_are_none(words: str) -> None:
    assert drained_pods([pod(last_words=words)], "ai-platform/chat-8b", NOW) == ()


def test_a_drain_is_news_for_five_minutes_and_of_its_own_pool() -> None:
    gone = pod(last_words='{"requests":61,"tookS":1,"timeoutS":600}')
    assert drained_pods([gone, pod("runs")], "ai-platform/chat-8b", NOW + 300_000) == (gone,)
    assert drained_pods([gone], "ai-platform/chat-8b", NOW + 301_000) == ()
    assert drained_pods([gone], "ai-platform/other", NOW) == ()
