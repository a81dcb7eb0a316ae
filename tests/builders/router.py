"""Builders for the router's tests: configurations, tokens, and a router in this process with real sockets."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from fairlead_router.app import Place, Router, Times
from fairlead_router.budget import Claim, Reservation, Wallet
from fairlead_router.contract import (
    AUDIENCE_CALLER,
    ApiKey,
    BudgetConfig,
    Card,
    Endpoint,
    Endpoints,
    Issuer,
    PolicyConfig,
    PoolConfig,
    PoolEndpoints,
    RouteConfig,
    RouterConfig,
    WeightedPool,
)
from fairlead_router.control import NoLedger
from fairlead_router.identity import Verifier
from fairlead_router.journal import Journal
from fairlead_router.lease import Clocks, Outcome, Session, Transport
from fairlead_router.local_lease import LocalLease
from fairlead_router.metering import Dimension, Row, Spent, UsageBook
from fairlead_router.policy import build_index
from fairlead_router.server import Clients, Limits, listener
from fairlead_router.telemetry import Telemetry
from fairlead_router.upstream import Patience, Upstreams

LIFETIME_S: Final = 43_200
"""Of tokens: modules make them when tests are collected, and a whole run on a busy machine takes a while."""
ISSUER = "https://kubernetes.default.svc"
POOL = "ai-platform/chat-8b"
LONG_POOL = "ai-platform/chat-8b-long"
CARD = Card(version=7, prompt_pico=32_000, cached_pico=3_200, output_pico=96_000)


@cache
def private_key(name: str = "one") -> rsa.RSAPrivateKey:
    """A signing key, made once for each name."""
    del name
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwks(*names: str) -> str:
    """The JWKS document of the named keys."""
    keys = []
    for name in names or ("one",):
        entry = jwt.algorithms.RSAAlgorithm.to_jwk(private_key(name).public_key(), as_dict=True)
        keys.append({**entry, "kid": name, "alg": "RS256", "use": "sig"})
    return json.dumps({"keys": keys})


def token(namespace: str = "support", name: str = "web", audience: str = AUDIENCE_CALLER, **changes: Any) -> str:
    """A ServiceAccount token. ``changes`` replace claims; ``kid`` names the key, ``pod`` the pod."""
    kid = changes.pop("kid", "one")
    pod = changes.pop("pod", "web-1")
    claims = {
        "iss": ISSUER,
        "aud": [audience],
        "sub": f"system:serviceaccount:{namespace}:{name}",
        "exp": int(time.time()) + LIFETIME_S,
        "kubernetes.io": {"namespace": namespace, "pod": {"name": pod, "uid": f"uid-{pod}"}},
        **changes,
    }
    return jwt.encode(claims, private_key(kid), algorithm="RS256", headers={"kid": kid})


def budget(namespace: str = "support", name: str = "support", **changes: Any) -> BudgetConfig:
    """A budget of the caller's own namespace."""
    fields = {"unit": "USD", "per": "Namespace", "namespaces": ("support",), **changes}
    return BudgetConfig(namespace=namespace, name=name, **fields)


def route(name: str = "all", context: int = 4096, pool: str = POOL, **changes: Any) -> RouteConfig:
    """A route to one pool."""
    fields = {"pools": (WeightedPool(pool=pool),), **changes}
    return RouteConfig(name=name, max_context_tokens=context, **fields)


def policy(**changes: Any) -> PolicyConfig:
    """A policy open to all namespaces, with one route."""
    fields = {
        "namespace": "ai-platform",
        "name": "chat",
        "models": ("chat",),
        "routes": (route(),),
        "default_output_tokens": 16,
        **changes,
    }
    return PolicyConfig(**fields)


def configuration(**changes: Any) -> RouterConfig:
    """One policy, one pool with a price, no budgets."""
    fields = {
        "pools": (PoolConfig(pool=POOL, max_context_tokens=4096, slots=4, card=CARD),),
        "policies": (policy(),),
        "issuers": (Issuer(issuer=ISSUER, jwks=jwks()),),
        **changes,
    }
    return RouterConfig(**fields)


def endpoints(addresses: Mapping[str, tuple[str, ...]]) -> Endpoints:
    """Endpoints by pool."""
    return Endpoints(
        pools=tuple(
            PoolEndpoints(
                pool=pool,
                endpoints=tuple(
                    Endpoint(pod=f"ai-platform/p{index}", address=address, variant="h100")
                    for index, address in enumerate(found)
                ),
            )
            for pool, found in addresses.items()
        )
    )


def chat(text: str = "hi", **members: Any) -> bytes:
    """A chat request's body."""
    return json.dumps(
        {"model": "chat", "messages": [{"role": "user", "content": text}], **members}, separators=(",", ":")
    ).encode()


@dataclass
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.json()["error"]["code"])


@dataclass
class Wire:
    """A client's connection, byte by byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(10):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, _, value in pairs}

    async def chunk(self) -> bytes:
        async with asyncio.timeout(10):
            size = int((await self.reader.readline()).strip(), 16)
            data = await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        return data

    async def answer(self) -> Answer:
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while piece := await self.chunk():
                body += piece
            return Answer(status, headers, body)
        async with asyncio.timeout(10):
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)

    async def closed(self) -> bytes:
        """What still comes until the other side closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    def close(self) -> None:
        self.writer.transport.abort()


def post(body: bytes, path: str = "/v1/chat/completions", bearer: str | None = None, **headers: str) -> bytes:
    """A request's bytes."""
    lines = [f"POST {path} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
    lines.append(f"authorization: Bearer {bearer if bearer is not None else token()}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass
class Station:
    """A router in this process, listening."""

    router: Router
    clients: Clients
    port: int
    session: Session
    wires: list[Wire] = field(default_factory=list)
    talking: asyncio.Task[None] | None = None

    async def goodbye(self) -> bool:
        """End the session with the ledger."""
        assert self.talking is not None
        self.talking.cancel()
        await asyncio.gather(self.talking, return_exceptions=True)
        return await self.session.close(5)

    async def connect(self) -> Wire:
        """A new connection."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 17))
        self.wires.append(wire)
        return wire

    async def ask(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> Answer:
        """One request on a connection of its own."""
        bearer = headers.pop("bearer", None)
        wire = await self.connect()
        await wire.send(post(body, path, bearer, **headers))
        answer = await wire.answer()
        wire.close()
        return answer


async def until(condition: Callable[[], object], what: str, timeout_s: float = 5.0) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s}s"
        await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[object]], what: str, timeout_s: float = 10.0) -> None:
    """Poll until something that must be asked for holds."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s}s"
        await asyncio.sleep(0.02)


BOOT = "boot-1"


class Process:
    """The money of a router's process without its sockets: session, wallet, book and journal, moved by steps."""

    def __init__(
        self, folder: Path, transport: Transport, name: str = "s1", *, segment: int = 1 << 20, boot: str = BOOT
    ) -> None:
        self.wallet, self.book = Wallet(), UsageBook()
        self.row = Row(Dimension("team-a", "sa:web", "", "chat", "models/chat-8b", "h100", "all", "Usage", 1))
        names = (name if index == 0 else f"{name}-{index}" for index in itertools.count())
        self.session = Session(
            transport=transport,
            wallet=self.wallet,
            clocks=Clocks(time.monotonic, time.monotonic, time.time),
            new_id=lambda: next(names),
            usage=self.book.take,
            report=lambda _: None,
            lines=self.book.lines,
            journal=lambda session, snapshot: Journal(folder, session, snapshot, segment),
            boot_id=boot,
        )

    @property
    def journal(self) -> Journal:
        assert self.session.journal is not None
        return self.session.journal

    async def talk(self) -> bool:
        """Seal a message and send it."""
        if not self.session._outstanding:
            self.session._seal()
        return await self.session._send_all()

    def reserve(self, claims: Sequence[Claim]) -> Reservation:
        """Reserve what is held."""
        outcome = self.session.reserve(claims, time.monotonic())
        assert isinstance(outcome, Reservation), outcome
        return outcome

    async def fetch(self, claims: Sequence[Claim]) -> Reservation:
        """Reserve, asking the ledger for what lacks."""
        for claim in claims:
            claim.purse.waiting = claim.purse.first = claim.amount
            claim.purse.used_at = time.monotonic()
        waiter = self.session.wait(claims, lambda _: None)
        assert waiter is not None
        outcomes: list[Outcome] = []
        waiter.tell = outcomes.append
        assert await self.talk()
        self.session.cancel(waiter)
        assert isinstance(outcomes[0], Reservation), outcomes
        return outcomes[0]

    def settle(self, reservation: Reservation | None, *charges: int) -> None:
        """A request ended; the first charge is what it cost."""
        spent = Spent(10, 2, 5, charges[0])
        at_ms = self.session.ledger_ms() or int(time.time() * 1000)
        self.book.add(self.row, at_ms, spent)
        self.session.settle(reservation, charges if reservation is not None else (), self.row, at_ms, spent)

    def kill(self) -> None:
        """As kill -9 does: nothing more is written, the lock is gone."""
        self.journal.close()


@contextlib.asynccontextmanager
async def station(
    config: RouterConfig | None = None,
    addresses: Mapping[str, tuple[str, ...]] | None = None,
    *,
    place: Place | None = None,
    limits: Limits | None = None,
    lease: Mapping[str, int] | None = None,
    transport: Transport | None = None,
    patience: Patience | None = None,
    journal: Path | None = None,
) -> AsyncIterator[Station]:
    """A router with real sockets; ``lease`` grants budgets locally, ``transport`` reaches a ledger."""
    loop = asyncio.get_running_loop()
    limits = limits or Limits()
    ids = itertools.count(1)
    router = Router(
        place=place or Place(pod="fairlead/gateway-gw1"),
        times=Times(time.monotonic, time.time),
        limits=limits,
        verifier=Verifier(time.time),
        upstreams=Upstreams(time.monotonic, patience or Patience()),
        telemetry=Telemetry(),
        id_base=0,
    )
    local = LocalLease(lease, lambda: int(time.time() * 1000)) if lease is not None else NoLedger()
    session = router.session = Session(
        transport=transport or local,
        wallet=router.wallet,
        clocks=Clocks(time.monotonic, time.monotonic, time.time),
        new_id=lambda: f"session-{router.place.short}-{next(ids)}-{id(router)}",
        usage=router.book.take,
        report=lambda result: router.telemetry.renewals.add((result,)),
        lines=router.book.lines,
        journal=(lambda name, snapshot: Journal(journal, name, snapshot)) if journal is not None else None,
        boot_id=BOOT,
    )
    router.configure(build_index(config or configuration()))
    router.set_endpoints(endpoints(addresses or {}))
    clients = Clients(limits, time.monotonic)
    server = await loop.create_server(listener(router, limits, clients), "127.0.0.1", 0)
    found = Station(router, clients, server.sockets[0].getsockname()[1], session)
    found.talking = asyncio.create_task(session.run())
    tasks = [found.talking, asyncio.create_task(_tick(clients, router))]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()
        for wire in found.wires:
            wire.close()
        router.upstreams.close()
        assert router.swept == 0
        if session.journal is not None:
            session.journal.close()
        await until(lambda: not clients.busy(), "the end of all requests", 2)


@contextlib.asynccontextmanager
async def watching(socket: Path, config: RouterConfig) -> AsyncIterator[Station]:
    """A router in a pool's pod, looking after the engine behind this socket."""
    place = Place(pod="ai-platform/p0", pool=POOL, engine=str(socket))
    async with station(config, {POOL: (f"unix:{socket}",)}, place=place) as at:
        looking = asyncio.create_task(at.router.engine_watch.follow())
        try:
            yield at
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


async def _tick(clients: Clients, router: Router) -> None:
    while True:
        clients.check()
        router.upstreams.check()
        router.tick()
        await asyncio.sleep(0.02)


def quick(**changes: float) -> Limits:
    """Limits with short times."""
    return replace(Limits(), **changes)  # type: ignore[arg-type]  # the changes are fields of Limits


OIDC_ISSUER = "https://login.example.com/realms/acme"
OIDC_AUDIENCE = "fairlead-clients"


def oidc_issuer(**changes: Any) -> Issuer:
    """An OIDC provider whose claim ``team`` names the namespace."""
    fields = {"jwks": jwks("oidc"), "audience": OIDC_AUDIENCE, "namespace_claim": "team", **changes}
    return Issuer(issuer=OIDC_ISSUER, **fields)


def oidc_token(team: Any = "support", name: Any = "alice", **changes: Any) -> str:
    """A token of that provider. ``changes`` replace claims; ``kid`` names the key."""
    kid = changes.pop("kid", "oidc")
    claims = {
        "iss": OIDC_ISSUER,
        "aud": OIDC_AUDIENCE,
        "sub": name,
        "team": team,
        "exp": int(time.time()) + LIFETIME_S,
        **changes,
    }
    return jwt.encode(claims, private_key(kid), algorithm="RS256", headers={"kid": kid})


def api_key(secret: str, namespace: str = "support", name: str = "ticket-worker", **changes: Any) -> ApiKey:
    """What routers are told of an API key."""
    return ApiKey(hash=hashlib.sha256(secret.encode()).hexdigest(), namespace=namespace, name=name, **changes)
