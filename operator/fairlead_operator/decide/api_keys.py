"""API keys: labelled ConfigMaps in teams' namespaces, each with the hash of one key.

The namespace of a key is its object's, never a field, so only who may create ConfigMaps in a namespace makes keys that
spend its money. What is wrong with an object is told of that object and keeps no other from its work.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fairlead_operator.decide.facts import time_ms
from fairlead_router.contract import MAX_LABEL, ApiKey, is_label

LABEL_API_KEY = "fairlead.dev/api-key"
API_KEYS = f"{LABEL_API_KEY}=true"
"""Selects the objects."""
PREFIX = "fairlead-key-"
HASH, FEATURE, EXPIRES = "sha256", "feature", "expires"
MAX_KEYS = 10_000
MAX_KEYS_EACH = 1_000
"""Of one namespace, so that no team takes the places of all others."""

NAME = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
"""A DNS label (RFC 1123)."""
_HASH = re.compile("[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyFact:
    """One labelled object: its key, or why it has none."""

    namespace: str
    object_name: str
    uid: str
    created_ms: int
    key: ApiKey | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys that routers are told of, by namespace and name; and what is wrong with objects, by uid."""

    keys: tuple[ApiKey, ...] = ()
    facts: tuple[KeyFact, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)

    def problem(self, fact: KeyFact) -> str:
        """Why this object's key is not in force; empty if it is."""
        return self.problems.get(fact.uid, "")


def key_fact(body: Mapping[str, Any]) -> KeyFact:
    """What a labelled ConfigMap says."""
    meta = body["metadata"]
    namespace, name = str(meta.get("namespace", "")), str(meta["name"])
    uid, created = str(meta.get("uid", "")), time_ms(meta.get("creationTimestamp")) or 0
    try:
        key = parse_key(namespace, name, body.get("data") or {})
    except ValueError as error:
        return KeyFact(namespace, name, uid, created, None, str(error))
    return KeyFact(namespace, name, uid, created, key)


def parse_key(namespace: str, object_name: str, data: Mapping[str, str]) -> ApiKey:
    """The key of a ConfigMap.

    Raises:
        ValueError: it is not a key; the text says what to change.
    """
    name = object_name.removeprefix(PREFIX)
    if name == object_name or not NAME.fullmatch(name):
        raise ValueError(f"the name must be {PREFIX}NAME, NAME a DNS label of at most 63 characters")
    digest, feature = data.get(HASH, ""), data.get(FEATURE, "")
    if not _HASH.fullmatch(digest):
        raise ValueError(f"data.{HASH} must be the SHA-256 of the key, 64 digits of lower-case hex")
    if not is_feature(feature):
        raise ValueError(f"data.{FEATURE} must have at most {MAX_LABEL} printable ASCII characters")
    return ApiKey(
        hash=digest, namespace=namespace, name=name, feature=feature, expires_ms=_expires(data.get(EXPIRES, ""))
    )


def is_feature(text: str) -> bool:
    """Whether routers take this as a feature; empty is none."""
    return not text or is_label(text)


def key_ring(facts: Iterable[KeyFact]) -> KeyRing:
    """The keys in force. The oldest come first where not all can be: within the bounds, and of those with one hash."""
    ordered = sorted(facts, key=lambda one: (one.created_ms, one.namespace, one.object_name))
    taken: dict[str, ApiKey] = {}
    each: Counter[str] = Counter()
    problems: dict[str, str] = {}
    for fact in ordered:
        key = fact.key
        problem = fact.problem if key is None else _conflict(key, taken, each[key.namespace])
        if problem:
            problems[fact.uid] = problem
        elif key is not None:
            taken[key.hash] = key
            each[key.namespace] += 1
    keys = sorted(taken.values(), key=lambda one: (one.namespace, one.name))
    return KeyRing(tuple(keys), tuple(ordered), problems)


def _conflict(key: ApiKey, taken: Mapping[str, ApiKey], count: int) -> str:
    if key.hash in taken:
        # Not by whom: who made the older one may be another team.
        return "an older key has the same hash; it stays in force. Make another key"
    if count >= MAX_KEYS_EACH:
        return f"namespace {key.namespace} has {MAX_KEYS_EACH} keys already, older than this one; revoke some"
    if len(taken) >= MAX_KEYS:
        return f"the cluster has {MAX_KEYS} keys already, older than this one; revoke some"
    return ""


def _expires(text: str) -> int:
    """Milliseconds of an RFC 3339 time; 0 for none.

    Raises:
        ValueError: it is not such a time.
    """
    if not text:
        return 0
    try:
        at = datetime.fromisoformat(text)
        ms = round(at.timestamp() * 1000) if at.tzinfo is not None else 0
    except (ValueError, OverflowError):
        ms = 0
    if ms <= 0:
        raise ValueError(f"data.{EXPIRES} must be a time such as 2027-02-19T12:00:00Z")
    return ms
