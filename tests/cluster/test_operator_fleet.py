"""The operator with routers, a ledger and a second replica: who has what, who leads, and how pools follow demand."""

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.builders.operator import Process, Release, operator
from tests.builders.resources import Builder, PoolBuilder, make_budget, make_policy, make_pool
from tests.cluster_tools import L40S, eventually, fresh_namespace

pytestmark = pytest.mark.cluster

GPU = "nvidia.com/gpu.product"


class Fleet:
    """A release with routers that say what a test wants."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.cluster = release.cluster
        self.namespace = release.platform

    def apply(self, *builders: Builder) -> None:
        def bare(obj: dict[str, Any]) -> dict[str, Any]:
            return obj | {"metadata": {"name": obj["metadata"]["name"], "namespace": self.namespace}}

        self.cluster.apply(*(bare(builder.obj()) for builder in builders))

    def status(self, kind: str, name: str) -> Any:
        return self.cluster.get(kind, name, "-n", self.namespace).get("status", {})

    def becomes(self, kind: str, name: str, condition: str, wanted: tuple[str, str], seconds: float = 30.0) -> None:
        def now() -> bool:
            found = self.status(kind, name).get("conditions", [])
            return wanted in [(one["status"], one["reason"]) for one in found if one["type"] == condition]

        eventually(now, seconds)

    def config(self, process: Process, namespace: str = "", query: str = "") -> Any:
        """What a router in a namespace is told; of the release's without one."""
        account = "default" if namespace else "fairlead-operator"
        token = self.release.token("fairlead.dev/control", account, namespace)
        return self.release.ask(f"{process.url}/v1/config?{query}", token)

    def pods(self, pool: str) -> dict[str, str]:
        """Address of each running pod of a pool, by namespace/name."""
        items = self.cluster.get("pods", "-n", self.namespace, "-l", f"fairlead.dev/pool={pool}")["items"]
        running = [one for one in items if one["status"].get("podIP") and "deletionTimestamp" not in one["metadata"]]
        return {f"{self.namespace}/{one['metadata']['name']}": one["status"]["podIP"] for one in running}

    def tell(self, process: Process, *pools: str, current: bool = True, gateway: str = "", **signals: Any) -> None:
        """Let the gateway and all routers of these pools answer: with the present configuration, and these figures."""
        answer = self.config(process)
        said = {}
        for pool in pools:
            gateways = {f"{self.release.namespace}/gateway": gateway} if gateway else {}
            for router, address in {**self.pods(pool), **gateways}.items():
                said[address] = {
                    "router": router,
                    "configVersion": answer["version"] if current else "old",
                    "endpointsVersion": answer["endpointsVersion"],
                    "budgetsVersion": answer.get("budgetsVersion", [0, 0]) if current else [0, 0],
                    "maxContextTokens": 4096,
                    "pools": [{"pool": f"{self.namespace}/{pool}", **signals}],
                }
        self.release.routers_file.write_text(json.dumps(said), encoding="utf-8")

    def leader(self) -> str:
        lease = self.cluster.get("lease", "fairlead-operator", "-n", self.release.namespace)
        return str(lease["spec"].get("holderIdentity", ""))


@pytest.fixture
def fleet(release: Release) -> Iterator[Fleet]:
    fleet = Fleet(release)
    yield fleet
    for kind in ("mpool", "rpolicy", "cbudget"):
        release.cluster.kubectl("delete", kind, "--all", "-n", release.platform, "--wait=false")
    release.routers_file.write_text("{}", encoding="utf-8")


@pytest.fixture
def process(release: Release) -> Iterator[Process]:
    with operator(release) as running:
        yield running


def pool(name: str, context: int | None = 8192) -> PoolBuilder:
    made = make_pool(name).variant("l40s", nodeSelector={GPU: L40S}).engine(maxSequences=4)
    return made.engine(maxContextTokens=context) if context else made


def until_ready(fleet: Fleet, name: str, count: int) -> None:
    eventually(lambda: len(fleet.pods(name)) == count)
    eventually(lambda: fleet.status("mpool", name).get("readyReplicas") == count)


def test_a_policy_and_a_budget_are_in_force_only_when_every_router_says_so(fleet: Fleet, process: Process) -> None:
    fleet.apply(pool("chat").replicas(2), make_policy("chat"), make_budget("team").limit(50))
    until_ready(fleet, "chat", 2)
    fleet.becomes("cbudget", "team", "Enforced", ("False", "RoutersLagging"))
    fleet.tell(process, "chat", current=False)
    fleet.becomes("rpolicy", "chat", "Programmed", ("False", "RoutersLagging"))
    fleet.tell(process, "chat")
    fleet.becomes("rpolicy", "chat", "Programmed", ("True", "Programmed"))
    fleet.becomes("cbudget", "team", "Enforced", ("True", "Enforced"))
    assert fleet.status("cbudget", "team")["routers"] == {"total": 2, "enforcing": 2}
    fleet.apply(make_budget("team").limit(40))
    fleet.becomes("cbudget", "team", "Enforced", ("False", "RoutersLagging"))
    eventually(lambda: fleet.status("cbudget", "team")["limit"] == "40.00")
    fleet.tell(process, "chat")
    fleet.becomes("cbudget", "team", "Enforced", ("True", "Enforced"))


def test_a_long_poll_is_answered_when_a_budget_changes_and_not_before(fleet: Fleet, process: Process) -> None:
    fleet.apply(pool("chat").replicas(0), make_budget("team").limit(50))
    eventually(lambda: fleet.status("cbudget", "team").get("limit") == "50.00")
    first = fleet.config(process)
    have = f"have={first['version']}&endpoints={first['endpointsVersion']}"
    again = fleet.config(process, query=f"{have}&wait=1")
    assert "config" not in again
    assert "endpoints" not in again
    fleet.apply(make_budget("team").limit(60))
    changed = fleet.config(process, query=f"{have}&wait=20")
    assert tuple(changed["budgetsVersion"]) > tuple(first["budgetsVersion"])
    assert "config" not in changed


def test_a_router_of_a_team_gets_what_its_namespace_needs_and_no_more(fleet: Fleet, process: Process) -> None:
    with fresh_namespace(fleet.cluster, "team") as team:
        fleet.apply(pool("chat").replicas(0), make_policy("chat").allow_all(), make_budget("own"))
        own = make_budget("theirs").obj()
        own["metadata"] = {"name": "theirs", "namespace": team}
        fleet.cluster.apply(own)
        eventually(lambda: [one["name"] for one in fleet.config(process)["config"].get("budgets", [])].count("theirs"))
        seen = fleet.config(process, team)["config"]
        assert [one["name"] for one in seen["budgets"]] == ["theirs"]
        assert "pools" not in seen
        assert "policies" not in seen


def test_no_token_or_one_for_somebody_else_gets_nothing(fleet: Fleet, process: Process) -> None:
    refused = fleet.release.ask(f"{process.url}/v1/config", "")
    assert "error" in refused
    wrong = fleet.release.ask(f"{process.url}/v1/config", fleet.release.token("fairlead.dev/ledger"))
    assert "fairlead.dev/control" in wrong["error"]


def test_a_queue_brings_replicas_and_silence_takes_none_away(fleet: Fleet, process: Process) -> None:
    fleet.apply(pool("busy").autoscaling(4, 1, objectives={"queueDepth": 2}))
    until_ready(fleet, "busy", 1)
    fleet.becomes("mpool", "busy", "ScalingActive", ("False", "SignalsMissing"))
    fleet.tell(process, "busy", running=4, held=14, requestsTotal=50, lastRequestMs=int(time.time() * 1000))
    eventually(lambda: fleet.status("mpool", "busy").get("desiredReplicas", 0) >= 3)
    newest = fleet.status("mpool", "busy")["scaling"][0]
    assert newest["reason"] in {"QueueDepth", "HeldRequests"}
    assert newest["fromReplicas"] == 1
    wanted = fleet.status("mpool", "busy")["desiredReplicas"]
    fleet.release.routers_file.write_text("{}", encoding="utf-8")
    fleet.becomes("mpool", "busy", "ScalingActive", ("False", "SignalsMissing"), 40)
    assert fleet.status("mpool", "busy")["desiredReplicas"] == wanted


def test_a_held_request_wakes_a_pool_at_zero_and_idleness_sends_it_back(fleet: Fleet, process: Process) -> None:
    address = _gateway(fleet)
    fleet.apply(pool("sleepy").autoscaling(2, 0, scaleToZeroAfter="5s"))
    fleet.becomes("mpool", "sleepy", "Available", ("True", "ScaledToZero"))
    long_ago = int(time.time() * 1000) - 60_000
    fleet.tell(process, "sleepy", gateway=address, held=1, lastRequestMs=long_ago)
    until_ready(fleet, "sleepy", 1)
    assert fleet.status("mpool", "sleepy")["scaling"][0]["reason"] == "HeldRequests"
    fleet.tell(process, "sleepy", gateway=address, lastRequestMs=long_ago)
    eventually(lambda: fleet.status("mpool", "sleepy")["desiredReplicas"] == 0, 60)
    assert fleet.status("mpool", "sleepy")["scaling"][0]["reason"] == "Idle"
    fleet.cluster.kubectl("delete", "pod", "gateway", "-n", fleet.release.namespace)


def test_what_an_engine_reports_opens_a_route_and_outlives_the_operator(fleet: Fleet, process: Process) -> None:
    fleet.apply(pool("open", context=None).replicas(1), make_policy("open"))
    until_ready(fleet, "open", 1)
    fleet.becomes("rpolicy", "open", "ResolvedRefs", ("Unknown", "ContextUnknown"))
    fleet.tell(process, "open")
    fleet.becomes("rpolicy", "open", "ResolvedRefs", ("True", "Resolved"))
    assert fleet.status("rpolicy", "open")["routes"][0]["maxContextTokens"] == 4096
    process.stop()
    fleet.release.routers_file.write_text("{}", encoding="utf-8")
    with operator(fleet.release) as again:
        routes = fleet.config(again)["config"]["policies"][0]["routes"]
        assert routes[0]["maxContextTokens"] == 4096


def test_a_restart_changes_nothing_and_counts_nothing_twice(fleet: Fleet, process: Process) -> None:
    fleet.apply(pool("steady").replicas(1), make_budget("team"))
    until_ready(fleet, "steady", 1)
    fleet.becomes("mpool", "steady", "PriceKnown", ("True", "Priced"))
    before = _children(fleet)
    rate = fleet.status("mpool", "steady")["rate"]
    assert process.stop() == 0
    with operator(fleet.release) as again:
        eventually(lambda: fleet.leader() == "operator-0")
        eventually(lambda: _metric(fleet, again, 'fairlead_reconciles_total{kind="ModelPool",result="ok"}') > 2)
        assert _children(fleet) == before
        assert fleet.status("mpool", "steady")["rate"] == rate


def test_the_bill_runs_with_the_pods(fleet: Fleet, process: Process) -> None:
    assert process.url
    name = f"billed-{secrets.token_hex(2)}"
    fleet.apply(pool(name).replicas(2))
    until_ready(fleet, name, 2)

    def bill() -> int:
        answer = fleet.release.ask(f"{fleet.release.ledger_url}/v1/costs", fleet.release.token("fairlead.dev/ledger"))
        rows = [one for one in answer.get("costs", []) if one["pool"] == f"{fleet.namespace}/{name}"]
        return sum(one["nanoUsd"] for one in rows)

    first = eventually(bill)
    eventually(lambda: bill() > first)


def test_a_leader_that_ends_hands_over_at_once_and_one_that_dies_soon(fleet: Fleet) -> None:
    with operator(fleet.release, 0) as first:
        eventually(lambda: fleet.leader() == "operator-0")
        with operator(fleet.release, 1) as second:
            fleet.apply(pool("handed").replicas(1))
            until_ready(fleet, "handed", 1)
            eventually(lambda: fleet.config(first)["version"] == fleet.config(second)["version"])
            assert first.stop() == 0
            eventually(lambda: fleet.leader() == "operator-1", 6)
            _still_works(fleet, "handed", 2)
            with operator(fleet.release, 0):
                second.kill()
                eventually(lambda: fleet.leader() == "operator-0", 30)
                _still_works(fleet, "handed", 1)


def test_the_operator_outlives_the_api_server(fleet: Fleet, process: Process) -> None:
    fleet.apply(pool("lasting").replicas(1))
    until_ready(fleet, "lasting", 1)
    version = fleet.config(process)["version"]
    token = fleet.release.token("fairlead.dev/control")
    fleet.cluster.end_part("kube-apiserver")
    try:
        assert fleet.release.ask(f"{process.url}/v1/config", token)["version"] == version
    finally:
        fleet.cluster.start_part("kube-apiserver")
    eventually(lambda: fleet.cluster.kubectl("get", "--raw", "/readyz", check=False).returncode == 0)
    _still_works(fleet, "lasting", 2)
    assert process.running.poll() is None


def test_a_permission_that_is_missing_is_named_and_crashes_nothing(fleet: Fleet, process: Process) -> None:
    assert process.url
    role = f"fairlead-operator-{fleet.release.namespace}"
    rules = fleet.cluster.get("clusterrole", role)["rules"]
    fewer = [rule for rule in rules if "poddisruptionbudgets" not in rule.get("resources", [])]
    process.stop()
    _set_rules(fleet, role, fewer)
    try:
        with operator(fleet.release, ready=False) as limited:
            eventually(lambda: "poddisruptionbudgets" in _readyz(fleet, limited))
            assert limited.running.poll() is None
            _set_rules(fleet, role, rules)
            eventually(lambda: _readyz(fleet, limited).strip() == "ok", 60)
    finally:
        _set_rules(fleet, role, rules)


def test_a_write_that_is_not_allowed_shows_on_the_pool_and_is_made_up_for(fleet: Fleet, process: Process) -> None:
    assert process.url
    role = f"fairlead-operator-{fleet.release.namespace}"
    rules = fleet.cluster.get("clusterrole", role)["rules"]
    reading = [
        {**rule, "verbs": ["get", "list", "watch"]} if "services" in rule.get("resources", []) else rule
        for rule in rules
    ]
    _set_rules(fleet, role, reading)
    try:
        fleet.apply(pool("barred").replicas(0))
        fleet.becomes("mpool", "barred", "Ready", ("False", "Forbidden"))
        conditions = fleet.status("mpool", "barred")["conditions"]
        assert "patch services" in next(one["message"] for one in conditions if one["type"] == "Accepted")
    finally:
        _set_rules(fleet, role, rules)
    fleet.becomes("mpool", "barred", "Ready", ("True", "Ready"))


def _gateway(fleet: Fleet) -> str:
    """The address of a gateway's pod."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "gateway",
            "namespace": fleet.release.namespace,
            "labels": {"app.kubernetes.io/name": "fairlead-gateway"},
        },
        "spec": {"containers": [{"name": "router", "image": "localhost/fairlead-router:0.1.0"}]},
    }
    fleet.cluster.apply(pod)
    place = ("pod", "gateway", "-n", fleet.release.namespace)
    return str(eventually(lambda: fleet.cluster.get(*place)["status"].get("podIP")))


def _set_rules(fleet: Fleet, role: str, rules: list[Any]) -> None:
    fleet.cluster.kubectl("patch", "clusterrole", role, "--type=merge", "-p", json.dumps({"rules": rules}))


def _readyz(fleet: Fleet, process: Process) -> str:
    return fleet.cluster.exec("curl", "-sS", f"{process.url}/readyz", check=False).stdout


def _still_works(fleet: Fleet, name: str, replicas: int) -> None:
    fleet.cluster.kubectl("scale", "mpool", name, f"--replicas={replicas}", "-n", fleet.namespace)
    eventually(lambda: fleet.status("mpool", name).get("desiredReplicas") == replicas)


def _children(fleet: Fleet) -> dict[str, Any]:
    """What the operator has a say in; statuses are other controllers' and may still move."""
    kinds = ("deployment", "service", "pdb")
    items = [one for kind in kinds for one in fleet.cluster.get(kind, "-n", fleet.namespace)["items"]]
    for one in items:
        del one["metadata"]["resourceVersion"], one["status"]
        one["metadata"].pop("managedFields", None)
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in items}


def _metric(fleet: Fleet, process: Process, name: str) -> float:
    text = fleet.cluster.exec("curl", "-s", f"{process.url}/metrics").stdout
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))
