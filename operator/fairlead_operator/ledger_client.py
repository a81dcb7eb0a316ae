"""The operator's and the command line's calls to the ledger."""

from typing import TypeVar

import aiohttp
import msgspec

from fairlead_operator.errors import ApiError, LedgerError
from fairlead_operator.http_body import read_body
from fairlead_operator.kube.tokens import TokenSource
from fairlead_router.contract import (
    AUDIENCE_LEDGER,
    PutBudgets,
    PutCards,
    PutCosts,
    SpendList,
    UsageAnswer,
)

TIMEOUT_S = 5.0
MAX_BYTES = 64 * 1024 * 1024
OK = (200, 204)

T = TypeVar("T")


class LedgerClient:
    """One ledger. Every call raises LedgerError for whatever goes wrong; none retries by itself."""

    def __init__(self, session: aiohttp.ClientSession, url: str, tokens: TokenSource) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._tokens = tokens

    async def put_budgets(self, budgets: PutBudgets) -> None:
        """Say which budgets there are."""
        await self._call("PUT", "/v1/budgets", {}, budgets)

    async def put_cards(self, cards: PutCards) -> None:
        """Add rate cards."""
        await self._call("PUT", "/v1/cards", {}, cards)

    async def put_costs(self, costs: PutCosts) -> None:
        """Tell running totals of replica time and cost."""
        await self._call("PUT", "/v1/costs", {}, costs)

    async def cards(self) -> PutCards:
        """All cards that are stored."""
        return _decode("cards", await self._call("GET", "/v1/cards", {}), PutCards)

    async def costs(self, since_ms: int) -> PutCosts:
        """Running totals of the buckets since then."""
        return _decode("costs", await self._call("GET", "/v1/costs", {"since": str(since_ms)}), PutCosts)

    async def spend(self) -> SpendList:
        """How every budget stands."""
        return _decode("spend", await self._call("GET", "/v1/spend", {}), SpendList)

    async def usage(self, by: str, since_ms: int, until_ms: int, **filters: str) -> UsageAnswer:
        """Usage and bills of a time, grouped by dimensions; ``filters`` are ``step`` and what dimensions must equal."""
        query = {"by": by, "since": str(since_ms), "until": str(until_ms), **filters}
        return _decode("usage", await self._call("GET", "/v1/usage", query), UsageAnswer)

    async def _call(self, method: str, path: str, query: dict[str, str], body: msgspec.Struct | None = None) -> bytes:
        data = None if body is None else msgspec.json.encode(body)
        name = f"{method} {path}"
        try:
            headers = {
                "Authorization": f"Bearer {await self._tokens.token(AUDIENCE_LEDGER)}",
                "Content-Type": "application/json",
            }
            async with self._session.request(
                method,
                self._url + path,
                params=query,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as response:
                answer = await read_body(response, MAX_BYTES)
        except (aiohttp.ClientError, TimeoutError, OSError, ApiError) as error:
            raise LedgerError(name, f"no answer from {self._url} ({type(error).__name__} {error})") from error
        if response.status not in OK:
            text = answer[:500].decode(errors="replace")
            raise LedgerError(name, f"answered {response.status}: {text}", response.status)
        return answer


def _decode(what: str, answer: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise LedgerError(f"GET {what}", f"the answer is not understood: {error}", OK[0]) from error
