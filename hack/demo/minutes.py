"""A budget in windows of a minute: paced, deprioritized, refused, raised for a while, and open again.

usage: python -m hack.demo.minutes        (make demo-budget, on the cluster that make demo leaves)
Prints what ``kubectl get cbudget -w`` showed meanwhile. Exits 1 when a step was not seen.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hack.demo import callers, fleet, platform
from hack.demo.kube import Kube
from hack.demo.progress import DemoError, Progress, wait_for
from hack.demo.story import check, condition, event

TEAM, NAME = "search", "minute"
LIMIT, MORE = 40, 40
"""Requests a minute: few enough that a small engine on CPU passes them within a window."""
ACTIONS = ((20, "Alert"), (40, "Pace"), (60, "Deprioritize"))
WINDOW_S = 60
STEPS = 6


@dataclass(frozen=True, slots=True)
class Told:
    """What a part of the story showed, and how."""

    words: str
    seen: Any


def budget(actions: Sequence[tuple[int, str]], increase: dict[str, Any] | None = None) -> dict[str, Any]:
    """The budget: so many requests of the team a minute."""
    spec: dict[str, Any] = {
        "limit": {"amount": LIMIT, "unit": "Requests", "per": "Namespace", "period": "Minute"},
        "actions": [{"atPercent": percent, "action": action} for percent, action in actions],
    }
    return fleet.named("CostBudget", NAME, TEAM, spec | ({"temporaryIncrease": increase} if increase else {}))


def status(kube: Kube) -> dict[str, Any]:
    """The budget's status."""
    found: dict[str, Any] = kube.get("cbudget", NAME, "-n", TEAM).get("status", {})
    return found


def put(kube: Kube, wanted: dict[str, Any]) -> None:
    """Apply the budget and wait until every router has confirmed it."""
    kube.apply([wanted])

    def enforced() -> bool:
        found = kube.get("cbudget", NAME, "-n", TEAM)
        seen = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        return seen and condition("Enforced", found) == "True"

    wait_for(f"budget {TEAM}/{NAME} enforced", enforced, seconds=60, every=0.3)


def next_window(now: datetime) -> datetime:
    """When the next minute begins."""
    return now.replace(second=0, microsecond=0) + timedelta(seconds=WINDOW_S)


def wait_for_window() -> None:
    """Until a minute has just begun."""
    now = datetime.now(UTC)
    time.sleep((next_window(now) - now).total_seconds() + 1)


def paced(kube: Kube, image: str) -> Told:
    """More is asked than the minute has: first it is spread, then it also yields to others."""
    put(kube, budget(ACTIONS))
    wait_for_window()
    load = callers.call(
        kube, TEAM, image, requests=20_000, concurrency=2, seconds=WINDOW_S - 12, max_tokens=2, prompt_words=8
    )
    seen: list[str] = []

    def watched() -> bool:
        action = str(status(kube).get("activeAction", "None"))
        if action not in seen[-1:]:
            seen.append(action)
        return action == "Deprioritize"

    wait_for("Deprioritize", watched, seconds=WINDOW_S, every=0.3)
    tally = load.result(WINDOW_S * 2)
    check("Pace" in seen, f"it was never paced: {seen}")
    check(tally["codes"].get("budget_pacing", 0) > 0, f"nobody was paced: {tally}")
    check(tally["answered"] <= LIMIT, f"{tally['answered']} of {LIMIT} requests were served")
    words = f"{tally['answered']} served, {tally['codes']['budget_pacing']} told to come back later: {' → '.join(seen)}"
    return Told(words, tally)


def refused(kube: Kube, image: str) -> Told:
    """Without pacing the same load uses up the minute and is refused."""
    put(kube, budget(ACTIONS[:1]))
    wait_for_window()
    tally = callers.call(
        kube, TEAM, image, requests=20_000, concurrency=4, seconds=40, max_tokens=2, prompt_words=8, until_refused=True
    ).result(WINDOW_S)
    check(tally["codes"].get("budget_exhausted", 0) > 0, f"nobody was refused: {tally}")
    check(tally["answered"] == LIMIT, f"{tally['answered']} of {LIMIT} requests were served")
    return Told(f"{tally['answered']} of {LIMIT} served, then {tally['lastRefusal'].get('message', '')}", tally)


def raised(kube: Kube, image: str) -> Told:
    """A temporary increase opens it in the same minute, and ends by itself, when the next one has just begun."""
    until = next_window(datetime.now(UTC) + timedelta(seconds=WINDOW_S / 2)) + timedelta(seconds=5)
    put(
        kube,
        budget(ACTIONS[:1], {"amount": MORE, "until": until.strftime("%Y-%m-%dT%H:%M:%SZ"), "reason": "a launch"}),
    )
    tally = callers.call(kube, TEAM, image, requests=5, max_tokens=2, prompt_words=8).result(WINDOW_S)
    check(tally["answered"] == tally["sent"], f"requests were refused in spite of the increase: {tally}")
    shown = status(kube)["limit"]
    check(shown == str(LIMIT + MORE), f"status.limit is {shown}")
    return Told(f"{tally['answered']} more served at once, limit {shown} until {until:%H:%M:%SZ}", tally)


def opened(kube: Kube, image: str) -> Told:
    """The increase is over, and a new minute begins at nothing spent."""
    wait_for("the limit as before", lambda: status(kube).get("limit") == str(LIMIT), seconds=2 * WINDOW_S)
    tally = callers.call(kube, TEAM, image, requests=5, max_tokens=2, prompt_words=8).result(WINDOW_S)
    check(tally["answered"] == tally["sent"], f"requests were refused in a new window: {tally}")
    return Told(f"{tally['answered']} served in window {status(kube)['window']['id']}, limit {LIMIT} again", tally)


def events(kube: Kube) -> list[str]:
    """The Events of all that."""
    text = kube.kubectl("describe", "cbudget", NAME, "-n", TEAM)
    wanted = (("BudgetAction", "to Pace:"), ("BudgetAction", "to Deprioritize:"), ("LimitRaised", "a launch"))
    return [event(text, reason, words) for reason, words in wanted] + [event(text, "LimitRestored", "extra")]


def story(progress: Progress, kube: Kube, image: str) -> list[str]:
    """All parts; returns what ``kubectl get cbudget -w`` printed."""
    put(kube, budget(ACTIONS))
    try:
        with kube.watching("get", "cbudget", NAME, "-n", TEAM, "-w") as lines:
            for name, part in (("pace", paced), ("refuse", refused), ("raise", raised), ("next window", opened)):
                with progress.step(name) as say:
                    say(part(kube, image).words)
            with progress.step("events") as say:
                say(f"{len(events(kube))} Events tell it: kubectl describe cbudget {NAME} -n {TEAM}")
        return lines
    finally:
        kube.kubectl("delete", "cbudget", NAME, "-n", TEAM, "--ignore-not-found")


def main() -> int:
    """The story on the demo's cluster."""
    log = Path(os.environ.get("FAIRLEAD_DEMO_LOG", f"/var/tmp/fairlead-demo-{os.getuid()}.log"))  # noqa: S108 - named to people
    progress = Progress(log, STEPS)
    try:
        kube = platform.node(progress, os.environ.get("CLUSTER", "local"), "demo")
        lines = story(progress, kube, platform.caller_image())
    except DemoError as error:
        print(f"\n{progress.number}/{STEPS} {progress.name} did not succeed: {error}", file=sys.stderr)
        return 1
    print(f"$ kubectl get cbudget {NAME} -n {TEAM} -w", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
