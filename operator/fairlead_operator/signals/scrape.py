"""Asks every router for its signals, all within two seconds, and keeps the last answer of each with its time."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import aiohttp
import msgspec

from fairlead_operator.clock import Clock
from fairlead_operator.decide.signals import Report
from fairlead_operator.errors import ApiError
from fairlead_operator.http_body import read_body
from fairlead_operator.kube.tokens import TokenSource
from fairlead_router.contract import AUDIENCE_SIGNALS, Signals

log = logging.getLogger(__name__)

ADMIN_PORT = 9090
TIMEOUT_S = 2.0
AT_ONCE = 64
MAX_BYTES = 4 * 1024 * 1024

_DECODER = msgspec.json.Decoder(Signals)


@dataclass(frozen=True, slots=True)
class Target:
    """A router's pod: who it should say it is, and where it is."""

    router: str
    address: str


class Scraper:
    """The last report of each router. What a router did not answer stays unknown: its old report only grows older."""

    def __init__(
        self, session: aiohttp.ClientSession, tokens: TokenSource, clock: Clock, port: int = ADMIN_PORT
    ) -> None:
        self._session = session
        self._tokens = tokens
        self._clock = clock
        self._port = port
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._reports: dict[str, Report] = {}
        self.asked: frozenset[str] = frozenset()
        """The routers of the last round: of any other one nothing can be known yet."""
        self.rounds = 0

    @property
    def reports(self) -> Mapping[str, Report]:
        """The last report of each router that still exists."""
        return MappingProxyType(self._reports)

    async def round(self, targets: Iterable[Target]) -> None:
        """Ask all targets once; routers that are no longer among them are forgotten."""
        wanted = {target.router: target for target in targets}
        for router in self._reports.keys() - wanted.keys():
            del self._reports[router]
        try:
            token = await self._tokens.token(AUDIENCE_SIGNALS)
        except (OSError, ApiError) as error:
            log.warning("no token for the routers' signals: %s", error)
            return
        await asyncio.gather(*(self._ask(target, token) for target in wanted.values()))
        self.asked = frozenset(wanted)
        self.rounds += 1

    async def _ask(self, target: Target, token: str) -> None:
        url = f"http://{_host(target.address)}:{self._port}/-/signals"
        async with self._gate:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    signals = await self._fetch(url, token)
            except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
                log.debug("no signals from %s at %s: %s", target.router, url, error)
                return
        # A pod's address may be another's by now: who answers must be who was asked.
        if signals is not None and signals.router == target.router:
            self._reports[target.router] = Report(target.router, self._clock.now_ms(), signals)

    async def _fetch(self, url: str, token: str) -> Signals | None:
        async with self._session.get(url, headers={"Authorization": f"Bearer {token}"}) as response:
            if response.status != 200:  # noqa: PLR2004 - HTTP's own number
                log.debug("%s answered %d", url, response.status)
                return None
            return _DECODER.decode(await read_body(response, MAX_BYTES))


def _host(address: str) -> str:
    """An IPv6 address in brackets, as URLs want it."""
    return f"[{address}]" if ":" in address else address
