"""The control plane of the soak: an operator whose configuration keeps changing, and a ledger with a window."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from fairlead_router.contract import (
    ConfigAnswer,
    Endpoint,
    Endpoints,
    Holding,
    PoolConfig,
    PoolEndpoints,
    RouterConfig,
    SyncRequest,
    WeightedPool,
)
from fairlead_router.local_lease import LocalLease
from tests.builders.router import CARD, LONG_POOL, POOL, budget, configuration, policy, route

TENANTS: Final = ("support", "search", "billing")
CONTEXT: Final = 1_000_000
LEASE: Final = {f"{tenant}/{tenant}": 1 << 60 for tenant in TENANTS}

Serve = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]


@dataclass(slots=True)
class Control:
    """Operator and ledger of one router."""

    pick: random.Random
    ports: list[int]
    lease: LocalLease = field(default_factory=lambda: LocalLease(LEASE, lambda: int(time.time() * 1000)))
    changes: int = 0
    closed: bool = False
    """Whether the router's last message gave back all that it did not charge."""
    _config: RouterConfig = field(default_factory=RouterConfig)
    _endpoints: Endpoints = field(default_factory=Endpoints)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _servers: list[asyncio.Server] = field(default_factory=list)

    def change(self) -> None:
        """Another configuration: pools, slots, budgets, replicas."""
        self.changes += 1
        self._config = _configuration(self.pick)
        pools = [pool.pool for pool in self._config.pools]
        self._endpoints = Endpoints(pools=tuple(self._replicas(pool) for pool in pools))
        self._changed.set()
        self._changed = asyncio.Event()

    async def listen(self) -> tuple[str, str]:
        """The URLs of operator and ledger."""
        urls = []
        for serve in (self._operate, self._sync):
            server = await asyncio.start_server(_server(serve), "127.0.0.1", 0)
            self._servers.append(server)
            urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        return urls[0], urls[1]

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()

    def holdings(self) -> list[Holding]:
        """What the router last said of each account."""
        return list(self.lease._told.values())

    def _replicas(self, pool: str) -> PoolEndpoints:
        ports = self.pick.sample(self.ports, self.pick.randrange(2, len(self.ports) + 1))
        found = (Endpoint(pod=f"ai-platform/p{port}", address=f"127.0.0.1:{port}", variant="h100") for port in ports)
        return PoolEndpoints(pool=pool, endpoints=tuple(found))

    async def _operate(self, path: str, body: bytes) -> tuple[int, bytes]:
        del body
        asked = parse_qs(urlsplit(path).query)
        have, wait = asked.get("have", [""])[0], float(asked.get("wait", ["1"])[0])
        if have == str(self.changes):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait)
        version = str(self.changes)
        answer = ConfigAnswer(version=version, endpoints_version=version)
        if have != version:
            answer = msgspec.structs.replace(answer, config=self._config, endpoints=self._endpoints)
        return 200, msgspec.json.encode(answer)

    async def _sync(self, path: str, body: bytes) -> tuple[int, bytes]:
        del path
        close = msgspec.json.decode(body, type=SyncRequest).close
        self.closed = close is not None and close.complete
        return await self.lease.sync(body)


def _configuration(pick: random.Random) -> RouterConfig:
    pools = [POOL, LONG_POOL] if pick.randrange(2) else [POOL]
    slots = pick.choice((16, 64, 256))
    return configuration(
        pools=tuple(PoolConfig(pool=pool, max_context_tokens=CONTEXT, slots=slots, card=CARD) for pool in pools),
        policies=(
            policy(
                routes=(
                    route(
                        context=CONTEXT,
                        pools=tuple(WeightedPool(pool=pool, weight=pick.randrange(1, 4)) for pool in pools),
                        max_wait_ms=5000,
                        max_cold_start_wait_ms=5000,
                    ),
                )
            ),
        ),
        budgets=tuple(
            budget(tenant, tenant, namespaces=(tenant,), enforcement=pick.choice(("Enforce", "Enforce", "Audit")))
            for tenant in TENANTS
        ),
    )


def _server(serve: Serve) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next((line for line in head.split("\r\n") if line.startswith("content-length: ")), ": 0")
                body = await reader.readexactly(int(length.partition(": ")[2]))
                status, answer = await serve(head.split(" ")[1], body)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer))
                await writer.drain()
        writer.close()

    return connected
