"""What a Deployment says of its pod template and of the pool's revisions, in annotations.

Their controller copies them to the ReplicaSet of the present template, where they stay when another one follows: so the
ReplicaSets are the history, `kubectl rollout history` shows it too, and a new operator finds it. A team may write these
annotations; what cannot be read counts as absent.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from fairlead_operator.decide.facts import ENGINE, LABEL_REVISION, LABEL_VARIANT, ROUTER, time_ms
from fairlead_operator.decide.rollout import Failure, Kept, Live, Newest, Pin, progress_of
from fairlead_operator.render.pod_template import container

ANNOTATION_SPEC = "fairlead.dev/spec-hash"
ANNOTATION_TEMPLATE = "fairlead.dev/template"
ANNOTATION_REVISION = "fairlead.dev/revision"
ANNOTATION_SERVED = "fairlead.dev/served-revision"
ANNOTATION_NEWEST = "fairlead.dev/newest-revision"
ANNOTATION_FAILED = "fairlead.dev/failed-revision"
ANNOTATION_UNDO = "fairlead.dev/undo"
"""On the pool, written by people: ``13 to 12`` keeps revision 12 as long as 13 is the newest."""
ANNOTATION_RESTARTED = "fairlead.dev/restarted-at"
"""In podTemplate, written by people: another value is another revision."""
CHANGE_CAUSE = "kubernetes.io/change-cause"
HISTORY = 10
"""Revisions that are kept beside the present one."""
CHANGE_CHARS = 500
FAILURE_CHARS = 1000
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_NEWEST = re.compile(r"([0-9]{1,9}) ([0-9a-f]{0,64})", re.ASCII)
_UNDO = re.compile(r"([0-9]{1,9}) to ([0-9]{1,9})", re.ASCII)
_FAILURE = {"revision": int, "hash": str, "variant": str, "reason": str, "message": str}


def live_of(deployment: Mapping[str, Any]) -> Live:
    """What a Deployment runs. One of an earlier release has no number: it runs the pool's first revision."""
    notes = _notes(deployment)
    labels = ((kept_template(notes) or {}).get("metadata") or {}).get("labels") or {}
    return Live(
        revision=_number(notes.get(ANNOTATION_REVISION)) or 1,
        spec_hash=notes.get(ANNOTATION_SPEC, ""),
        label=str(labels.get(LABEL_REVISION, "")),
        served=_number(notes.get(ANNOTATION_SERVED)),
        newest=_newest(notes.get(ANNOTATION_NEWEST, "")),
        failure=_failure(notes.get(ANNOTATION_FAILED, "")),
        progress=progress_of(deployment),
    )


def kept_of(replica_set: Mapping[str, Any]) -> Kept | None:
    """The template that a ReplicaSet keeps; ``None`` where it says none, as those of an earlier release."""
    notes, meta = _notes(replica_set), replica_set.get("metadata") or {}
    template, revision = kept_template(notes), _number(notes.get(ANNOTATION_REVISION))
    if template is None or revision == 0:
        return None
    return Kept(
        variant=str((meta.get("labels") or {}).get(LABEL_VARIANT, "")),
        revision=revision,
        spec_hash=notes.get(ANNOTATION_SPEC, ""),
        served=_number(notes.get(ANNOTATION_SERVED)) == revision,
        template=template,
        change=notes.get(CHANGE_CAUSE, ""),
        created_ms=time_ms(meta.get("creationTimestamp")) or 0,
    )


def kept_template(annotations: Mapping[str, str]) -> dict[str, Any] | None:
    """The kept template; one that somebody damaged counts as absent."""
    try:
        kept = json.loads(annotations.get(ANNOTATION_TEMPLATE, ""))
    except ValueError:
        return None
    return kept if isinstance(kept, dict) and isinstance(kept.get("spec"), dict) else None


def pin_of(annotations: Mapping[str, str] | None) -> Pin | None:
    """What ``fairlead rollout undo`` wrote on a pool."""
    found = _UNDO.fullmatch((annotations or {}).get(ANNOTATION_UNDO, ""))
    return None if found is None else Pin(revision=int(found[2]), instead_of=int(found[1]))


def pin_text(pin: Pin) -> str:
    """The annotation's value."""
    return f"{pin.instead_of} to {pin.revision}"


def notes_of(newest: Newest, failure: Failure | None, revision: int, served: int, change: str) -> dict[str, str]:
    """The annotations of a Deployment that speak of revisions."""
    failed = None if failure is None else {**asdict(failure), "message": failure.message[:FAILURE_CHARS]}
    return {
        ANNOTATION_REVISION: str(revision),
        ANNOTATION_NEWEST: f"{newest.number} {newest.hash}",
        **({ANNOTATION_SERVED: str(served)} if served else {}),
        **({ANNOTATION_FAILED: canonical(failed)} if failed else {}),
        **({CHANGE_CAUSE: change} if change else {}),
    }


def canonical(value: Any) -> str:
    """The same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def change_text(before: Mapping[str, Any] | None, after: Mapping[str, Any], old: int, new: int) -> str:
    """``revision 12 to 13: engine image v0.32.0 to v0.32.1``; without a template before, ``revision 13``."""
    if before is None:
        return f"revision {new}"
    parts = list(_changes(before, after)) or ["other parts of the pods"]
    return f"revision {old} to {new}: {'; '.join(parts)}"[:CHANGE_CHARS]


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    for name in (ENGINE, ROUTER):
        old, new = (container(one, name).get("image", "") for one in (before, after))
        if old != new:
            yield f"{name} image {old} to {new}"
    yield from _argument_changes(before, after)
    marks = [
        ((one.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION_RESTARTED) for one in (before, after)
    ]
    if marks[0] != marks[1]:
        yield "restart"


def _argument_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    """``--max-num-seqs 64 to 32``, ``+ --enforce-eager``, ``- --seed=1``."""
    old, new = (dict(_split(text) for text in container(one, ENGINE).get("args") or ()) for one in (before, after))
    for name in {**old, **new}:
        if name in old and name in new and old[name] != new[name]:
            yield f"{name} {old[name]} to {new[name]}"
        elif (name in old) != (name in new):
            value = {**old, **new}[name]
            yield f"{'+' if name in new else '-'} {name}{'=' if value else ''}{value}"


def _split(argument: str) -> tuple[str, str]:
    """Name and value of an argument; what comes first and has no name is the model."""
    name, _, value = argument.partition("=")
    return (name, value) if name.startswith("--") else ("model", argument)


def _notes(body: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in ((body.get("metadata") or {}).get("annotations") or {}).items()}


def _number(text: object) -> int:
    found = _NUMBER.fullmatch(str(text))
    return int(found[0]) if found else 0


def _newest(text: str) -> Newest:
    found = _NEWEST.fullmatch(text)
    return Newest(int(found[1]), found[2]) if found else Newest()


def _failure(text: str) -> Failure | None:
    try:
        said = json.loads(text) if text else None
    except ValueError:
        return None
    if not isinstance(said, dict) or any(not isinstance(said.get(key), kind) for key, kind in _FAILURE.items()):
        return None
    return Failure(**{key: said[key] for key in _FAILURE})
