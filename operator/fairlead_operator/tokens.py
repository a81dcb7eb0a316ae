"""Verifies ServiceAccount tokens offline, against the cluster's public keys.

Who speaks is read from the token's claims: namespace, ServiceAccount and, for tokens bound to a pod, the pod. The keys
come from the API server (or a file), are fetched again every ten minutes, and when a token names a key that is not
known, at most every ten seconds.
"""

import asyncio
import logging
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import jwt
import msgspec

from fairlead_operator.clock import Clock
from fairlead_router.contract import Issuer

REFRESH_S: Final = 600.0
UNKNOWN_KEY_S: Final = 10.0
LEEWAY_S: Final = 10
MAX_TOKEN_BYTES: Final = 16 * 1024
MAX_VERIFIED: Final = 4_096
TIMEOUT_S: Final = 10.0
ALGORITHMS: Final = ["RS256", "ES256"]
SERVICE_ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API_SERVER: Final = "https://kubernetes.default.svc"

log = logging.getLogger(__name__)


class TokenError(ValueError):
    """A token that proves nothing; the text says why and may be shown to whoever sent it."""


class KeysUnavailableError(RuntimeError):
    """The public keys could not be fetched yet."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks. ``pod`` and ``pod_uid`` are empty for a token that is not bound to a pod."""

    namespace: str
    service_account: str
    pod: str = ""
    pod_uid: str = ""


@dataclass(frozen=True, slots=True)
class _Verified:
    identity: Identity
    expires: int


class Verifier:
    """Verifies tokens against the keys that ``fetch`` brings."""

    def __init__(self, fetch: Callable[[], Awaitable[Issuer]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._issuer = ""
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = float("-inf")
        self._fetching = asyncio.Lock()
        self._verified: OrderedDict[tuple[str, str], _Verified] = OrderedDict()

    @property
    def ready(self) -> bool:
        """Whether there are keys to verify with."""
        return bool(self._keys)

    async def refresh(self) -> None:
        """Fetch the keys now. Raises whatever ``fetch`` raises, or jwt.PyJWTError for keys nobody can use."""
        self._fetched = self._clock.monotonic()
        issuer = await self._fetch()
        self._keys = {key.key_id or "": key for key in jwt.PyJWKSet.from_json(issuer.jwks).keys}
        self._issuer = issuer.issuer
        self._verified.clear()

    async def keep_fresh(self) -> None:
        """Fetch the keys again and again, until cancelled."""
        while True:
            try:
                await self.refresh()
            except (OSError, httpx.HTTPError, jwt.PyJWTError, msgspec.MsgspecError) as error:
                log.warning("the cluster's token keys could not be fetched, the known ones stay: %s", error)
            await self._clock.sleep(REFRESH_S if self.ready else UNKNOWN_KEY_S)

    async def identify(self, token: str, audience: str) -> Identity:
        """Whose token this is. Raises TokenError, or KeysUnavailableError while there are no keys."""
        known = self._verified.get((token, audience))
        if known is None:
            known = _verify(token, audience, await self._key(token), self._issuer)
            self._remember((token, audience), known)
        if known.expires + LEEWAY_S <= self._clock.now_ms() // 1000:
            raise TokenError("the token has expired; read the projected file again for each call")
        return known.identity

    async def _key(self, token: str) -> jwt.PyJWK:
        key_id = _key_id(token)
        if key_id not in self._keys:
            await self._fetch_unknown(key_id)
        if not self._keys:
            raise KeysUnavailableError("the cluster's token keys are not known yet")
        if key_id not in self._keys:
            raise TokenError(f"the token is signed with key {key_id!r}, which this cluster does not publish")
        return self._keys[key_id]

    async def _fetch_unknown(self, key_id: str) -> None:
        async with self._fetching:
            if key_id in self._keys or self._clock.monotonic() - self._fetched < UNKNOWN_KEY_S:
                return
            try:
                await self.refresh()
            except (OSError, httpx.HTTPError, jwt.PyJWTError, msgspec.MsgspecError) as error:
                log.warning("the cluster's token keys could not be fetched, the known ones stay: %s", error)

    def _remember(self, key: tuple[str, str], verified: _Verified) -> None:
        self._verified[key] = verified
        while len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)


def bearer(authorization: str) -> str:
    """The token of an Authorization header. Raises TokenError."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenError("the Authorization header has no bearer token")
    return token.strip()


def _key_id(token: str) -> str:
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenError(f"the token has {len(token)} bytes, {MAX_TOKEN_BYTES} are allowed")
    try:
        return str(jwt.get_unverified_header(token).get("kid", ""))
    except jwt.PyJWTError as error:
        raise TokenError(f"this is no signed token: {error}") from error


def _verify(token: str, audience: str, key: jwt.PyJWK, issuer: str) -> _Verified:
    # Expiry is checked by the caller, on its own clock, also for tokens that were verified before.
    options: Any = {"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
    try:
        claims = jwt.decode(token, key, algorithms=ALGORITHMS, audience=audience, issuer=issuer, options=options)
    except jwt.PyJWTError as error:
        raise TokenError(f"the token does not fit audience {audience} and issuer {issuer}: {error}") from error
    return _Verified(_identity(claims), int(claims["exp"]))


def _identity(claims: dict[str, Any]) -> Identity:
    try:
        bound = claims["kubernetes.io"]
        pod = bound.get("pod", {})
        return Identity(
            namespace=str(bound["namespace"]),
            service_account=str(bound["serviceaccount"]["name"]),
            pod=str(pod.get("name", "")),
            pod_uid=str(pod.get("uid", "")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenError("the token is not a ServiceAccount's: its kubernetes.io claim is not complete") from error


# --- where keys come from


@dataclass(frozen=True, slots=True)
class FileKeys:
    """Keys from a JWKS file, for running outside a cluster."""

    path: Path
    issuer: str

    async def __call__(self) -> Issuer:
        """Read the file."""
        return Issuer(issuer=self.issuer, jwks=await asyncio.to_thread(self.path.read_text, encoding="utf-8"))


class _Discovery(msgspec.Struct):
    issuer: str


@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """Keys from the API server, asked with the pod's own token."""

    url: str = API_SERVER
    credentials: Path = SERVICE_ACCOUNT_DIR

    async def __call__(self) -> Issuer:
        """Ask for the issuer's name and its keys."""
        token = await asyncio.to_thread((self.credentials / "token").read_text, encoding="utf-8")
        context = await asyncio.to_thread(ssl.create_default_context, cafile=str(self.credentials / "ca.crt"))
        headers = {"Authorization": f"Bearer {token.strip()}"}
        async with httpx.AsyncClient(base_url=self.url, verify=context, headers=headers, timeout=TIMEOUT_S) as client:
            discovery = (await client.get("/.well-known/openid-configuration")).raise_for_status()
            keys = (await client.get("/openid/v1/jwks")).raise_for_status()
        return Issuer(issuer=msgspec.json.decode(discovery.content, type=_Discovery).issuer, jwks=keys.text)
