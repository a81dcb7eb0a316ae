"""Who is calling: ServiceAccount tokens, API keys and tokens of OIDC providers, all verified without asking anybody.

The issuers' keys and the hashes of API keys come with the configuration. A verified token is remembered by its hash
until it expires, in a table of bounded size, and survives a new configuration as long as its issuer's keys stay the
same: API keys are made often, and a signature costs more than all else that is done for a request. A token that does
not verify is not remembered, so a flood of them cannot push out good ones.
"""

import json
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from sys import intern
from typing import Any, Final

import jwt

from fairlead_router.contract import AUDIENCE_CALLER, ApiKey, Issuer

log = logging.getLogger(__name__)

ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"})
"""Signatures with a public key (RFC 7518); a token that names any other algorithm proves nothing."""
MAX_TOKEN: Final = 8 * 1024
MAX_NAME: Final = 123
"""Characters of a caller's name at an OIDC provider: with its prefix it fits the 128 of a budget's key."""
_REMEMBERED: Final = 10_000
_LEEWAY_S: Final = 10
_SUBJECT: Final = "system:serviceaccount:"
_USUAL: Final = {"RSA": "RS256", "P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
"""The algorithm of a key that does not name one, by its type or curve."""
_UNCHECKED: Final[Any] = {"verify_signature": False}
_OPTIONS: Final[Any] = {
    "require": ["exp", "iss", "aud"],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_sub": False,
}
"""Times are checked here, on the verifier's own clock, and the subject where it is read."""
_NAMESPACE: Final = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_MALFORMED: Final = (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError)
"""All that a token made by somebody else can make of the parsers."""

Claims = dict[str, Any]
Keys = Mapping[str | None, list[jwt.PyJWK]]
"""Keys by id. An issuer may publish several under one id, or without one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller that was verified. ``expires_s`` is wall time; infinite for a key without an end.

    ``name`` is the ServiceAccount's, the API key's or the one that the OIDC provider's claim gives; ``caller`` is the
    same with its kind in front (``sa:web``, ``key:ticket-worker``, ``oidc:alice``), so that no kind can pass for
    another. ``pod`` is empty for all but a ServiceAccount's token that is bound to one. ``feature`` is what an API key
    is charged to when the request names none.
    """

    namespace: str
    name: str
    pod: str
    expires_s: float
    caller: str
    feature: str = ""

    @property
    def subject(self) -> str:
        """The ServiceAccount as Kubernetes writes it; empty for other kinds of callers."""
        return f"{_SUBJECT}{self.namespace}:{self.name}" if self.caller == f"sa:{self.name}" else ""


@dataclass(frozen=True, slots=True, eq=False)
class _Trusted:
    """One issuer of the configuration and its usable keys by id."""

    issuer: Issuer
    keys: Keys

    @property
    def cluster(self) -> bool:
        """Whether its tokens are ServiceAccounts'."""
        return not self.issuer.namespace_claim


@dataclass(frozen=True, slots=True)
class _Known:
    """A verified token, and the issuer whose keys verified it."""

    identity: Identity
    by: _Trusted


class Verifier:
    """Verifies who presents a token. ``clock`` gives seconds of wall time; ``remembered`` bounds the cache."""

    def __init__(self, clock: Callable[[], float], remembered: int = _REMEMBERED) -> None:
        self._clock = clock
        self._bound = remembered
        self._trusted: tuple[_Trusted, ...] = ()
        self._keys: tuple[ApiKey, ...] = ()
        self._by_hash: dict[str, ApiKey] = {}
        self._known: OrderedDict[tuple[str | None, bytes], _Known] = OrderedDict()

    def trust(self, issuers: Iterable[Issuer], keys: tuple[ApiKey, ...] = ()) -> None:
        """Replace issuers and API keys. What was verified with an issuer that is not the same any more is forgotten.

        Never raises: a key that cannot be used is logged and left out, and all others go on.
        """
        before = {one.issuer: one for one in self._trusted}
        self._trusted = tuple(before.get(one) or _Trusted(one, _usable_keys(one)) for one in issuers)
        if set(before.values()) - set(self._trusted):
            for key in [key for key, known in self._known.items() if known.by not in self._trusted]:
                del self._known[key]
        if keys != self._keys:
            self._keys = keys
            self._by_hash = {key.hash: key for key in keys}

    def keyless(self) -> tuple[str, ...]:
        """Issuers of which no key can be used."""
        return tuple(one.issuer.issuer for one in self._trusted if not one.keys)

    def knows_nobody(self) -> bool:
        """Whether there is neither a key of an issuer nor an API key."""
        return not self._keys and not any(one.keys for one in self._trusted)

    def verify(self, token: str, audience: str) -> Identity | None:
        """The ServiceAccount that a cluster's token proves for an audience, or nothing."""
        raw = _bytes(token)
        return None if raw is None else self._token(token, audience, sha256(raw).digest())

    def identify(self, token: str) -> Identity | None:
        """The caller that an API key, a ServiceAccount's token for callers or an OIDC provider's token proves.

        Keys are looked up by their hash, so how long it takes says nothing of a key that is nearly right.
        """
        raw = _bytes(token)
        if raw is None:
            return None
        digest = sha256(raw)
        key = self._by_hash.get(digest.hexdigest())
        return self._token(token, None, digest.digest()) if key is None else self._of_key(key)

    def _of_key(self, key: ApiKey) -> Identity | None:
        expires_s = key.expires_ms / 1000 if key.expires_ms else math.inf
        if expires_s <= self._clock():
            return None
        return Identity(key.namespace, key.name, "", expires_s, f"key:{key.name}", key.feature)

    def _token(self, token: str, audience: str | None, digest: bytes) -> Identity | None:
        """By the cache, else by its signature. Without an audience: as a caller, of whatever issuer."""
        known, now = self._known.get((audience, digest)), self._clock()
        if known is not None:
            if known.identity.expires_s + _LEEWAY_S > now:
                self._known.move_to_end((audience, digest))
                return known.identity
            del self._known[audience, digest]
        known = self._check(token, audience, now)
        if known is None:
            return None
        self._known[audience, digest] = known
        if len(self._known) > self._bound:
            self._known.popitem(last=False)
        return known.identity

    def _check(self, token: str, audience: str | None, now: float) -> _Known | None:
        try:
            parts = jwt.decode_complete(token, options=_UNCHECKED)
            kid, issuer = parts["header"].get("kid"), parts["payload"].get("iss")
            for one in self._trusted:
                if one.issuer.issuer == issuer and (one.cluster or audience is None):
                    identity = _verified(token, one, kid, audience, now)
                    if identity is not None:
                        return _Known(identity, one)
        except _MALFORMED:
            pass
        return None


def _bytes(token: str) -> bytes | None:
    """The token as it is hashed; nothing for one that is longer than any that is accepted."""
    return token.encode("utf-8", "surrogatepass") if len(token) <= MAX_TOKEN else None


def _verified(token: str, by: _Trusted, kid: Any, audience: str | None, now: float) -> Identity | None:
    """The identity that the token proves with one of the issuer's keys."""
    callers = AUDIENCE_CALLER if by.cluster else by.issuer.audience
    wanted = callers if audience is None else audience
    if not wanted:
        return None
    for key in _candidates(by.keys, kid):
        claims = _claims(token, key, wanted, by.issuer.issuer)
        if claims is not None and _timely(claims, now):
            return _service_account(claims) if by.cluster else _external(claims, by.issuer)
    return None


def _claims(token: str, key: jwt.PyJWK, audience: str, issuer: str) -> Claims | None:
    """The claims, if this key made the signature with this key's own algorithm, whatever the token's head says."""
    try:
        claims: Claims = jwt.decode(
            token, key, algorithms=[key.algorithm_name], audience=audience, issuer=issuer, options=_OPTIONS
        )
    except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError, jwt.InvalidAudienceError):
        return None  # another key may have the same id, another entry name the same issuer
    return claims


def _timely(claims: Claims, now: float) -> bool:
    """Whether the token is valid now, give or take what clocks differ."""
    starts = (_number(claims[name]) for name in ("nbf", "iat") if name in claims)
    return _number(claims["exp"]) + _LEEWAY_S > now and all(start - _LEEWAY_S <= now for start in starts)


def _number(value: Any) -> float:
    """A time of a token (RFC 7519 NumericDate).

    Raises:
        ValueError: it is something else, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a time")
    return float(value)


def _service_account(claims: Claims) -> Identity | None:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject.startswith(_SUBJECT):
        return None
    namespace, _, name = subject.removeprefix(_SUBJECT).partition(":")
    if not namespace or not name:
        return None
    bound = claims.get("kubernetes.io")
    pod = bound.get("pod", {}).get("name", "") if isinstance(bound, dict) else ""
    return Identity(intern(namespace), intern(name), str(pod), _number(claims["exp"]), f"sa:{name}")


def _external(claims: Claims, issuer: Issuer) -> Identity | None:
    """The caller of an OIDC provider's token. What does not name a namespace, or is no name, is nobody."""
    namespace, name = claim(claims, issuer.namespace_claim), claim(claims, issuer.name_claim)
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        return None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable() or not name.isascii():
        return None
    return Identity(intern(namespace), name, "", _number(claims["exp"]), f"oidc:{name}")


def claim(claims: Claims, path: str) -> Any:
    """The value of a claim: by its name, or by a JSON pointer (RFC 6901) when ``path`` begins with a slash."""
    if not path.startswith("/"):
        return claims.get(path)
    value: Any = claims
    for part in path[1:].split("/"):
        value = value.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(value, dict) else None
    return value


def _usable_keys(issuer: Issuer) -> Keys:
    """The keys of an issuer's JWKS document that verify one of our algorithms, by id."""
    try:
        entries = list(json.loads(issuer.jwks)["keys"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("issuer %s: its keys cannot be read, nobody is verified with them: %s", issuer.issuer, error)
        return {}
    found: dict[str | None, list[jwt.PyJWK]] = {}
    for entry in entries:
        try:
            key = _key(entry)
            if key is not None:
                found.setdefault(entry.get("kid"), []).append(key)
        except _MALFORMED as error:
            log.warning("issuer %s: a key is left out (%s)", issuer.issuer, type(error).__name__)
    return found


def _key(entry: Mapping[str, Any]) -> jwt.PyJWK | None:
    """The key of a JWK, good for one algorithm; nothing for one that is not for our kinds of signatures."""
    usual = _USUAL.get(entry["kty"] if entry["kty"] == "RSA" else entry.get("crv", ""))
    algorithm = entry.get("alg") or usual
    if algorithm not in ALGORITHMS or entry.get("use", "sig") != "sig":
        return None
    return jwt.PyJWK(dict(entry), algorithm=algorithm)


def _candidates(keys: Keys, kid: Any) -> list[jwt.PyJWK]:
    """The keys that the token names; every key of the issuer when it names none or the issuer's have no id."""
    named = keys.get(kid) if isinstance(kid, str) else None
    return named or [key for name, some in keys.items() if kid is None or name is None for key in some]
