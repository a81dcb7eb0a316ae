"""What the demo shows, each as a function that does it, checks it and returns what it saw.

The end-to-end tests tell the same story through the same functions.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hack.demo import callers, fleet
from hack.demo.kube import Kube
from hack.demo.progress import DemoError, wait_for

READY_SECONDS = 240.0
SCALE_SECONDS = 420.0
"""A replica leaves when what was asked during the time of a start needs it no more: minutes on a busy machine."""
CALL_SECONDS = 180.0
SHUT_PERCENT = 90
NANO = Decimal(1_000_000_000)
NANO_PER_HOUR = 2_950_000_000
"""2.95 USD, the price of the demo's accelerator."""
MS_PER_HOUR = 3_600_000
ROUNDING_NANO = 100
"""Each pod's time is rounded to a nano-dollar in each quarter hour; a row adds up many pods."""


@dataclass(frozen=True, slots=True)
class Bill:
    """Money of a time span: what tenants were charged, what the pools cost, and the difference."""

    charged: Decimal
    idle: Decimal
    total: Decimal


def check(truth: bool, words: str) -> None:
    """Raise DemoError(words) unless it is true."""
    if not truth:
        raise DemoError(words)


def condition(kind: str, obj: dict[str, Any]) -> str:
    """The status of one condition of an object, or Unknown."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((c["status"] for c in conditions if c["type"] == kind), "Unknown")


def pool_ready(kube: Kube, name: str, replicas: int) -> Callable[[], bool]:
    """A function that says whether a pool serves with that many replicas."""

    def look() -> bool:
        obj = kube.get("mpool", name, "-n", fleet.PLATFORM)
        return condition("Ready", obj) == "True" and obj["status"].get("readyReplicas", 0) >= replicas

    return look


def wait_ready(kube: Kube) -> None:
    """Wait until both pools, the policy and the budgets are in force."""
    for name in ("chat-8b", "chat-8b-long"):
        wait_for(f"pool {name} ready", pool_ready(kube, name, 1), seconds=READY_SECONDS)
    for kind, name, namespace, state in (
        ("rpolicy", "chat", fleet.PLATFORM, "Programmed"),
        ("cbudget", "support", "support", "Enforced"),
        ("cbudget", "search", "search", "Enforced"),
    ):
        wait_for(
            f"{kind} {namespace}/{name} {state}",
            lambda kind=kind, name=name, namespace=namespace, state=state: (  # type: ignore[misc]
                condition(state, kube.get(kind, name, "-n", namespace)) == "True"
            ),
            seconds=READY_SECONDS,
        )


def priced_request(kube: Kube, image: str) -> dict[str, Any]:
    """One request of support; its answer carries its price."""
    tally = callers.call(kube, "support", image, requests=1).result(CALL_SECONDS)
    check(tally["answered"] == 1, f"support's request was not answered: {json.dumps(tally)[:600]}")
    price = Decimal(tally["lastAnswer"]["headers"].get("x-fairlead-cost-usd", "0"))
    check(price > 0, f"support's request has no price: {json.dumps(tally['lastAnswer'])}")
    return tally


def long_request(kube: Kube, image: str) -> dict[str, Any]:
    """A prompt over the short route's size is served by the long pool."""
    tally = callers.call(kube, "support", image, requests=1, prompt_words=1500, max_tokens=16).result(CALL_SECONDS)
    served = list(tally["pools"])
    check(served == ["chat-8b-long"], f"the long prompt was served by {served}: {json.dumps(tally)[:600]}")
    check(tally["lastAnswer"]["usage"]["prompt_tokens"] > fleet.SHORT_TOKENS, "the long prompt was not long")
    return tally


def replicas(kube: Kube, name: str) -> tuple[int, int]:
    """(desired, ready) of a pool's status."""
    status = kube.get("mpool", name, "-n", fleet.PLATFORM).get("status", {})
    return status.get("desiredReplicas", 0), status.get("readyReplicas", 0)


def scale_up_and_down(kube: Kube, image: str) -> list[str]:
    """Load makes chat-8b two replicas, quiet makes it one again; returns its Events' messages."""
    name = "chat-8b"
    load = callers.call(
        kube, "search", image, requests=100_000, concurrency=12, seconds=45, max_tokens=96, ignore_eos=True, stream=True
    )
    wait_for(f"{name} at 2 ready replicas", lambda: replicas(kube, name) == (2, 2), seconds=SCALE_SECONDS)
    tally = load.result(CALL_SECONDS)
    check(not tally["failures"], f"requests failed while the pool scaled: {tally['failures']}")
    wait_for(f"{name} back at 1 replica", lambda: replicas(kube, name) == (1, 1), seconds=SCALE_SECONDS)
    text = kube.kubectl("describe", "mpool", name, "-n", fleet.PLATFORM)
    return [event(text, "ScaledUp", "1 to 2 replicas"), event(text, "ScaledDown", "2 to 1 replicas")]


def event(text: str, reason: str, message: str) -> str:
    """The newest Event of this reason in what ``kubectl describe`` printed, without its age and source."""
    lines = [line.split(maxsplit=4) for line in text.splitlines() if message in line]
    found = [fields for fields in lines if len(fields) > 4 and fields[1] == reason]  # noqa: PLR2004 - Event's columns
    check(bool(found), f"kubectl describe shows no Event {reason} with '{message}'")
    return f"{reason}: {found[-1][4]}"


def rolling_update(kube: Kube, image: str) -> dict[str, Any]:
    """A new revision of chat-8b rolls out under traffic without one failed request."""
    name = "chat-8b"
    before = pod_names(kube, name)
    load = callers.call(
        kube, "search", image, requests=100_000, concurrency=3, seconds=60, max_tokens=64, ignore_eos=True, stream=True
    )
    kube.fairlead("rollout", "restart", name, "-n", fleet.PLATFORM)
    wait_for("new pods instead of the old ones", lambda: rolled(kube, name, before), seconds=SCALE_SECONDS)
    tally = load.result(CALL_SECONDS)
    check(set(tally["codes"]) == {"ok"}, f"requests failed during the rolling update: {json.dumps(tally)[:900]}")
    return tally


def pod_names(kube: Kube, pool: str) -> set[str]:
    """The names of a pool's pods."""
    items = kube.get("pods", "-n", fleet.PLATFORM, "-l", f"fairlead.dev/pool={pool}").get("items", [])
    return {item["metadata"]["name"] for item in items}


def rolled(kube: Kube, pool: str, before: set[str]) -> bool:
    """Whether a pool is ready without any of its former pods."""
    now = pod_names(kube, pool)
    return bool(now) and not now & before and pool_ready(kube, pool, 1)()


def spent(kube: Kube, team: str) -> Decimal:
    """What a team's budget has spent in its window."""
    status = kube.get("cbudget", team, "-n", team).get("status", {})
    return Decimal(status.get("spent", "0") or "0")


def set_limit(kube: Kube, team: str, amount: Decimal) -> None:
    """Set a budget's limit; it must be enforced before this returns."""
    kube.apply([fleet.budget(team, f"{amount:.6f}")])

    def enforced() -> bool:
        obj = kube.get("cbudget", team, "-n", team)
        seen = obj.get("status", {}).get("observedGeneration") == obj["metadata"]["generation"]
        return seen and condition("Enforced", obj) == "True"

    wait_for(f"budget {team}/{team} enforced", enforced, seconds=60)


def budget_bites(kube: Kube, image: str, room: Decimal = Decimal("0.0005")) -> tuple[dict[str, Any], dict[str, Any]]:
    """Support spends what is left and gets 429 with the budget's name; search is served meanwhile."""
    set_limit(kube, "support", spent(kube, "support") + room)
    search = callers.call(kube, "search", image, requests=10, concurrency=1)
    refused = used_up(kube, image)
    served = search.result(CALL_SECONDS)
    budget_shut(kube, "support")
    check(served["answered"] == served["sent"], f"search was not served: {json.dumps(served)[:600]}")
    return refused, served


def used_up(kube: Kube, image: str) -> dict[str, Any]:
    """Support calls until its budget is used up; before that, what is left may be reserved by its other requests."""
    tally: dict[str, Any] = {}
    for concurrency in (4, 1):
        tally = callers.call(
            kube, "support", image, requests=4_000, concurrency=concurrency, until_refused=True
        ).result(CALL_SECONDS)
        if "support/support is used up" in tally["lastRefusal"].get("message", ""):
            return tally
    raise DemoError(f"support's budget was never used up: {json.dumps(tally)[:600]}")


def cost(kube: Kube, *arguments: str) -> str:
    """What ``fairlead cost`` prints, asked in the operator's pod."""
    command = ["fairlead", "cost", "--since", "24h", *arguments]
    return kube.kubectl("exec", "-n", "fairlead", "deploy/fairlead-operator", "--", *command)


def bill(kube: Kube) -> Bill:
    """Charged, idle and bill as the ledger has them; the bill is replica time × the price."""
    answer = json.loads(cost(kube, "--by", "namespace,pool", "-o", "json"))
    for row in answer["costs"]:
        exact = Decimal(row["replicaMs"]) * NANO_PER_HOUR / MS_PER_HOUR
        check(abs(row["nanoUsd"] - exact) < ROUNDING_NANO, f"{row} is not its time at {NANO_PER_HOUR} nano-USD an hour")
    charged, total = sum(r["nanoUsd"] for r in answer["rows"]), sum(r["nanoUsd"] for r in answer["costs"])
    check(0 < charged < total, f"charged {charged} is not a part of the bill {total} (nano-USD)")
    return Bill(Decimal(charged) / NANO, Decimal(total - charged) / NANO, Decimal(total) / NANO)


def budget_shut(kube: Kube, team: str) -> None:
    """Wait until a budget's status shows what its team was told."""

    def shown() -> bool:
        status = kube.get("cbudget", team, "-n", team)["status"]
        return bool(status.get("activeAction") == "Reject" and status.get("usedPercent", 0) >= SHUT_PERCENT)

    wait_for(f"status of budget {team}/{team} at Reject", shown, seconds=60)


def no_overspend(kube: Kube) -> dict[str, tuple[Decimal, Decimal]]:
    """(spent, limit) of each team's budget; spent may not be above the limit."""
    seen = {}
    for team in fleet.TEAMS:
        status = kube.get("cbudget", team, "-n", team)["status"]
        seen[team] = Decimal(status["spent"]), Decimal(status["limit"])
        check(seen[team][0] <= seen[team][1], f"{team} spent {seen[team][0]} of {seen[team][1]} USD")
    return seen
