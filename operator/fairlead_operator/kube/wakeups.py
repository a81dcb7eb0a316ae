"""kopf: login, watching of our own kinds, and a wake-up for each change of them.

A wake-up carries a name and nothing else: what is true is in the reflectors' stores, which lose nothing in a gap.
kopf runs in a thread with a loop of its own, because its runner cancels every task that was not there when it began;
an error in it (a kind that is not installed, a permission that is missing) ends that run and is tried again later.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import kopf

from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import OWN_KINDS
from fairlead_operator.kube.session import Login, open_session

log = logging.getLogger(__name__)

RETRY_S = 30.0
ERROR_PAUSES_S = (1, 1, 2, 3, *(5,) * 12)
"""Between tries of a request that failed. kopf's own pauses grow to 21 s: for so long nobody would notice that the API
server is back."""


class NoDiffBase(kopf.DiffBaseStorage):
    """Nothing here compares an object with its past, so nothing is remembered: a tenth of the cost of an event."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> Any:
        """Nothing."""
        del body, extra_fields
        return {}

    def fetch(self, *, body: kopf.Body) -> Any:
        """Nothing."""
        del body

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:
        """Nothing."""


class NoProgress(kopf.ProgressStorage):
    """No handler here has a progress to remember."""

    def fetch(self, *, key: Any, body: kopf.Body) -> Any:
        """Nothing."""
        del key, body

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Nothing."""

    def clear(self, *, essence: Any) -> Any:
        """The same."""
        return essence


def settings() -> kopf.OperatorSettings:
    """Settings of kopf: it writes nothing, elects nobody, scans nothing."""
    chosen = kopf.OperatorSettings()
    chosen.persistence.diffbase_storage = NoDiffBase()
    chosen.persistence.progress_storage = NoProgress()
    chosen.persistence.finalizer = "fairlead.dev/unused"
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.watching.server_timeout = 290
    chosen.watching.client_timeout = 310
    chosen.watching.connect_timeout = 10
    chosen.watching.reconnect_backoff = 1.0
    chosen.networking.request_timeout = 30
    chosen.networking.error_backoffs = ERROR_PAUSES_S
    chosen.queueing.worker_limit = 64
    chosen.process.ultimate_exiting_timeout = 20
    return chosen


def registry(who: Login, wake: Callable[[Key], None]) -> kopf.OperatorRegistry:
    """The handlers: one login, one wake-up for each kind."""
    handlers = kopf.OperatorRegistry()

    async def sign_in(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=who.server, aiohttp_session=open_session(who))

    kopf.on.login(registry=handlers, errors=kopf.ErrorsMode.TEMPORARY, backoff=RETRY_S)(sign_in)

    async def changed(*, namespace: str | None, name: str, param: Any = "", **_: Any) -> None:
        wake(Key(str(param), namespace or "", name))

    for resource in OWN_KINDS:
        kind = (resource.group, resource.version, resource.plural)
        kopf.on.event(*kind, registry=handlers, param=resource.kind)(changed)
    return handlers


class Wakeups:
    """kopf in its thread. ``wake`` is called in the loop that start() was called in."""

    def __init__(self, who: Login, wake: Callable[[Key], None]) -> None:
        self._who = who
        self._wake = wake
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; needs a running loop."""
        loop = asyncio.get_running_loop()

        def wake(key: Key) -> None:
            loop.call_soon_threadsafe(self._wake, key)

        self._thread = threading.Thread(target=self._run, args=(registry(self._who, wake),), name="kopf", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    async def stop(self, seconds: float) -> None:
        """End kopf; after so many seconds the daemon thread is left to the process' end."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, seconds)

    def _run(self, handlers: kopf.OperatorRegistry) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(
                    kopf.operator(registry=handlers, settings=settings(), clusterwide=True, stop_flag=self._stop)
                )
            except Exception as error:  # noqa: BLE001 - the reflectors go on without wake-ups; the reason is logged
                log.warning("kopf stopped, next try in %.0fs: %s", RETRY_S, error)
            self._stop.wait(RETRY_S)
