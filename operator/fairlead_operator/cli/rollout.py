"""``fairlead rollout``: how far a pool's change is, what it was before, one step back, and pods made anew.

Everything is asked of the API server with the caller's own rights: the pool, its Deployments, and their ReplicaSets,
which are the history. ``undo`` and ``restart`` write on the pool; the operator does the rest.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from fairlead_operator.api.v1alpha1 import PoolCondition, Reason
from fairlead_operator.cli.ask import LOOK, UsageError
from fairlead_operator.cli.cost import aligned
from fairlead_operator.cli.key import add_cluster, carry_out, place, readable
from fairlead_operator.clock import Clock, SystemClock
from fairlead_operator.decide.facts import LABEL_POOL, LABEL_VARIANT, time_text
from fairlead_operator.decide.rollout import Kept, Live, Newest, Pin
from fairlead_operator.errors import ApiError, ForbiddenError, NotFoundError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import DEPLOYMENTS, MODEL_POOLS, REPLICA_SETS
from fairlead_operator.kube.session import login, open_session
from fairlead_operator.render.revisions import (
    ANNOTATION_RESTARTED,
    ANNOTATION_UNDO,
    kept_of,
    live_of,
    pin_of,
    pin_text,
)
from fairlead_operator.status.conditions import find
from fairlead_operator.units import parse_duration_ms

POLL_S = 2.0
MERGE = {"Content-Type": "application/merge-patch+json"}
FINISHED = frozenset({Reason.COMPLETE, Reason.UNDONE})


@dataclass(frozen=True, slots=True)
class Revision:
    """One line of the history: a revision of a pool, on the variants whose pods it changed."""

    revision: int
    created: str
    variants: tuple[str, ...]
    state: str
    """runs, served, failed, or never served."""
    change: str


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool with its Deployments (by variant) and the templates that their ReplicaSets keep."""

    body: Object
    live: Mapping[str, Live]
    kept: Sequence[Kept]

    @property
    def newest(self) -> Newest:
        """The newest revision that the operator knows of."""
        return max((one.newest for one in self.live.values()), key=lambda one: one.number, default=Newest())

    @property
    def runs(self) -> int:
        """The revision that the pods run or are being given."""
        return max((one.revision for one in self.live.values()), default=0)

    @property
    def condition(self) -> Mapping[str, Any]:
        """Progressing; empty while the operator has said nothing of the present spec."""
        found = find((self.body.get("status") or {}).get("conditions") or (), PoolCondition.PROGRESSING)
        return found if found.get("observedGeneration") == self.body["metadata"].get("generation") else {}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command line of ``fairlead rollout``."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("pool", help="name of the ModelPool")
    add_cluster(common)
    rollout = commands.add_parser("rollout", help="changes of a pool's pods: status, history, undo, restart")
    actions = rollout.add_subparsers(dest="action", required=True, metavar="ACTION")
    status = actions.add_parser("status", parents=[common], help="how far the last change is; 1 if it failed")
    status.add_argument("--wait", default="", metavar="TIME", help="wait for its end, so long at most, such as 30m")
    history = actions.add_parser("history", parents=[common], help="the revisions that are kept, newest first")
    history.add_argument("-o", "--output", choices=["table", "json"], default="table", help="table (default), or json")
    undo = actions.add_parser("undo", parents=[common], help="run an earlier revision until the spec changes")
    undo.add_argument("--to-revision", type=int, default=0, metavar="N", help="default: the last one that served")
    actions.add_parser("restart", parents=[common], help="make all pods anew; tries a revision again that failed")


def run(options: argparse.Namespace) -> int:
    """Run one action; 0 = done, 1 = refused or failed, 2 = the command line cannot be used, 3 = no answer."""
    return carry_out(_run(options), _refusal)


async def _run(options: argparse.Namespace) -> tuple[str, int]:
    kubeconfig, namespace = place(options)
    clock = SystemClock()
    wait_ms = _wait_ms(options.wait) if options.action == "status" else 0
    with readable():
        who = await login(kubeconfig, options.context)
        session = open_session(who)
    async with session:
        api = Api(session, who.server)
        match options.action:
            case "status":
                return await status(api, namespace, options.pool, clock, wait_ms)
            case "history":
                lines = revisions(await read(api, namespace, options.pool))
                return (_json(lines) if options.output == "json" else history_text(lines)), 0
            case "undo":
                return await undo(api, namespace, options.pool, options.to_revision), 0
            case _:
                return await restart(api, namespace, options.pool, time_text(clock.now_ms())), 0


async def read(api: Api, namespace: str, name: str) -> Pool:
    """The pool and its history.

    Raises:
        UsageError: there is no such pool.
    """
    try:
        body = await api.get(MODEL_POOLS, namespace, name)
    except NotFoundError as error:
        raise UsageError(f"namespace {namespace} has no ModelPool {name}: see kubectl get mpool -A") from error
    labels = f"{LABEL_POOL}={name}"
    deployments = (await api.list(DEPLOYMENTS, namespace=namespace, labels=labels)).items
    sets = (await api.list(REPLICA_SETS, namespace=namespace, labels=labels)).items
    live = {str(one["metadata"]["labels"].get(LABEL_VARIANT, "")): live_of(one) for one in deployments}
    kept = [one for one in map(kept_of, sets) if one is not None and one.variant in live]
    return Pool(body, live, kept)


async def status(api: Api, namespace: str, name: str, clock: Clock, wait_ms: int = 0) -> tuple[str, int]:
    """What Progressing says, and 1 if the rollout failed or is not over after ``wait_ms``."""
    until = clock.monotonic() + wait_ms / 1000
    while True:
        pool = await read(api, namespace, name)
        said = pool.condition
        over = bool(said) and said.get("status") == "False"
        if over or clock.monotonic() >= until:
            break
        await clock.sleep(POLL_S)
    failed = (over and said.get("reason") not in FINISHED) or (wait_ms > 0 and not over)
    return status_text(pool), LOOK if failed else 0


def status_text(pool: Pool) -> str:
    """The condition in a line, and a line for each variant."""
    meta, said = pool.body["metadata"], pool.condition
    head = f"{meta['name']}: {said.get('reason')}. {said.get('message')}" if said else _unseen(meta)
    rows = [("VARIANT", "REVISION", "PODS", "OF IT", "WANTED")]
    rows += [
        (name, str(one.revision), str(one.progress.existing), str(one.progress.updated), str(one.progress.wanted))
        for name, one in sorted(pool.live.items())
    ]
    return "\n".join([head, *(aligned(rows, 1) if pool.live else [])])


def revisions(pool: Pool) -> list[Revision]:
    """The history, newest first."""
    by_number: dict[int, list[Kept]] = {}
    for one in sorted(pool.kept, key=lambda kept: (kept.revision, kept.variant)):
        by_number.setdefault(one.revision, []).append(one)
    return [
        Revision(
            revision=number,
            created=time_text(max(one.created_ms for one in found)),
            variants=tuple(dict.fromkeys(one.variant for one in found)),
            state=_state(pool, number, found),
            change=next((one.change.partition(": ")[2] for one in found if one.change), "") or "first",
        )
        for number, found in sorted(by_number.items(), reverse=True)
    ]


def history_text(lines: Sequence[Revision]) -> str:
    """The table."""
    if not lines:
        return "No revision is kept yet: this pool has not been rendered by this release."
    head = ("REVISION", "CREATED", "STATE", "VARIANTS", "CHANGE")
    rows = [(str(one.revision), one.created, one.state, ",".join(one.variants), one.change) for one in lines]
    return "\n".join(aligned([head, *rows], len(head)))


async def undo(api: Api, namespace: str, name: str, wanted: int) -> str:
    """Pin the pool to an earlier revision; answers what was done.

    Raises:
        UsageError: there is no such revision to go back to.
    """
    pool = await read(api, namespace, name)
    pin = chosen(pool, wanted)
    value = pin_text(pin) if pin.revision < pin.instead_of else None
    await _patch(api, namespace, name, {"metadata": {"annotations": {ANNOTATION_UNDO: value}}})
    if value is None:
        return f"{name} runs revision {pin.revision}, which its spec asks for."
    return (
        f"{name} goes back to revision {pin.revision} and keeps it until its spec changes; revision {pin.instead_of} "
        f"is what the spec still asks for. fairlead rollout status {name} -n {namespace} shows how far it is."
    )


def chosen(pool: Pool, wanted: int) -> Pin:
    """The pin that goes to a revision; without one to the last revision before the present one that served.

    Raises:
        UsageError: no template of it is kept.
    """
    numbers = {one.revision for one in pool.kept} | {one.revision for one in pool.live.values()}
    served = {one.revision for one in pool.kept if one.served} | {one.served for one in pool.live.values()}
    earlier = sorted(number for number in served if 0 < number < pool.runs)
    if wanted == 0 and not earlier:
        raise UsageError(
            f"no earlier revision of {pool.body['metadata']['name']} that served is kept: {_kept(numbers)}"
        )
    target = wanted or earlier[-1]
    if target not in numbers or target > pool.newest.number:
        raise UsageError(f"revision {target} is not kept: {_kept(numbers)}")
    failures = [one.failure for one in pool.live.values() if one.failure is not None]
    if target != pool.runs and any(one.revision == target for one in failures):
        again = f"fairlead rollout restart {pool.body['metadata']['name']}"
        raise UsageError(f"revision {target} did not become ready when it was tried: {again} tries it again")
    return Pin(target, pool.newest.number)


async def restart(api: Api, namespace: str, name: str, now: str) -> str:
    """Change the annotation in podTemplate that makes the pods new."""
    await read(api, namespace, name)
    metadata = {"annotations": {ANNOTATION_RESTARTED: now}}
    await _patch(api, namespace, name, {"spec": {"podTemplate": {"metadata": metadata}}})
    return f"{name} restarts. fairlead rollout status {name} -n {namespace} shows how far it is."


async def _patch(api: Api, namespace: str, name: str, body: Object) -> None:
    path, what = MODEL_POOLS.path(namespace, name), f"{MODEL_POOLS.title} {namespace}/{name}"
    query = {"fieldManager": "fairlead"}
    await api.request("PATCH", path, what=what, verb="patch", query=query, body=body, headers=MERGE)


def _state(pool: Pool, number: int, found: Iterable[Kept]) -> str:
    if any(one.revision == number for one in pool.live.values()):
        pin = pin_of(pool.body["metadata"].get("annotations"))
        return "runs (undo)" if pin is not None and pin.instead_of == pool.newest.number > number else "runs"
    failures = [one.failure for one in pool.live.values() if one.failure is not None]
    if any(one.revision == number for one in failures):
        return "failed"
    return "served" if any(one.served for one in found) else "never served"


def _kept(numbers: Iterable[int]) -> str:
    listed = ", ".join(str(number) for number in sorted(numbers, reverse=True))
    return f"kept are {listed}" if listed else "none is kept"


def _unseen(meta: Mapping[str, Any]) -> str:
    where = f"kubectl describe mpool {meta['name']} -n {meta['namespace']}"
    return f"{meta['name']}: the operator has not looked at generation {meta.get('generation')} yet. Is it up? {where}"


def _wait_ms(text: str) -> int:
    try:
        return parse_duration_ms(text) if text else 0
    except ValueError as error:
        raise UsageError(f"--wait {text[:40]!r} is no time: write 90s, 30m or 1h") from error


def _refusal(error: ApiError) -> str:
    """What the API server refused, and what to do."""
    if isinstance(error, ForbiddenError):
        return f"you may not {error.verb} {error.what}: {error.message}. The role edit of the namespace is enough."
    return str(error)


def _json(lines: Sequence[Revision]) -> str:
    return msgspec.json.encode([asdict(one) for one in lines]).decode()
