"""Pods, nodes and routers' reports as facts."""

from typing import Any

import msgspec
import pytest

from fairlead_operator.decide.facts import live_pods, pod_fact
from fairlead_operator.decide.last_words import telling_line
from fairlead_operator.decide.signals import Load, Missing, Report, Router, pool_load, told_of
from fairlead_router.contract import EngineSignals, PoolSignals, Signals
from tests.builders.decisions import NOW, pod, pod_object

POOL = "a/chat"
GATEWAY = Router("fairlead/gateway-1")
SIDECAR = Router("a/chat-1", POOL)


def report(router: Router, age_ms: int = 1000, draining: bool = False, **numbers: Any) -> tuple[str, Report]:
    pools = (PoolSignals(pool=POOL, **numbers),)
    signals = Signals(router=router.router, config_version="", endpoints_version="", draining=draining, pools=pools)
    return router.router, Report(router.router, NOW - age_ms, signals)


def test_running_is_split_into_slots_and_waiting_and_held_is_added() -> None:
    reports = dict([report(GATEWAY, held=3, last_request_ms=7), report(SIDECAR, running=6, peak_running=9)])
    assert pool_load(POOL, 4, [GATEWAY, SIDECAR], reports, NOW) == Load(4, 2, 3, 12, 7)


@pytest.mark.parametrize(("told", "split"), [(-1, (4, 2)), (1, (4, 2)), (5, (1, 5)), (99, (0, 6))])
def test_what_an_engine_says_waits_does_not_run_though_a_slot_is_free(told: int, split: tuple[int, int]) -> None:
    router, heard = report(SIDECAR, running=6)
    assert heard.signals is not None
    engine = msgspec.structs.replace(heard.signals, engine=EngineSignals(waiting=told))
    load = pool_load(POOL, 4, [SIDECAR], {router: Report(router, NOW, engine)}, NOW)
    assert (load.running, load.waiting) == split


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


NO_MODEL = """
(APIServer pid=1)     resolved_config_file = cached_file(
(APIServer pid=1)                            ^^^^^^^^^^^^
(APIServer pid=1)   File "/usr/lib/python3/site-packages/transformers/utils/hub.py", line 511, in cached_files
(APIServer pid=1)     raise OSError(
(APIServer pid=1) OSError: acme/nothing is not a local folder and is not a valid model identifier listed on the hub
(APIServer pid=1) If this is a private repository, make sure to pass a token having permission to this repo.
[rank0]:[W1120 11:00:00.1 ProcessGroupNCCL.cpp:1] Warning: destroy_process_group() was not called before exit

"""
NO_MEMORY = """
(EngineCore_DP0 pid=77) ERROR 11-20 11:00:00 [core.py:708] Traceback (most recent call last):
(EngineCore_DP0 pid=77) ERROR 11-20 11:00:00 [core.py:708]   File "core.py", line 699, in run_engine_core
(EngineCore_DP0 pid=77) ERROR 11-20 11:00:00 [core.py:708] ValueError: No available memory for the cache blocks.
(EngineCore_DP0 pid=77) Process EngineCore_DP0:
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)     raise RuntimeError("Engine core initialization failed. "
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (NO_MODEL, "OSError: acme/nothing is not a local folder and is not a valid model identifier listed on the hub"),
        (NO_MEMORY, "ValueError: No available memory for the cache blocks."),
        ("vllm serve: error: unrecognized arguments: --nope\n", "vllm serve: error: unrecognized arguments: --nope"),
        ("torch.OutOfMemoryError: CUDA out of memory.\n", "torch.OutOfMemoryError: CUDA out of memory."),
        ("RuntimeError: Engine core initialization failed.\n", "RuntimeError: Engine core initialization failed."),
        ("first\nlast\n\n", "last"),
        ("  \n", ""),
    ],
)
def test_of_an_engines_last_words_the_telling_line_is_shown(log: str, said: str) -> None:
    assert telling_line(log) == said
    crashed = pod(ready=False, waiting={"reason": "CrashLoopBackOff"}, ended={"exitCode": 1, "message": log})
    assert crashed.trouble is not None
    assert crashed.trouble.message == (f"exit code 1: {said}" if said else "exit code 1")


def test_a_container_that_was_killed_for_memory_says_so() -> None:
    killed = pod(ready=False, waiting={"reason": "CrashLoopBackOff"}, ended={"exitCode": 137, "reason": "OOMKilled"})
    assert killed.trouble is not None
    assert killed.trouble.message == "OOMKilled, exit code 137"


def test_an_engine_that_starts_again_after_a_crash_still_says_why_it_crashed() -> None:
    body = pod_object(ready=False, waiting={}, ended={"exitCode": 1, "message": "OSError: no"})
    body["status"]["containerStatuses"][0]["restartCount"] = 1
    trouble = pod_fact(body).trouble
    assert trouble is not None
    assert (trouble.kind, trouble.message) == ("Exited", "exit code 1: OSError: no")


def test_long_last_words_are_cut() -> None:
    fact = pod(ready=False, waiting={"reason": "CrashLoopBackOff"}, ended={"exitCode": 1, "message": "x" * 5000})
    assert fact.trouble is not None
    assert len(fact.trouble.message) < 500


def test_a_router_of_a_team_is_not_believed_about_pools_of_others() -> None:
    stranger = Router("team/other-1", "team/other", platform=False)
    own = Router("a/other-1", "a/other", platform=False)
    reports = dict([report(GATEWAY, held=1), report(SIDECAR), report(stranger, held=900, last_request_ms=9)])
    load = pool_load(POOL, 4, [GATEWAY, SIDECAR, stranger], reports, NOW)
    assert (load.held, load.peak, load.last_request_ms) == (1, 1, 0)
    assert len(told_of(POOL, [GATEWAY, SIDECAR, stranger], reports, NOW)) == 2
    reports |= dict([report(own, held=2)])
    assert pool_load(POOL, 4, [GATEWAY, SIDECAR, own], reports, NOW).held == 3


def test_what_a_report_says_of_a_pool_is_found_by_its_name_and_the_first_counts() -> None:
    told = Signals(
        router="ai-platform/p",
        config_version="",
        endpoints_version="",
        pools=(PoolSignals(pool="a/x", running=1), PoolSignals(pool="a/y", running=2), PoolSignals(pool="a/x", held=9)),
    )
    report = Report("ai-platform/p", 1, told)
    assert report.of("a/x") == told.pools[0]
    assert report.of("a/y") == told.pools[1]
    assert report.of("a/z") == PoolSignals(pool="a/z")
    assert Report("ai-platform/p", 1, None).of("a/x") == PoolSignals(pool="a/x")
