"""The story of the demo, and what goes wrong in it, on a real node with real vLLM."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hack.demo import callers, fleet, story
from hack.demo.progress import wait_for
from tests.e2e.conftest import Fleet

pytestmark = pytest.mark.e2e
START_SECONDS = 180.0
ENGINE_METRICS = """
import http.client, socket
engine = http.client.HTTPConnection("engine")
engine.sock = socket.socket(socket.AF_UNIX)
engine.sock.connect("/run/fairlead/engine.sock")
engine.request("GET", "/metrics")
print(engine.getresponse().read().decode())
"""


def condition(obj: dict[str, Any], kind: str) -> dict[str, str]:
    found: list[dict[str, str]] = [c for c in obj.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {"status": "Unknown", "reason": "", "message": ""}


def policy_for(name: str, pool: str, **route: object) -> dict[str, Any]:
    spec = {
        "models": [name],
        "allowedNamespaces": {"from": "All"},
        "outputTokens": {"default": 32, "max": 128},
        "routes": [{"name": "all", "maxContextTokens": 1024, "poolRefs": [{"name": pool}], **route}],
    }
    return fleet.named("RoutingPolicy", name, fleet.PLATFORM, spec)


def test_a_request_of_a_team_carries_its_price(fairlead: Fleet) -> None:
    tally = story.priced_request(fairlead.kube, fairlead.images.caller)
    assert tally["lastAnswer"]["headers"]["x-fairlead-pool"] == "chat-8b"


def test_a_prompt_over_the_short_routes_size_is_served_by_the_long_pool(fairlead: Fleet) -> None:
    story.long_request(fairlead.kube, fairlead.images.caller)


def test_charged_and_idle_add_up_to_the_bill(fairlead: Fleet) -> None:
    bill = story.bill(fairlead.kube)
    assert bill.charged > 0
    assert bill.charged + bill.idle == bill.total


def test_a_pool_grows_under_load_and_shrinks_again_and_says_why(fairlead: Fleet) -> None:
    reasons = story.scale_up_and_down(fairlead.kube, fairlead.images.caller)
    assert any("1 to 2 replicas" in reason for reason in reasons)
    assert any("2 to 1 replicas" in reason for reason in reasons)


def test_a_rolling_update_under_traffic_fails_no_request(fairlead: Fleet) -> None:
    tally = story.rolling_update(fairlead.kube, fairlead.images.caller)
    assert tally["answered"] == tally["sent"] > 0


def test_an_int8_checkpoint_with_ngram_speculation_serves(fairlead: Fleet) -> None:
    kube = fairlead.kube
    engine: dict[str, Any] = {
        "maxContextTokens": 1024,
        "maxSequences": 4,
        "quantization": {"weights": "compressed-tensors"},
        "speculativeDecoding": {"method": "ngram", "tokens": 4, "maxBatchSize": 2},
    }
    pool = fleet.pool(
        "int8",
        "tiny-int8",
        fairlead.images.engine,
        fairlead.paths,
        engine=engine,
        extra_args=["--kv-cache-memory-bytes=64M"],
        replicas=1,
    )
    kube.apply([pool, policy_for("int8", "int8")])
    try:
        wait_for("pool int8 ready", story.pool_ready(kube, "int8", 1), seconds=START_SECONDS)
        # Greedy, a random model soon repeats itself, which is what n-grams are found in.
        greedy = {"max_tokens": 128, "temperature": 0, "ignore_eos": True}
        tally = callers.call(kube, "search", fairlead.images.caller, model="int8", requests=4, **greedy).result(60)
        assert tally["codes"] == {"ok": 4}, tally
        pod = story.pod_names(kube, "int8").pop()
        metrics = kube.kubectl("exec", "-n", fleet.PLATFORM, pod, "-c", "engine", "--", "python3", "-c", ENGINE_METRICS)
        drafted = [line for line in metrics.splitlines() if line.startswith("vllm:spec_decode_num_drafts_total")]
        assert sum(float(line.rsplit(" ", 1)[1]) for line in drafted) > 0, drafted
    finally:
        kube.kubectl("delete", "mpool,rpolicy", "int8", "-n", fleet.PLATFORM)


def test_a_pool_at_zero_wakes_for_a_held_request_and_goes_back(fairlead: Fleet) -> None:
    kube = fairlead.kube
    pool = fleet.pool(
        "rare",
        "tiny",
        fairlead.images.engine,
        fairlead.paths,
        engine={"maxContextTokens": 1024, "maxSequences": 4},
        extra_args=["--kv-cache-memory-bytes=64M"],
        autoscaling={"minReplicas": 0, "maxReplicas": 1, "scaleToZeroAfter": "20s"},
    )
    kube.apply([pool, policy_for("rare", "rare", maxColdStartWait="3m")])
    try:
        wait_for("pool rare at zero", lambda: story.replicas(kube, "rare") == (0, 0), seconds=90)
        wait_for(
            "policy rare programmed",
            lambda: story.condition("Programmed", kube.get("rpolicy", "rare", "-n", fleet.PLATFORM)) == "True",
            seconds=60,
        )
        tally = callers.call(kube, "search", fairlead.images.caller, model="rare", requests=1).result(START_SECONDS)
        assert tally["codes"] == {"ok": 1}, tally
        wait_for("pool rare back at zero", lambda: story.replicas(kube, "rare") == (0, 0), seconds=START_SECONDS)
    finally:
        kube.kubectl("delete", "mpool,rpolicy", "rare", "-n", fleet.PLATFORM)


def test_a_model_that_does_not_exist_shows_in_the_condition_and_disturbs_nobody(fairlead: Fleet) -> None:
    kube = fairlead.kube
    pool = fleet.pool(
        "ghost", "no-such-model", fairlead.images.engine, fairlead.paths, engine={"maxContextTokens": 1024}, replicas=1
    )
    kube.apply([pool])
    try:
        wait_for(
            "the engine's error in a condition of pool ghost",
            lambda: "no-such-model" in json.dumps(kube.get("mpool", "ghost", "-n", fleet.PLATFORM).get("status", {})),
            seconds=START_SECONDS,
        )
        ghost = kube.get("mpool", "ghost", "-n", fleet.PLATFORM)
        assert condition(ghost, "Ready")["status"] == "False"
        story.priced_request(kube, fairlead.images.caller)
    finally:
        kube.kubectl("delete", "mpool", "ghost", "-n", fleet.PLATFORM)


def test_requests_without_a_token_are_refused(fairlead: Fleet) -> None:
    address = fairlead.kube.get("service", "fairlead-gateway", "-n", "fairlead")["spec"]["clusterIP"]
    body = '{"model": "chat", "messages": [{"role": "user", "content": "hi"}]}'
    done = fairlead.cluster.exec(
        "curl",
        "-s",
        "-i",
        "-m",
        "10",
        f"http://{address}/v1/chat/completions",
        "-d",
        body,
        "-H",
        "Authorization: Bearer x",
    )
    assert "401" in done.stdout.splitlines()[0]
    assert "invalid_api_key" in done.stdout


def test_serving_goes_on_while_operator_and_ledger_are_away(fairlead: Fleet) -> None:
    kube = fairlead.kube
    story.priced_request(kube, fairlead.images.caller)
    kube.kubectl(
        "scale", "-n", "fairlead", "deployment/fairlead-operator", "statefulset/fairlead-ledger", "--replicas=0"
    )
    try:
        tally = callers.call(kube, "search", fairlead.images.caller, requests=3).result(90)
        assert tally["answered"] == 3, tally
    finally:
        replicas = "--replicas=1"
        kube.kubectl("scale", "-n", "fairlead", "deployment/fairlead-operator", "statefulset/fairlead-ledger", replicas)
        for name in ("deployment/fairlead-operator", "statefulset/fairlead-ledger"):
            kube.kubectl("rollout", "status", "-n", "fairlead", name, "--timeout=90s")


def test_a_spent_budget_refuses_its_team_and_no_other(fairlead: Fleet) -> None:
    refused, served = story.budget_bites(fairlead.kube, fairlead.images.caller)
    assert refused["lastRefusal"]["status"] == 429
    assert int(refused["lastRefusal"]["retry_after"]) > 0
    assert served["answered"] == served["sent"]
    story.no_overspend(fairlead.kube)


def masked(tables: str) -> list[list[str]]:
    """Cells of kubectl's tables; figures and ages differ from run to run, and what is too old to tell is left empty."""
    rows: list[list[str]] = []
    starts: list[int] = []
    for line in tables.splitlines():
        if line.startswith("NAMESPACE"):
            starts = [found.start() for found in re.finditer(r"\S+", line)]
        if line.strip():
            cells = (line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True))
            rows.append(["#" if not cell or cell[0].isdigit() else cell for cell in cells])
    return rows


def test_the_readme_shows_what_kubectl_prints(fairlead: Fleet) -> None:
    readme = Path("README.md").read_text(encoding="utf-8")
    block = readme.split("$ kubectl get mpool,rpolicy,cbudget -A\n", 1)[1].split("```", 1)[0]
    assert masked(fairlead.kube.kubectl("get", "mpool,rpolicy,cbudget", "-A")) == masked(block)


def test_a_killed_gateway_loses_no_money(fairlead: Fleet) -> None:
    kube = fairlead.kube
    story.set_limit(kube, "support", story.spent(kube, "support") + Decimal("0.002"))
    load = callers.call(
        kube,
        "support",
        fairlead.images.caller,
        requests=600,
        concurrency=6,
        seconds=40,
        max_tokens=64,
        until_refused=True,
    )
    pods = kube.get("pods", "-n", "fairlead", "-l", "app.kubernetes.io/name=fairlead-gateway")["items"]
    name = pods[0]["metadata"]["name"]
    kube.kubectl("delete", "pod", name, "-n", "fairlead", "--grace-period=0", "--force")
    load.result(120)
    kube.kubectl("rollout", "status", "-n", "fairlead", "deployment/fairlead-gateway", "--timeout=90s")
    story.no_overspend(kube)


def test_an_upgrade_of_the_chart_restarts_no_engine(fairlead: Fleet) -> None:
    kube = fairlead.kube
    before = story.pod_names(kube, "chat-8b") | story.pod_names(kube, "chat-8b-long")
    kube.helm(
        "upgrade", "fairlead", "charts/fairlead", "-n", "fairlead", "--reuse-values", "--wait", "--timeout=3m",
        "--set=gateway.replicas=1", "--set=engine.image=localhost/vllm-cpu:9.9.9",
    )  # fmt: skip
    story.wait_ready(kube)
    assert story.pod_names(kube, "chat-8b") | story.pod_names(kube, "chat-8b-long") == before


def test_the_charts_own_test_passes(fairlead: Fleet) -> None:
    fairlead.kube.helm("test", "fairlead", "-n", "fairlead", "--timeout=2m")
