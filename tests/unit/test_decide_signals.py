"""Pods, nodes and routers' reports as facts."""

from typing import Any

import pytest

from fairlead_operator.decide.facts import live_pods, pod_fact
from fairlead_operator.decide.signals import Load, Missing, Report, Router, pool_load
from fairlead_router.contract import PoolSignals, Signals
from tests.builders.decisions import NOW, pod, pod_object

POOL = "a/chat"
GATEWAY = Router("fairlead/gateway-1")
SIDECAR = Router("a/chat-1", POOL)


def report(router: Router, age_ms: int = 1000, draining: bool = False, **numbers: int) -> tuple[str, Report]:
    pools = (PoolSignals(pool=POOL, **numbers),)
    signals = Signals(router=router.router, config_version="", endpoints_version="", draining=draining, pools=pools)
    return router.router, Report(router.router, NOW - age_ms, signals)


def test_running_is_split_into_slots_and_waiting_and_held_is_added() -> None:
    reports = dict([report(GATEWAY, held=3, last_request_ms=7), report(SIDECAR, running=6, peak_running=9)])
    assert pool_load(POOL, 4, [GATEWAY, SIDECAR], reports, NOW) == Load(4, 2, 3, 12, 7)


def test_a_stale_router_makes_the_load_incomplete_and_a_lower_bound() -> None:
    reports = dict([report(GATEWAY, held=3), report(SIDECAR, age_ms=15_001, running=6)])
    load = pool_load(POOL, 4, [GATEWAY, SIDECAR], reports, NOW)
    assert (load.demand, load.missing) == (3, (Missing("a/chat-1", NOW - 15_001),))


def test_a_router_that_never_answered_is_missing_since_never() -> None:
    reports = {"a/chat-1": Report("a/chat-1", NOW, None)}
    assert pool_load(POOL, 4, [SIDECAR], reports, NOW).missing == (Missing("a/chat-1", 0),)


def test_without_any_router_nothing_is_known() -> None:
    assert not pool_load(POOL, 4, [], {}, NOW).complete


def test_a_silent_sidecar_of_another_pool_does_not_matter_but_what_it_holds_does() -> None:
    other = Router("a/other-1", "a/other")
    reports = dict([report(GATEWAY), report(SIDECAR), report(other, held=2)])
    assert pool_load(POOL, 4, [GATEWAY, SIDECAR, other], reports, NOW).held == 2
    del reports["a/other-1"]
    assert pool_load(POOL, 4, [GATEWAY, SIDECAR, other], reports, NOW).complete


@pytest.mark.parametrize("router", [Router("a/chat-1", POOL, terminating=True), SIDECAR])
def test_requests_at_a_leaving_engine_ask_for_no_other_replica(router: Router) -> None:
    reports = dict([report(GATEWAY), report(router, draining=True, running=6, held=1)])
    assert pool_load(POOL, 4, [GATEWAY, router], reports, NOW).demand == 1


def test_a_ready_pod() -> None:
    fact = pod()
    assert (fact.key, fact.pool, fact.variant) == ("ai-platform/chat-8b-h100-2mwq8", "ai-platform/chat-8b", "h100")
    assert fact.ready
    assert fact.router_ready
    assert fact.scheduled_ms == NOW - 3_600_000
    assert fact.trouble is None
    assert live_pods([fact], "ai-platform/chat-8b") == (fact,)
    assert live_pods([fact], "ai-platform/other") == ()


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"unscheduled": "0/3 nodes are available"}, "Pending", "0/3 nodes are available"),
        ({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}, "ImagePull", "image vllm:1: not found"),
        ({"waiting": {"reason": "CreateContainerConfigError", "message": "no secret"}}, "Config", "no secret"),
        (
            {"waiting": {"reason": "CrashLoopBackOff"}, "ended": {"exitCode": 1, "message": "no such model"}},
            "CrashLoop",
            "exit code 1: no such model",
        ),
    ],
)
def test_what_keeps_a_pod_from_serving(fields: dict[str, Any], kind: str, message: str) -> None:
    trouble = pod(ready=False, **fields).trouble
    assert trouble is not None
    assert (trouble.kind, trouble.message) == (kind, message)


def test_the_engines_own_last_line_is_preferred() -> None:
    body = pod_object(ready=False, waiting={"reason": "CrashLoopBackOff"}, ended={"exitCode": 1})
    fact = pod_fact(body, crash_text="OSError: acme/nothing is not a local folder\n")
    assert fact.trouble is not None
    assert fact.trouble.message == "exit code 1: OSError: acme/nothing is not a local folder"


def test_long_last_words_are_cut() -> None:
    body = pod_object(ready=False, waiting={"reason": "CrashLoopBackOff"}, ended={"exitCode": 1})
    fact = pod_fact(body, crash_text="x" * 5000)
    assert fact.trouble is not None
    assert len(fact.trouble.message) < 500
