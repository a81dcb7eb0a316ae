"""Which routers are asked about a pool: those of which one could learn something, and no others."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.capacity import is_busy
from fairlead_operator.decide.signals import Report, Router, pool_load, told_of
from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.reconcile.context import Telling, Told, counted, routers_of, sidecars_by_pool
from fairlead_router.contract import PoolSignals, Signals
from tests.builders.decisions import NOW, pod

POOLS = ("ai-platform/a", "ai-platform/b", "team-a/a")
PLATFORM = ("ai-platform", "fairlead")
SIDECARS = tuple(f"{pool.partition('/')[0]}/{pool.partition('/')[2]}-{number}" for pool in POOLS for number in range(2))
GATEWAYS = ("fairlead/gateway-0", "fairlead/gateway-1")

signals = st.builds(
    PoolSignals,
    pool=st.sampled_from(POOLS),
    running=st.integers(0, 9),
    held=st.integers(0, 9),
    peak_running=st.integers(0, 9),
    last_request_ms=st.integers(0, NOW),
    ttft_ms_p99=st.integers(0, 999),
)
told = st.dictionaries(st.sampled_from(SIDECARS + GATEWAYS), st.lists(signals, max_size=3))


def reported(pools: Mapping[str, list[PoolSignals]], age_ms: int = 0) -> dict[str, Report]:
    return {
        router: Report(
            router, NOW - age_ms, Signals(router=router, config_version="", endpoints_version="", pools=tuple(said))
        )
        for router, said in pools.items()
    }


def sidecar(name: str, pool: str = POOLS[0]) -> Router:
    return Router(name, pool, platform=name.partition("/")[0] in PLATFORM)


ALL = (
    *(Router(name) for name in GATEWAYS),
    *(sidecar(name, POOLS[number // 2]) for number, name in enumerate(SIDECARS)),
)


@given(said=told, pool=st.sampled_from(POOLS), age_ms=st.sampled_from([0, 60_000]), slots=st.integers(1, 8))
def test_the_others_would_have_had_nothing_to_say(
    said: dict[str, list[PoolSignals]], pool: str, age_ms: int, slots: int
) -> None:
    reports = reported(said, age_ms)
    gateways = [one for one in ALL if not one.pool]
    few = (*gateways, *sidecars_by_pool(ALL, reports).get(pool, ()))
    assert set(few) <= set(ALL)
    load = pool_load(pool, slots, ALL, reports, NOW)
    assert pool_load(pool, slots, few, reports, NOW) == load
    assert is_busy(pool, slots, few, load) == is_busy(pool, slots, ALL, load)
    slowest = [max((one.ttft_ms_p99 for one in told_of(pool, some, reports, NOW)), default=0) for some in (few, ALL)]
    assert slowest[0] == slowest[1]


def test_whoever_is_not_believed_is_not_asked_and_takes_no_room() -> None:
    liar = sidecar("team-a/a-0", "team-a/a")
    reports = reported({liar.router: [PoolSignals(pool=f"ai-platform/{number}", held=9) for number in range(50)]})
    assert sidecars_by_pool([liar], reports) == {"team-a/a": [liar]}


def test_a_newer_snapshot_and_newer_reports_are_looked_at() -> None:
    telling, key = Telling(PLATFORM), "ai-platform/other"
    first = Snapshot(pods=(pod("one"),))
    assert telling.of(first, {}, key) == ()
    reports = reported({"ai-platform/one": [PoolSignals(pool=key, held=1)]})
    telling.forget()
    (found,) = telling.of(first, reports, key)
    assert found.router == "ai-platform/one"
    second = Snapshot(pods=(pod("one"), pod("two")))
    assert [one.router for one in telling.of(second, reports, "ai-platform/chat-8b")] == [
        one.router for one in routers_of(second, PLATFORM)
    ]


def answer(router: str, version: str, at_ms: int = NOW) -> Report:
    return Report(router, at_ms, Signals(router=router, config_version=version, endpoints_version=""))


def test_routers_are_counted_by_what_they_have_and_those_that_leave_are_not() -> None:
    names = ("ns/a", "ns/b", "ns/old", "ns/silent", "ns/stale", "other/a")
    routers = [*(Router(name, "ns/pool") for name in names), Router("ns/leaving", "ns/pool", terminating=True)]
    versions = {"ns/a": "v2", "ns/b": "v2", "ns/old": "v1", "other/a": "v2"}
    reports = {name: answer(name, version) for name, version in versions.items()}
    reports |= {"ns/stale": answer("ns/stale", "v2", NOW - 60_000)}
    found = counted(routers, Told(names, reports, {}), NOW)
    assert [(one.namespace, one.has.config_version if one.has else None, one.count) for one in found] == [
        ("ns", "v2", 2),
        ("ns", "v1", 1),
        ("ns", None, 2),
        ("other", "v2", 1),
    ]
    assert all(one.heard for one in found)


def test_a_newcomer_is_one_until_it_was_asked_with_a_configuration() -> None:
    routers = [Router(f"ns/{name}") for name in ("asked", "silent", "early", "new", "unknown")]
    reports = {"ns/asked": answer("ns/asked", "v1"), "ns/early": answer("ns/early", "")}
    known = {name: answer(name, "v3").signals for name in ("ns/asked", "ns/silent", "ns/early", "ns/new")}
    newcomers = {name: told for name, told in known.items() if told is not None}
    found = counted(routers, Told({"ns/asked", "ns/silent", "ns/early"}, reports, newcomers), NOW)
    assert [(one.heard, one.has.config_version if one.has else None, one.count) for one in found] == [
        (True, "v1", 1),
        (True, None, 2),
        (False, "v3", 2),
    ]
