"""Who is calling: ServiceAccount tokens, verified offline against the issuers in the configuration.

A verified token is remembered until it expires, in a table of bounded size; a token that does not verify is not
remembered, so a flood of them cannot push out good ones.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import jwt

from fairlead_router.contract import Issuer

ALGORITHMS: Final = ("RS256", "ES256")
MAX_TOKEN: Final = 8 * 1024
_REMEMBERED: Final = 10_000
_LEEWAY_S: Final = 10
_SUBJECT: Final = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class Identity:
    """A ServiceAccount whose token was verified. ``pod`` is empty for a token that is not bound to one."""

    namespace: str
    name: str
    pod: str
    expires_s: float

    @property
    def subject(self) -> str:
        """The ServiceAccount as Kubernetes writes it."""
        return f"{_SUBJECT}{self.namespace}:{self.name}"


class Verifier:
    """Verifies tokens of any configured issuer for one audience. ``clock`` gives seconds of wall time."""

    def __init__(self, clock: Callable[[], float], remembered: int = _REMEMBERED) -> None:
        self._clock = clock
        self._bound = remembered
        self._documents: dict[str, str] = {}
        self._keys: dict[str, dict[str | None, jwt.PyJWK]] = {}
        self._known: OrderedDict[tuple[str, str], Identity] = OrderedDict()

    def trust(self, issuers: Iterable[Issuer]) -> None:
        """Replace the issuers; what was verified against others is forgotten."""
        documents = {issuer.issuer: issuer.jwks for issuer in issuers}
        if documents != self._documents:
            self._keys = {name: _usable_keys(document) for name, document in documents.items()}
            self._documents = documents
            self._known.clear()

    def verify(self, token: str, audience: str) -> Identity | None:
        """The identity that a token proves for an audience, or nothing."""
        known = self._known.get((token, audience))
        if known is not None:
            if known.expires_s > self._clock():
                self._known.move_to_end((token, audience))
                return known
            del self._known[token, audience]
        if len(token) > MAX_TOKEN:
            return None
        identity = self._check(token, audience)
        if identity is not None:
            self._known[token, audience] = identity
            if len(self._known) > self._bound:
                self._known.popitem(last=False)
        return identity

    def _check(self, token: str, audience: str) -> Identity | None:
        try:
            head = jwt.get_unverified_header(token)
            issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
            keys = self._keys.get(issuer, {}) if isinstance(issuer, str) else {}
            for key in _candidates(keys, head.get("kid")):
                claims = _claims(token, key, audience, str(issuer))
                if claims is not None:
                    return _identity(claims)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
            return None
        return None


def _claims(token: str, key: jwt.PyJWK, audience: str, issuer: str) -> dict[str, Any] | None:
    try:
        return jwt.decode(
            token,
            key,
            algorithms=list(ALGORITHMS),
            audience=audience,
            issuer=issuer,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
    except jwt.InvalidSignatureError:
        return None  # an issuer may publish several keys under one id while it rotates them


def _identity(claims: dict[str, Any]) -> Identity | None:
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject.startswith(_SUBJECT):
        return None
    namespace, _, name = subject.removeprefix(_SUBJECT).partition(":")
    if not namespace or not name:
        return None
    bound = claims.get("kubernetes.io")
    pod = bound.get("pod", {}).get("name", "") if isinstance(bound, dict) else ""
    return Identity(namespace, name, str(pod), float(claims["exp"]))


def _usable_keys(document: str) -> dict[str | None, jwt.PyJWK]:
    """The keys of a JWKS document that verify one of our algorithms, by id."""
    found: dict[str | None, jwt.PyJWK] = {}
    for entry in json.loads(document).get("keys", []):
        if entry.get("kty") not in {"RSA", "EC"} or entry.get("use", "sig") != "sig":
            continue
        key = jwt.PyJWK(entry, algorithm=entry.get("alg") or ("RS256" if entry["kty"] == "RSA" else "ES256"))
        if key.algorithm_name in ALGORITHMS:
            found[entry.get("kid")] = key
    return found


def _candidates(keys: dict[str | None, jwt.PyJWK], kid: Any) -> list[jwt.PyJWK]:
    """The key that the token names; every key of the issuer when it names none or the issuer's have no id."""
    named = keys.get(kid) if isinstance(kid, str) else None
    return [named] if named is not None else [key for name, key in keys.items() if kid is None or name is None]
