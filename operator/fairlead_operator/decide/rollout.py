"""Which pod template each variant should have: the spec's, the one that runs, or one that served before.

A revision is what the spec asks of pods, numbered within its pool. Variants take a new one, one after the other. One of
which no pod becomes ready is given up, and every variant goes back to the newest revision that served there. It is
tried again when the spec asks for something else, a restart included. All that is remembered is in annotations of the
Deployments, which their controller copies to the ReplicaSets: these are the history.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fairlead_operator.decide.facts import LABEL_VARIANT, PodFact

CRASHES = 3
"""A container that ended so often and was never ready is not waited for."""
PATIENCE_MS = 120_000
"""How long an image or a missing Secret may take to appear."""
DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
_UNFINISHED = frozenset({"NewReplicaSetCreated", "FoundNewReplicaSet", "ReplicaSetUpdated"})
_CRASHED = frozenset({"CrashLoop", "Exited"})
_ABSENT = frozenset({"ImagePull", "Config"})

Action = Literal["Keep", "Render", "Restore"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a Deployment is: pods of its present template, of all that exist.

    ``observed``: its controller has seen the last change. ``overdue``: no pod became ready within the deadline.
    ``unfinished``: not all pods have been ready since the template changed last.
    """

    variant: str = ""
    wanted: int = 0
    existing: int = 0
    updated: int = 0
    observed: bool = True
    overdue: bool = False
    unfinished: bool = False

    @property
    def running(self) -> bool:
        """Whether pods of an older template are still there."""
        return self.existing > self.updated


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest revision of a pool: its number, from 1, and the hash of what it asks of all variants."""

    number: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A revision that was given up, and why: ``reason`` is one word, ``message`` ends with the engine's own words."""

    revision: int
    hash: str
    variant: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Live:
    """A variant's Deployment. ``label`` is what its pods carry as revision; ``served`` the last one known to serve."""

    revision: int
    spec_hash: str
    label: str = ""
    served: int = 0
    newest: Newest = Newest()
    failure: Failure | None = None
    progress: Progress = Progress()


@dataclass(frozen=True, slots=True)
class Kept:
    """A template that a variant had before. ``served``: a pod of it was ready."""

    variant: str
    revision: int
    spec_hash: str
    served: bool
    template: Mapping[str, Any] = field(hash=False)
    change: str = ""
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class Pin:
    """Somebody wants ``revision`` while the newest one is ``instead_of``."""

    revision: int
    instead_of: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is known. ``wanted`` is what the spec asks of each variant, as a hash, in the spec's order.

    ``words`` say by pod name why a pod does not serve. ``kept`` is ``None`` until somebody has looked.
    """

    wanted: Mapping[str, str]
    live: Mapping[str, Live]
    pods: Sequence[PodFact]
    now_ms: int
    accepted: bool = True
    may_be_missing: int = 0
    """rollout.maxUnavailable."""
    startup: str = ""
    """rollout.startupTimeout, as it is written."""
    words: Mapping[str, str] = field(default_factory=dict)
    pin: Pin | None = None
    kept: Sequence[Kept] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one variant's template. ``waits_for`` names the variant that has its turn before."""

    action: Action
    revision: int
    served: int = 0
    kept: Kept | None = None
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """A step for each variant of the spec.

    ``failure`` is the revision that was given up and is still asked for. ``pin`` is in force. ``missing`` names the
    variants that have no template to go back to. ``looks_back``: the decision is not final without ``Inputs.kept``.
    """

    newest: Newest = Newest()
    steps: Mapping[str, Step] = field(default_factory=dict)
    failure: Failure | None = None
    pin: Pin | None = None
    missing: tuple[str, ...] = ()
    looks_back: bool = False


def progress_of(deployment: Mapping[str, Any]) -> Progress:
    """What a live Deployment's status says."""
    spec, status = deployment.get("spec") or {}, deployment.get("status") or {}
    meta = deployment.get("metadata") or {}
    conditions = status.get("conditions") or ()
    return Progress(
        variant=str((meta.get("labels") or {}).get(LABEL_VARIANT, "")),
        wanted=int(spec.get("replicas") or 0),
        existing=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        observed=int(status.get("observedGeneration") or 0) >= int(meta.get("generation") or 0),
        overdue=any(item.get("reason") == DEADLINE_EXCEEDED for item in conditions),
        unfinished=any(item.get("reason") in _UNFINISHED for item in conditions),
    )


def pool_hash(wanted: Mapping[str, str]) -> str:
    """One hash of what is asked of all variants, whatever their order."""
    text = ",".join(f"{name}={value}" for name, value in sorted(wanted.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def decide(given: Inputs) -> Decision:
    """The step of each variant; at most one of them begins to replace pods."""
    newest = _newest(given)
    served = {name: _served(given, name) for name in given.live}
    if not given.accepted:
        kept = {name: Step("Keep", live.revision, served[name]) for name, live in given.live.items()}
        return Decision(newest, kept)
    given = replace(given, live={name: replace(live, served=served[name]) for name, live in given.live.items()})
    pin = given.pin if given.pin is not None and _holds(given.pin, newest) else None
    failure = None if pin is not None else _failure(given, newest)
    goals = {name: _goal(given, name, newest, failure, pin) for name in given.wanted}
    missing = tuple(name for name, goal in goals.items() if goal is None)
    steps = _in_turn(given, {name: goal for name, goal in goals.items() if goal is not None}, failure)
    looks_back = given.kept is None and (pin is not None or _must_go_back(given, failure))
    return Decision(newest, steps, failure, pin, missing if given.kept is not None else (), looks_back)


def failing(given: Inputs, name: str) -> tuple[str, str] | None:
    """Why the pods of a variant's present template will not become ready: a word and a sentence; ``None``: they may."""
    live = given.live[name]
    pods = [pod for pod in _of_template(given, name) if not pod.ready]
    crashed = [pod for pod in pods if pod.trouble and pod.trouble.kind in _CRASHED and pod.restarts >= CRASHES]
    absent = [pod for pod in pods if pod.trouble and pod.trouble.kind in _ABSENT and _waited(pod, given.now_ms)]
    for found in (crashed, absent):
        if found and found[0].trouble is not None:
            return found[0].trouble.kind, given.words.get(found[0].name, f"Pod {found[0].name} does not start.")
    if not live.progress.overdue or not live.progress.observed or _awaits_room(given, live, pods):
        return None
    said = next((given.words[pod.name] for pod in pods if given.words.get(pod.name)), "No pod says why.")
    return "StartupTimedOut", f"No pod was ready within startupTimeout ({given.startup}). {said}"


def _newest(given: Inputs) -> Newest:
    """The revision that the spec asks for; a new number only when pods would have to change for it."""
    known = max((live.newest for live in given.live.values()), key=lambda one: one.number, default=Newest())
    number = max([known.number, *(live.revision for live in given.live.values())])
    asked = pool_hash(given.wanted)
    if known.hash == asked or not given.accepted:
        return Newest(number, known.hash)
    differs = any(
        name not in given.live or given.live[name].spec_hash != wanted for name, wanted in given.wanted.items()
    )
    if differs:
        return Newest(number + 1, asked)
    # The Deployments of an earlier release say nothing of revisions: what they run is the first one.
    return Newest(number, known.hash or asked)


def _served(given: Inputs, name: str) -> int:
    """The last revision of the variant of which a pod was ready."""
    live = given.live[name]
    serves = any(pod.ready and not pod.terminating for pod in _of_template(given, name))
    return live.revision if serves else live.served


def _of_template(given: Inputs, name: str) -> list[PodFact]:
    """The variant's pods that are of its present template and stay."""
    label = given.live[name].label
    return [pod for pod in given.pods if pod.variant == name and pod.revision == label and not pod.terminating]


def _holds(pin: Pin, newest: Newest) -> bool:
    return pin.instead_of == newest.number and 0 < pin.revision < newest.number


def _failure(given: Inputs, newest: Newest) -> Failure | None:
    """The revision that is given up: one that was before and is still asked for, or one that fails now."""
    asked = pool_hash(given.wanted)
    before = next((live.failure for live in given.live.values() if live.failure and live.failure.hash == asked), None)
    if before is not None and not _serves_after_all(given, before):
        return before
    for name in given.wanted:
        live = given.live.get(name)
        if live is None or live.revision != newest.number or not 0 < live.served < live.revision:
            continue
        why = failing(given, name)
        if why is not None:
            return Failure(newest.number, asked, name, *why)
    return None


def _serves_after_all(given: Inputs, failure: Failure) -> bool:
    """A pod of it became ready before it was taken back."""
    live = given.live.get(failure.variant)
    return live is not None and live.revision == failure.revision == live.served


def _must_go_back(given: Inputs, failure: Failure | None) -> bool:
    return failure is not None and any(live.revision >= failure.revision for live in given.live.values())


def _goal(given: Inputs, name: str, newest: Newest, failure: Failure | None, pin: Pin | None) -> Step | None:
    """What the variant should have in the end; ``None``: an earlier template that is not there."""
    live = given.live.get(name)
    if live is None:
        return Step("Render", newest.number)
    keep = Step("Keep", live.revision, live.served)
    if pin is not None:
        return _back(given, name, pin.revision, served=False)
    if failure is not None:
        before = failure.revision - 1
        return keep if live.revision <= before else _back(given, name, before, served=True)
    return keep if live.spec_hash == given.wanted[name] else Step("Render", newest.number, live.served)


def _back(given: Inputs, name: str, most: int, *, served: bool) -> Step | None:
    """The variant's newest template up to a revision; with ``served`` only of those that have served."""
    live = given.live[name]
    kept = [one for one in given.kept or () if one.variant == name and one.revision <= most]
    kept = [one for one in kept if one.served or one.revision == live.served or not served]
    best = max(kept, key=lambda one: (one.revision, one.created_ms), default=None)
    if live.revision <= most and (best is None or best.revision <= live.revision):
        return Step("Keep", live.revision, live.served)
    return None if best is None else Step("Restore", best.revision, live.served, best)


def _in_turn(given: Inputs, goals: Mapping[str, Step], failure: Failure | None) -> dict[str, Step]:
    """The goals, of which one at a time may replace pods; what failed goes back first."""
    first = failure.variant if failure is not None else ""
    steps: dict[str, Step] = {}
    busy = {name for name in given.wanted if name in given.live and not _through(given, name)}
    for name in sorted(given.wanted, key=lambda one: one != first):
        live = given.live.get(name)
        goal = goals.get(name) or Step("Keep", live.revision if live else 0, live.served if live else 0)
        others = sorted(busy - {name})
        if live is not None and goal.action != "Keep" and others:
            goal = Step("Keep", live.revision, live.served, waits_for=others[0])
        elif live is not None and goal.action != "Keep":
            busy.add(name)
        steps[name] = goal
    return steps


def _through(given: Inputs, name: str) -> bool:
    """Whether the variant's last change is over, so that another variant may begin."""
    live = given.live[name]
    progress = live.progress
    if not progress.observed or progress.running:
        return progress.observed and failing(given, name) is not None
    starting = [pod for pod in _of_template(given, name) if not pod.ready and pod.node and pod.trouble is None]
    done = (live.served == live.revision and not starting) or progress.wanted == 0
    return done or progress.overdue or failing(given, name) is not None


def _waited(pod: PodFact, now_ms: int) -> bool:
    return pod.scheduled_ms is not None and now_ms - pod.scheduled_ms >= PATIENCE_MS


def _awaits_room(given: Inputs, live: Live, pods: Iterable[PodFact]) -> bool:
    """Pods that find no node are not the template's fault, unless an old pod was given up for them."""
    unplaced = any(pod.trouble is not None and pod.trouble.kind == "Pending" for pod in pods)
    return unplaced and (given.may_be_missing == 0 or not live.progress.running)
