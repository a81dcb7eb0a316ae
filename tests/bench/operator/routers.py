"""Every router of the bench's fleet, in one process inside the cluster's network.

It follows the pods as they come and go. At the address of each it answers ``/-/signals`` as the pod's router would, and
as each it long-polls the operator for its configuration. What the routers count moves by the plans' demand.

usage: python -m tests.bench.operator.routers SETTINGS
"""

import asyncio
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt
import msgspec
from aiohttp import web

from fairlead_operator.clock import SystemClock
from fairlead_operator.decide.facts import PodFact, pod_fact
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.reflector import Reflector, Source
from fairlead_operator.kube.resources import GATEWAY, MANAGED_BY, PODS
from fairlead_operator.kube.session import login, open_session
from fairlead_router.contract import AUDIENCE_CONTROL, Signals
from tests.bench.operator.fleet import Plan
from tests.bench.operator.traffic import Traffic

PORT: Final = 9090
TICK_S: Final = 1.0
WAIT_S: Final = 50
"""As long as a router lets the operator wait with its answer."""
RETRY_S: Final = 1.0
TOKEN_S: Final = 7200


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is. ``key`` is the file of the key that the cluster signs tokens with, ``key_id`` its name."""

    kubeconfig: str
    operator: str
    release: str
    platform: str
    issuer: str
    key: str
    key_id: str
    day_s: float
    seed: int
    plans: tuple[Plan, ...]


class Versions(msgspec.Struct, frozen=True, rename="camel"):
    """Of the operator's answer that which a router tells again; the rest is only received."""

    version: str = ""
    endpoints_version: str = ""
    budgets_version: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Router:
    """One pod's."""

    pod: PodFact
    began: float
    has: Versions = field(default_factory=Versions)
    polls: asyncio.Task[None] | None = None


class Routers:
    """All of them."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._key = Path(settings.key).read_text(encoding="utf-8")
        self._by_address: dict[str, Router] = {}
        self._began = time.monotonic()
        self.traffic = {
            f"{settings.platform}/{plan.name}": (plan, Traffic(plan, random.Random(f"{settings.seed} {plan.name}")))  # noqa: S311 - chance, not a secret
            for plan in settings.plans
        }

    def changed(self, before: Object | None, after: Object | None) -> None:
        """A pod came, changed or went."""
        old, new = self._running(before), self._running(after)
        if old is not None and (new is None or new.ip != old.ip):
            gone = self._by_address.pop(old.ip, None)
            if gone is not None and gone.polls is not None:
                gone.polls.cancel()
        if new is not None:
            known = self._by_address.setdefault(new.ip, Router(new, time.monotonic()))
            known.pod = new
            known.polls = known.polls or asyncio.create_task(self._follow(known))

    @staticmethod
    def _running(body: Object | None) -> PodFact | None:
        fact = pod_fact(body) if body is not None else None
        return fact if fact is not None and fact.ip and fact.phase == "Running" else None

    async def run(self) -> None:
        """Let time pass."""
        last = self._began
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            ready = self._ready()
            for key, (plan, traffic) in self.traffic.items():
                # A pool's users come once it has been ready.
                if key in ready or traffic.totals.arrivals:
                    rate = plan.rate(now - self._began, self._settings.day_s)
                    traffic.advance(now - last, rate, ready.get(key, ()), time.time_ns() // 1_000_000)
            last = now

    def _ready(self) -> dict[str, list[str]]:
        """The engines that take requests, by pool."""
        found: dict[str, list[str]] = {}
        for one in self._by_address.values():
            if one.pod.pool and one.pod.ready and not one.pod.terminating:
                found.setdefault(one.pod.pool, []).append(one.pod.key)
        return found

    async def signals(self, request: web.Request) -> web.Response:
        """What the router at this address says of itself."""
        address = request.transport.get_extra_info("sockname")[0] if request.transport is not None else ""
        router = self._by_address.get(address)
        if router is None or "Authorization" not in request.headers:
            return web.Response(status=404 if router is None else 401)
        return web.Response(body=msgspec.json.encode(self._told(router)), content_type="application/json")

    def _told(self, router: Router) -> Signals:
        pod = router.pod
        about: dict[str, Any] = {
            "router": pod.key,
            "config_version": router.has.version,
            "endpoints_version": router.has.endpoints_version,
            "budgets_version": router.has.budgets_version,
            "now_ms": time.time_ns() // 1_000_000,
            "uptime_s": int(time.monotonic() - router.began),
        }
        if not pod.pool:
            place, count = self._place(pod)
            told = tuple(one.entry(key, place, count) for key, (_, one) in self.traffic.items())
            return Signals(**about, pools=told)
        if pod.pool not in self.traffic:
            return Signals(**about)
        pool, engine = self.traffic[pod.pool][1].sidecar(pod.pool, pod.key)
        draining = pod.terminating
        return Signals(**about, max_context_tokens=8192, engine=engine, pools=(pool,), draining=draining)

    def _place(self, pod: PodFact) -> tuple[int, int]:
        """Which of how many gateways this is."""
        gateways = sorted(one.pod.key for one in self._by_address.values() if not one.pod.pool)
        return gateways.index(pod.key), len(gateways)

    async def _follow(self, router: Router) -> None:
        """Long-poll the configuration, as a router does."""
        headers = {"Authorization": f"Bearer {self._token(router.pod)}"}
        decoder = msgspec.json.Decoder(Versions)
        while True:
            has = router.has
            query = f"have={has.version}&endpoints={has.endpoints_version}&wait={WAIT_S}"
            try:
                async with self._session.get(f"{self._settings.operator}/v1/config?{query}", headers=headers) as answer:
                    body = await answer.read()
                    if answer.status == 200:
                        router.has = decoder.decode(body)
                        continue
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
                pass
            await asyncio.sleep(RETRY_S)

    def _token(self, pod: PodFact) -> str:
        """As the kubelet projects it into the pod."""
        claims = {
            "iss": self._settings.issuer,
            "aud": [AUDIENCE_CONTROL],
            "exp": int(time.time()) + TOKEN_S,
            "kubernetes.io": {
                "namespace": pod.namespace,
                "serviceaccount": {"name": "default", "uid": "sa"},
                "pod": {"name": pod.name, "uid": pod.uid},
            },
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self._settings.key_id})


def reflectors(api: Api, settings: Settings, routers: Routers) -> list[Reflector]:
    """Sidecars and gateways."""
    sources = (
        Source(PODS, namespace=settings.platform, labels=MANAGED_BY),
        Source(PODS, namespace=settings.release, labels=GATEWAY),
    )
    dice = random.Random()  # noqa: S311 - spreads retries; guards nothing
    return [Reflector(api, source, routers.changed, SystemClock(), dice) for source in sources]


async def serve(settings: Settings) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    who = await login(settings.kubeconfig)
    connector = aiohttp.TCPConnector(limit=0)
    patience = aiohttp.ClientTimeout(total=WAIT_S + 30)
    async with open_session(who) as kube, aiohttp.ClientSession(connector=connector, timeout=patience) as session:
        routers = Routers(settings, session)
        app = web.Application()
        app.router.add_get("/-/signals", routers.signals)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", PORT, backlog=1024).start()  # noqa: S104 - the address of every fake pod
        follow = [one.run() for one in reflectors(Api(kube, who.server), settings, routers)]
        tasks = [asyncio.create_task(one) for one in (*follow, routers.run(), stop.wait())]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await runner.cleanup()
        for task in done:
            task.result()


if __name__ == "__main__":
    asyncio.run(serve(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Settings)))
