"""Our own tokens, one for each audience: kubelet's projected files, or TokenRequests outside a cluster."""

from pathlib import Path
from typing import Protocol

from fairlead_operator.clock import Clock
from fairlead_operator.kube.api import Api

LIFETIME_S = 3600
REUSE_S = 600.0


class TokenSource(Protocol):
    """Where tokens come from."""

    async def token(self, audience: str) -> str:
        """A token that is valid for some minutes at least."""


class FileTokens:
    """Files named by the last part of the audience (``fairlead.dev/ledger`` → ``ledger``); kubelet renews them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def token(self, audience: str) -> str:
        """The file's present content: it is read each time, because it changes under us."""
        return (self._folder / audience.rpartition("/")[2]).read_text().strip()


class RequestedTokens:
    """Tokens of the operator's ServiceAccount by TokenRequest, for a process that runs outside the cluster."""

    def __init__(self, api: Api, namespace: str, account: str, clock: Clock) -> None:
        self._api = api
        self._namespace = namespace
        self._account = account
        self._clock = clock
        self._kept: dict[str, tuple[str, float]] = {}

    async def token(self, audience: str) -> str:
        """A token that is asked for again after ten minutes."""
        text, until = self._kept.get(audience, ("", 0.0))
        now = self._clock.monotonic()
        if not text or now >= until:
            text = await self._api.request_token(self._namespace, self._account, audience, LIFETIME_S)
            self._kept[audience] = (text, now + REUSE_S)
        return text
