"""This pod's LoRA adapters: loaded into the running engine and out of it, as the configuration says.

The configuration says what should be there, the engine's ``/v1/models`` what is. What differs is acted on, and looked
at again after each change and each start of the engine. An adapter that cannot be loaded is tried again later and
later; the others and the bare model do not wait for it. One that the configuration no longer names stays a little, for
the other routers to hear of that too. One whose path changed is unloaded and loaded anew: loading in place would make
the engine read it from disk again with every step (vLLM 0.32), and change it under requests that began with the old.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from fairlead_router.contract import AdapterConfig, AdapterSignals
from fairlead_router.upstream import Pool, fetch, request_head
from fairlead_router.warm_up import engine_words

log = logging.getLogger(__name__)

KEPT_S: Final = 5.0
"""How long an adapter stays loaded that is no longer wanted."""
LOAD_S: Final = 120.0
"""Longest time to load one; the engine downloads what is not there yet."""
FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 300.0
"""While an engine loads an adapter it does nothing else, so it is not asked often to do so in vain."""
_OK: Final = 200
_LOAD: Final = "/v1/load_lora_adapter"
_UNLOAD: Final = "/v1/unload_lora_adapter"


class Step(NamedTuple):
    """An adapter to load from a path; without a path, to unload."""

    name: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """Loading this path failed ``times`` times, at last ``at``."""

    path: str
    times: int
    at: float
    error: str


def steps(
    wanted: Mapping[str, str], loaded: Mapping[str, str], unwanted: Mapping[str, float], failed: Mapping[str, Failed],
    now: float,
) -> list[Step]:  # fmt: skip
    """What is to be done, unloading first: its room may be needed.

    ``wanted`` and ``loaded`` are paths by name, ``unwanted`` since when a loaded one is not wanted.
    """
    gone = [Step(name) for name in loaded if name not in wanted and now - unwanted.get(name, now) >= KEPT_S]
    moved = [Step(name) for name, path in loaded.items() if wanted.get(name, path) != path]
    absent = [Step(name, path) for name, path in wanted.items() if loaded.get(name) != path]
    return [*gone, *moved, *(step for step in absent if _due(failed.get(step.name), step.path, now))]


def _due(failed: Failed | None, path: str, now: float) -> bool:
    """Another path is another adapter, to which earlier failures do not apply."""
    if failed is None or failed.path != path:
        return True
    return now - failed.at >= min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failed.times - 1, 10))


class Adapters:
    """The adapters of the engine in this pod. ``pool`` gives the connections to it."""

    def __init__(self, pool: Callable[[], Pool], now: Callable[[], float]) -> None:
        self._pool = pool
        self._now = now
        self._wanted: dict[str, str] = {}
        self._loaded: dict[str, str] = {}
        self._unwanted: dict[str, float] = {}
        self._failed: dict[str, Failed] = {}

    def want(self, adapters: tuple[AdapterConfig, ...]) -> None:
        """The configuration names these."""
        self._wanted = {adapter.name: adapter.path for adapter in adapters}
        self._failed = {name: failed for name, failed in self._failed.items() if name in self._wanted}

    def concerned(self) -> bool:
        """Whether there is anything to look after."""
        return bool(self._wanted or self._loaded)

    def forget(self) -> None:
        """The engine is another one: nothing is known of it."""
        self._loaded, self._unwanted, self._failed = {}, {}, {}

    def report(self) -> tuple[AdapterSignals, ...]:
        """How each of the wanted ones stands."""
        return tuple(
            AdapterSignals(name=name, loaded=self._loaded.get(name) == path, error=self._error(name, path))
            for name, path in self._wanted.items()
        )

    def _error(self, name: str, path: str) -> str:
        failed = self._failed.get(name)
        return failed.error if failed is not None and failed.path == path else ""

    def told(self, loaded: Mapping[str, str]) -> None:
        """The engine says that it has these, paths by name."""
        now = self._now()
        self._loaded = dict(loaded)
        self._unwanted = {name: self._unwanted.get(name, now) for name in loaded if name not in self._wanted}

    async def catch_up(self) -> None:
        """Do what is to be done now, for at most ``LOAD_S`` in all; what is not reached is done the next time.

        Raises:
            OSError, TimeoutError: the engine cannot be reached.
        """
        until = self._now() + LOAD_S
        for step in steps(self._wanted, self._loaded, self._unwanted, self._failed, self._now()):
            left = until - self._now()
            if left <= 0:
                return
            await (self._load(step, left) if step.path else self._unload(step.name))

    async def _load(self, step: Step, timeout_s: float) -> None:
        try:
            error = await self._post(_LOAD, {"lora_name": step.name, "lora_path": step.path}, timeout_s)
        except TimeoutError:
            error = f"the engine did not load it within {timeout_s:.0f}s"
        facts = {"adapter": step.name, "path": step.path}
        if not error:
            self._loaded[step.name] = step.path
            self._failed.pop(step.name, None)
            log.info("adapter loaded", extra={"event": "AdapterLoaded", **facts})
            return
        before = self._failed.get(step.name)
        times = before.times + 1 if before is not None and before.path == step.path else 1
        self._failed[step.name] = Failed(step.path, times, self._now(), error)
        log.warning("adapter not loaded: %s", error, extra={"event": "AdapterNotLoaded", **facts, "times": times})

    async def _unload(self, name: str) -> None:
        error = await self._post(_UNLOAD, {"lora_name": name}, LOAD_S)
        if error:
            log.warning("adapter not unloaded: %s", error, extra={"event": "AdapterNotUnloaded", "adapter": name})
            return
        self._loaded.pop(name, None)
        self._unwanted.pop(name, None)
        log.info("adapter unloaded", extra={"event": "AdapterUnloaded", "adapter": name})

    async def _post(self, path: str, value: dict[str, str], timeout_s: float) -> str:
        """What the engine has against it; empty if nothing."""
        body = msgspec.json.encode(value)
        head = request_head("POST", path, "engine", (("content-type", "application/json"),), len(body))
        reply = await fetch(self._pool(), head, body, timeout_s)
        return "" if reply.status == _OK else f"{reply.status}: {engine_words(reply.body)}"
