"""Writes Events: one for each (object, reason, key) and text within ten minutes, and never more than a burst."""

import logging
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

from fairlead_operator.clock import Clock
from fairlead_operator.errors import ApiError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import COST_BUDGETS, EVENTS, FIELD_MANAGER, MODEL_POOLS, ROUTING_POLICIES
from fairlead_operator.logs import about as fields_of

log = logging.getLogger(__name__)

REPEAT_S = 600.0
REMEMBERED = 4096
BURST = 50
REFILL_PER_S = 2.0
NOTE_BYTES = 1024
"""The API server's own bound."""
_SUBJECT = {MODEL_POOLS.kind: "pool", ROUTING_POLICIES.kind: "policy", COST_BUDGETS.kind: "budget"}


class Happening(Protocol):
    """What is told; fairlead_operator.status.events builds them."""

    @property
    def type(self) -> str:
        """Normal or Warning."""

    @property
    def reason(self) -> str:
        """One CamelCase word."""

    @property
    def message(self) -> str:
        """For people, with the numbers."""

    @property
    def key(self) -> str:
        """Tells apart what may happen to one object at the same time."""

    @property
    def fields(self) -> Mapping[str, object]:
        """Its numbers, for the log line."""


class Recorder:
    """Writes what happened to an object, once."""

    def __init__(self, api: Api, instance: str, clock: Clock) -> None:
        self._api = api
        self._instance = instance
        self._clock = clock
        self._told: OrderedDict[tuple[str, str, str], tuple[str, float]] = OrderedDict()
        self._tokens = float(BURST)
        self._refilled = clock.monotonic()

    async def tell(self, about: Object, what: Happening) -> bool:
        """Write the Event unless it was just told; answers whether it was written. Errors are logged, never raised."""
        if not self._fresh(about["metadata"]["uid"], what):
            return False
        _log(about, what)
        namespace = about["metadata"].get("namespace", "default")
        try:
            await self._api.create(EVENTS, namespace, self._body(about, what, namespace))
        except ApiError as error:
            log.info("event %s of %s was not written: %s", what.reason, about["metadata"]["name"], error)
            return False
        return True

    def _fresh(self, uid: str, what: Happening) -> bool:
        """Whether this was not told within REPEAT_S and a token is left; remembers that it is told now."""
        key, now = (uid, what.reason, what.key), self._clock.monotonic()
        text, at = self._told.get(key, ("", -REPEAT_S))
        if (text == what.message and now - at < REPEAT_S) or not self._allowed():
            return False
        self._told[key] = (what.message, now)
        self._told.move_to_end(key)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return True

    def _allowed(self) -> bool:
        """A token bucket over all objects."""
        now = self._clock.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._refilled) * REFILL_PER_S)
        self._refilled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _body(self, about: Object, what: Happening, namespace: str) -> Object:
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        meta = about["metadata"]
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": f"{meta['name'][:200]}.{secrets.token_hex(8)}", "namespace": namespace},
            "eventTime": now,
            "reportingController": FIELD_MANAGER,
            "reportingInstance": self._instance,
            "action": what.reason,
            "reason": what.reason,
            "type": what.type,
            "note": what.message.encode()[:NOTE_BYTES].decode(errors="ignore"),
            "regarding": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "namespace": meta.get("namespace", ""),
                "name": meta["name"],
                "uid": meta["uid"],
                "resourceVersion": meta.get("resourceVersion", ""),
            },
        }


def _log(about: Object, what: Happening) -> None:
    """The same as a log line, with the numbers as fields."""
    meta, level = about["metadata"], logging.WARNING if what.type == "Warning" else logging.INFO
    subject = {_SUBJECT.get(about["kind"], "object"): f"{meta.get('namespace', '')}/{meta['name']}"}
    log.log(level, "%s", what.message, extra=fields_of(what.reason, **subject, **what.fields))
