"""The router's own calls: to the operator for configuration, to the ledger for leases, with tokens from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fairlead_router.upstream import Pool, Reply, Target, fetch, request_head

SYNC_TIMEOUT_S: Final = 5.0
POLL_SLACK_S: Final = 10.0
_REREAD_S: Final = 30.0


class Token:
    """A projected token: the kubelet replaces the file, so it is read again now and then."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._value = ""
        self._read_at = float("-inf")

    def get(self) -> str:
        """The token; empty if there is none."""
        if self._now() - self._read_at > _REREAD_S or not self._value:
            self._read_at = self._now()
            try:
                self._value = self._path.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError):
                self._value = ""
        return self._value


def address(url: str) -> Target:
    """Where a URL (http://host:port) leads, without what else it may hold."""
    parts = urlsplit(url)
    return Target(host=parts.hostname or "", port=parts.port or 80)


class Peer:
    """Another part of the control plane, by its URL (http://host:port)."""

    def __init__(self, url: str, token: Token, now: Callable[[], float]) -> None:
        self._host = urlsplit(url).netloc
        self._token = token
        self._pool = Pool(address(url), now)

    async def call(self, method: str, path: str, body: bytes, timeout_s: float) -> Reply:
        """One call. Raises OSError or TimeoutError."""
        headers = (("content-type", "application/json"), ("authorization", f"Bearer {self._token.get()}"))
        return await fetch(self._pool, request_head(method, path, self._host, headers, len(body)), body, timeout_s)

    def close(self) -> None:
        """Close its connections."""
        self._pool.close()


class LedgerPeer:
    """The ledger over HTTP, as lease.Session wants it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        """Send one message."""
        reply = await self._peer.call("POST", "/v1/sync", body, SYNC_TIMEOUT_S)
        return reply.status, reply.body


class NoLedger:
    """No ledger: enforced budgets refuse, everything else passes."""

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        """Nobody answers."""
        raise ConnectionRefusedError(f"no ledger is configured for this message of {len(body)} bytes")
