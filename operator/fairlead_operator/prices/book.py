"""All prices: the list of the chart's values, and what OpenCost says of nodes, kept for a bounded time."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fairlead_operator.clock import Clock
from fairlead_operator.decide.facts import clock_text
from fairlead_operator.decide.node_prices import (
    GPU_METRIC,
    TOTAL_METRIC,
    NodePrice,
    NodePrices,
    OpenCostSource,
    merge,
    query,
    read_usd,
    still_holding,
)
from fairlead_operator.decide.pricing import PriceList
from fairlead_operator.prices.file import PriceFile
from fairlead_operator.prices.prometheus import Prometheus, PrometheusError

log = logging.getLogger(__name__)

ASK_EVERY_S = 60.0
LOOK_S = 5.0
"""Between two looks at the file, so that OpenCost is asked soon after it is configured."""


class Prices:
    """The prices as they are known now. Every replica of the operator asks, so that a new leader has them at once."""

    def __init__(self, path: Path, clock: Clock, prometheus: Prometheus | None = None) -> None:
        self._file = PriceFile(path)
        self._clock = clock
        self._prometheus = prometheus or Prometheus()
        self._begun_ms = clock.now_ms()
        self._source: OpenCostSource | None = None
        self._due = 0.0
        self._nodes: Mapping[str, NodePrice] = {}
        self._answered_ms = 0
        self._failing = False

    def read(self) -> PriceList:
        """The list as the file has it now, with the prices of nodes that still hold."""
        prices = self._file.read()
        if prices.source is None:
            return prices
        now, keep_ms = self._clock.now_ms(), prices.source.keep_ms
        known = NodePrices(
            nodes=self._nodes,
            state=self._state(),
            pending=not self._answered_ms and now - self._begun_ms < keep_ms,
        )
        return replace(prices, node_prices=known)

    async def run(self) -> None:
        """Ask OpenCost until cancelled."""
        while True:
            await self.refresh()
            await self._clock.sleep(LOOK_S)

    async def refresh(self) -> None:
        """Ask when it is time to; another source than before is asked at once, and what the old one said is forgotten.

        A failure is told when it begins and when it ends; the prices of before hold until they are too old.
        """
        source = self._file.read().source
        if source is not None and self._renew(source):
            await self._try(source)

    def _renew(self, source: OpenCostSource) -> bool:
        """Drop what is too old or from elsewhere; whether it is time to ask."""
        before, self._source = self._source, source
        if before is not None and (before.url, before.matchers) != (source.url, source.matchers):
            self._nodes, self._answered_ms = {}, 0
        self._nodes = still_holding(self._nodes, source.keep_ms, self._clock.now_ms())
        return source != before or self._clock.monotonic() >= self._due

    async def _try(self, source: OpenCostSource) -> None:
        self._due = self._clock.monotonic() + ASK_EVERY_S
        try:
            await self._ask(source)
        except PrometheusError as error:
            if not self._failing:
                log.warning("OpenCost's prices, Prometheus at %s: %s", source.url, error)
            self._failing = True
            return
        if self._failing:
            log.info("OpenCost's prices, Prometheus at %s: it answers again", source.url)
        self._failing = False

    async def _ask(self, source: OpenCostSource) -> None:
        total, accelerator = await self._prometheus.ask(
            source, [query(TOTAL_METRIC, source), query(GPU_METRIC, source)]
        )
        try:
            whole, each = read_usd(total), read_usd(accelerator)
        except ValueError as error:
            raise PrometheusError(str(error)) from None
        if not whole:
            raise PrometheusError(f"it has no series of {TOTAL_METRIC}: is OpenCost scraped?")
        now = self._clock.now_ms()
        self._nodes = still_holding(merge(self._nodes, whole, each, now), source.keep_ms, now)
        self._answered_ms = now

    def _state(self) -> str:
        if not self._failing:
            return "OpenCost has no price for it" if self._answered_ms else "OpenCost has not been asked yet"
        since = f"since {clock_text(self._answered_ms)}" if self._answered_ms else "yet"
        return f"OpenCost has given no prices {since} (the operator's log says why)"
