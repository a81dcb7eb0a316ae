"""A ledger of one process's own, for benches, tests and a router without a control plane: fixed amounts, one window.

It speaks the same messages as the real one, so the router runs the same code. It keeps nothing on disk; what an
earlier session held stays counted as spent.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from fairlead_router.contract import AccountAnswer, Holding, SyncAnswer, SyncRefusal, SyncRequest, Verdict, Window

_YEAR_MS: Final = 365 * 86_400_000


class LocalLease:
    """Grants from ``limits`` (budget → amount in its unit); every account of a budget has the whole amount."""

    def __init__(self, limits: Mapping[str, int], clock_ms: Callable[[], int]) -> None:
        self._limits = dict(limits)
        self._clock_ms = clock_ms
        self._window = Window(id=1, start=0, end=clock_ms() + _YEAR_MS)
        self._ids: dict[tuple[str, str, str], int] = {}
        self._names: dict[int, tuple[str, str, str]] = {}
        self._told: dict[tuple[int, int], Holding] = {}
        """By account and class."""
        self._session = ""
        self._before: dict[int, int] = {}

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        """Answer one message."""
        message = msgspec.json.decode(body, type=SyncRequest)
        if message.replay:
            return 410, msgspec.json.encode(SyncRefusal(reason="Closed"))
        if message.session != self._session:
            self._session = message.session
            for (account, _), told in self._told.items():
                self._before[account] = self._before.get(account, 0) + _held(told)
            self._told.clear()
        wanted: dict[tuple[int, int], tuple[int, int]] = {}
        for holding in message.holdings:
            place = (holding.account, holding.klass)
            granted = self._told[place].granted if place in self._told else 0
            self._told[place] = msgspec.structs.replace(holding, granted=max(granted, holding.granted))
            wanted[place] = (max(holding.want, holding.need), holding.first)
        for ask in message.asks:
            name = (ask.budget, ask.namespace, ask.key)
            if ask.budget in self._limits and ask.at == "Now":
                wanted[self._account(name), ask.klass] = (max(ask.want, ask.need), ask.first)
        answer = SyncAnswer(
            epoch="local",
            seq=message.seq,
            now=self._clock_ms(),
            accounts=tuple(self._grant(*place, *want) for place, want in wanted.items()),
            unknown_budgets=tuple({ask.budget for ask in message.asks} - set(self._limits)),
        )
        return 200, msgspec.json.encode(answer)

    def _account(self, name: tuple[str, str, str]) -> int:
        account = self._ids.setdefault(name, len(self._ids) + 1)
        self._names[account] = name
        return account

    def _grant(self, account: int, klass: int, want: int, first: int) -> AccountAnswer:
        told = self._told.get((account, klass)) or Holding(account=account, klass=klass)
        budget, namespace, key = self._names[account]
        limit = self._limits[budget]
        before = self._before.get(account, 0)
        others = [self._told[place] for place in self._told if place[0] == account and place[1] != klass]
        held = before + sum(map(_held, others)) + _held(told)
        grant = min(want, max(0, limit - held))
        verdict: Verdict = "Granted"
        if grant < first:
            grant, verdict = 0, "TooLarge" if first > limit else "Exhausted"
        told = msgspec.structs.replace(told, granted=told.granted + grant)
        self._told[account, klass] = told
        return AccountAnswer(
            account=account,
            klass=klass,
            budget=budget,
            namespace=namespace,
            key=key,
            window=self._window,
            granted=told.granted,
            verdict=verdict if first else "None",
            available=max(0, limit - held - grant),
            holders=1,
            limit=limit,
            used=before + told.charged + sum(other.charged for other in others),
        )


def _held(told: Holding) -> int:
    return told.granted - told.returned + told.unbacked
