"""OIDC providers named in the chart's values, and their keys: written there, or fetched from the provider.

A provider without ``jwks`` is asked by OpenID Connect Discovery, over https and nothing else. When it does not answer,
its last good keys stay; when it is taken out of the values, its keys go.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yaml

from fairlead_operator.clock import Clock
from fairlead_router.contract import Issuer

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Between two looks at the file: the kubelet writes it anew when the values change."""
REFRESH_S = 60.0
RETRY_S = 20.0
TIMEOUT_S = 10.0
MAX_BYTES = 512 * 1024
MAX_FILE_BYTES = 1024 * 1024
MAX_PROVIDERS = 32
MAX_KEYS = 64
MAX_TEXT = 512
_PUBLIC = ("kty", "kid", "use", "alg", "n", "e", "crv", "x", "y")
"""What a public key for signatures is made of; certificates and private parts never travel on."""


class ProviderError(ValueError):
    """A provider, or what it answers, that cannot be used; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One entry of the values. ``jwks`` is empty for a provider that is asked."""

    issuer: str
    audience: str
    namespace_claim: str
    name_claim: str
    jwks: str = ""
    ca_bundle: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """No two entries have the same."""
        return self.issuer, self.audience

    def trusted(self, jwks: str) -> Issuer:
        """What routers are told."""
        return Issuer(
            issuer=self.issuer,
            jwks=jwks,
            audience=self.audience,
            namespace_claim=self.namespace_claim,
            name_claim=self.name_claim,
        )


def parse_providers(text: str) -> tuple[tuple[Provider, ...], tuple[str, ...]]:
    """The usable entries of the file ``oidc.yaml``, and what is wrong with the others."""
    try:
        entries = (yaml.safe_load(text) or {}).get("oidc") or []
        listed = list(entries)
    except (yaml.YAMLError, AttributeError, TypeError, RecursionError) as error:
        return (), (f"it is not a mapping with a list oidc: {error}",)
    found: dict[tuple[str, str], Provider] = {}
    problems: list[str] = []
    for number, entry in enumerate(listed):
        try:
            provider = _provider(entry, found)
            found[provider.key] = provider
        except ProviderError as error:
            problems.append(f"oidc[{number}] is left out: {error}")
    return tuple(found.values()), tuple(problems)


def public_keys(document: Any) -> str:
    """The public keys of a JWKS document in one canonical text, so that equal sets are equal.

    Raises:
        ProviderError: there is no key in it, or too many.
    """
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not 0 < len(keys) <= MAX_KEYS:
        raise ProviderError(f"a JWKS document has a list keys of 1 to {MAX_KEYS} keys")
    kept = [{name: key[name] for name in _PUBLIC if name in key} for key in keys if _usable(key)]
    if not kept:
        raise ProviderError("no key in it is an RSA or EC key for signatures")
    texts = sorted(json.dumps(key, sort_keys=True, separators=(",", ":")) for key in kept)
    return f'{{"keys":[{",".join(texts)}]}}'


class Providers:
    """The providers' keys as they are known now. ``asked``: each was asked once, or needed no asking."""

    def __init__(self, path: Path, session: aiohttp.ClientSession, changed: Callable[[], None], clock: Clock) -> None:
        self._path = path
        self._session = session
        self._changed = changed
        self._clock = clock
        self._text: str | None = None
        self._providers: tuple[Provider, ...] = ()
        self._fetched: dict[tuple[str, str], str] = {}
        self._due: dict[tuple[str, str], float] = {}
        self._failures: dict[tuple[str, str], str] = {}
        self.known: tuple[Issuer, ...] = ()
        self.asked = False

    @property
    def failures(self) -> Mapping[tuple[str, str], str]:
        """Why providers could not be asked the last time, by issuer and audience."""
        return self._failures

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        while True:
            await self.refresh()
            await self._clock.sleep(LOOK_S)

    async def refresh(self) -> None:
        """Look at the file, ask whom it is time to ask, and tell when anything differs."""
        self._read()
        now = self._clock.monotonic()
        due = [one for one in self._providers if not one.jwks and self._due.get(one.key, now) <= now]
        await asyncio.gather(*(self._ask(one) for one in due))
        self.asked = True
        known = tuple(
            one.trusted(jwks) for one in self._providers if (jwks := one.jwks or self._fetched.get(one.key, ""))
        )
        if known != self.known:
            self.known = known
            self._changed()

    def _read(self) -> None:
        """Take the file's present providers."""
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_FILE_BYTES).decode(errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            log.warning("the OIDC providers in %s cannot be read, the known ones stay: %s", self._path, error)
            return
        if text == self._text:
            return
        self._text = text
        self._providers, problems = parse_providers(text)
        for problem in problems:
            log.warning("%s: %s", self._path, problem)
        keys = {one.key for one in self._providers}
        self._fetched = {key: jwks for key, jwks in self._fetched.items() if key in keys}
        self._failures = {key: text for key, text in self._failures.items() if key in keys}
        self._due = {}

    async def _ask(self, provider: Provider) -> None:
        try:
            self._fetched[provider.key] = await discover(self._session, provider)
        except (ValueError, aiohttp.ClientError, OSError) as error:
            text = f"{type(error).__name__} {error}"
            if self._failures.get(provider.key) != text:
                stay = "its last keys stay" if provider.key in self._fetched else "its tokens are refused"
                log.warning("OIDC provider %s was not read, %s: %s", provider.issuer, stay, text)
            self._failures[provider.key] = text
            self._due[provider.key] = self._clock.monotonic() + RETRY_S
        else:
            if self._failures.pop(provider.key, None):
                log.info("OIDC provider %s answers again", provider.issuer)
            self._due[provider.key] = self._clock.monotonic() + REFRESH_S


async def discover(session: aiohttp.ClientSession, provider: Provider) -> str:
    """The provider's keys by OpenID Connect Discovery 1.0 §4; redirects are not followed.

    Raises:
        ProviderError: an answer is none that can be used.
        aiohttp.ClientError: the provider cannot be reached.
    """
    tls = _tls(provider.ca_bundle)
    found = await _fetch(session, provider.issuer.rstrip("/") + "/.well-known/openid-configuration", tls)
    name, where = (found.get("issuer"), found.get("jwks_uri")) if isinstance(found, dict) else (None, None)
    if name != provider.issuer:
        raise ProviderError(f"it calls itself {str(name)[:MAX_TEXT]!r}, not {provider.issuer!r}")
    if not isinstance(where, str) or not _is_https(where):
        raise ProviderError(f"its jwks_uri {str(where)[:MAX_TEXT]!r} is no https address")
    return public_keys(await _fetch(session, where, tls))


async def _fetch(session: aiohttp.ClientSession, url: str, tls: ssl.SSLContext | bool) -> Any:
    """The JSON at an address, of bounded size and within a bounded time."""
    try:
        data = await _read(session, url, tls)
    except TimeoutError:
        raise ProviderError(f"{url} did not answer within {TIMEOUT_S:.0f}s") from None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ProviderError(f"{url} does not answer JSON") from None


async def _read(session: aiohttp.ClientSession, url: str, tls: ssl.SSLContext | bool) -> bytes:
    limit, headers = aiohttp.ClientTimeout(total=TIMEOUT_S), {"Accept-Encoding": "identity"}
    async with session.get(url, ssl=tls, timeout=limit, headers=headers, allow_redirects=False) as answer:
        if answer.status != 200:  # noqa: PLR2004 - the only answer with a document
            raise ProviderError(f"{url} answers {answer.status}")
        data = b""
        async for chunk in answer.content.iter_any():
            data += chunk
            if len(data) > MAX_BYTES:
                raise ProviderError(f"{url} answers more than {MAX_BYTES} bytes")
    return data


def _tls(bundle: str) -> ssl.SSLContext | bool:
    """The system's authorities, or only those of the bundle."""
    if not bundle:
        return True
    try:
        return ssl.create_default_context(cadata=bundle)
    except (ssl.SSLError, ValueError) as error:
        raise ProviderError(f"caBundle holds no certificates in PEM: {error}") from error


def _provider(entry: Any, others: Mapping[tuple[str, str], Provider]) -> Provider:
    """One entry of the list.

    Raises:
        ProviderError: it cannot be used beside the others.
    """
    if not isinstance(entry, dict):
        raise ProviderError("it is not a mapping")
    issuer, audience = _text(entry, "issuer"), _text(entry, "audience")
    if not _is_https(issuer):
        raise ProviderError(f"issuer {issuer[:MAX_TEXT]!r} is no https address")
    if (issuer, audience) in others or len(others) >= MAX_PROVIDERS:
        raise ProviderError(f"its issuer and audience are named before, or {MAX_PROVIDERS} entries are")
    jwks = entry.get("jwks")
    return Provider(
        issuer=issuer,
        audience=audience,
        namespace_claim=_text(entry, "namespaceClaim"),
        name_claim=_text({"nameClaim": "sub", **entry}, "nameClaim"),
        jwks=public_keys(jwks) if jwks else "",
        ca_bundle=_text(entry, "caBundle") if entry.get("caBundle") else "",
    )


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        raise ProviderError(f"{name} must be a text")
    return value


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname) and not parts.username


def _usable(key: Any) -> bool:
    """Whether it is a public key for signatures. A secret that somebody published is no key any more."""
    if not isinstance(key, dict):
        return False
    return key.get("kty") in {"RSA", "EC"} and key.get("use", "sig") == "sig" and "d" not in key
