"""Keys of OIDC providers: from the values or from the provider, and what becomes of them when it does not answer."""

import datetime as dt
import ipaddress
import json
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fairlead_operator import oidc
from fairlead_operator.oidc import ProviderError, Providers, parse_providers, public_keys
from fairlead_router.contract import Issuer
from tests.builders.router import jwks
from tests.fakes.clock import FakeClock

ENTRY = {"issuer": "https://login.example.com", "audience": "fairlead", "namespaceClaim": "team"}


@cache
def certificate() -> tuple[bytes, bytes]:
    """A certificate of 127.0.0.1 that signs itself, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return built.public_bytes(serialization.Encoding.PEM), private


@dataclass
class Provider:
    """A provider on this machine. ``changes`` replace members of its discovery document."""

    url: str = ""
    jwks: Any = field(default_factory=lambda: json.loads(jwks()))
    changes: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    raw: bytes | None = None
    asked: list[str] = field(default_factory=list)

    async def discovery(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.raw is not None:
            return web.Response(body=self.raw, status=self.status)
        document = {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.changes}
        return web.json_response(document, status=self.status, headers={"Location": f"{self.url}/elsewhere"})

    async def keys(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.json_response(self.jwks)


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    pem, private = certificate()
    (tmp_path / "both.pem").write_bytes(pem + private)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "both.pem")
    made = Provider()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", made.discovery)
    app.router.add_get("/keys", made.keys)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    made.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


class Rig:
    """Providers of one file, and how often they told of a change."""

    def __init__(self, path: Path, session: aiohttp.ClientSession) -> None:
        self.path = path
        self.clock = FakeClock()
        self.changes = 0
        self.providers = Providers(path, session, self._changed, self.clock)

    def _changed(self) -> None:
        self.changes += 1

    def write(self, *entries: dict[str, Any]) -> None:
        self.path.write_text(yaml.safe_dump({"oidc": list(entries)}), encoding="utf-8")

    async def later(self, seconds: float) -> tuple[Issuer, ...]:
        await self.clock.advance(seconds)
        await self.providers.refresh()
        return self.providers.known

    def key_ids(self) -> set[str]:
        return {key["kid"] for one in self.providers.known for key in json.loads(one.jwks)["keys"]}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with aiohttp.ClientSession() as session:
        yield Rig(tmp_path / "oidc.yaml", session)


def entry(provider: Provider, **more: Any) -> dict[str, Any]:
    return {**ENTRY, "issuer": provider.url, "caBundle": certificate()[0].decode(), **more}


# --- from the values


async def test_keys_in_the_values_are_taken_as_they_are_and_nobody_is_asked(rig: Rig) -> None:
    rig.write({**ENTRY, "jwks": json.loads(jwks()), "nameClaim": "email"})
    (issuer,) = await rig.later(0)
    assert (issuer.issuer, issuer.audience, issuer.namespace_claim, issuer.name_claim) == (
        "https://login.example.com", "fairlead", "team", "email",
    )  # fmt: skip
    assert rig.key_ids() == {"one"}
    assert rig.providers.asked


async def test_without_a_file_there_are_no_providers_and_that_is_no_problem(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    assert await rig.later(0) == ()
    assert rig.providers.asked
    assert caplog.text == ""


async def test_a_changed_file_is_read_again_and_a_provider_that_left_it_is_gone(rig: Rig) -> None:
    rig.write({**ENTRY, "jwks": json.loads(jwks())})
    await rig.later(0)
    rig.write({**ENTRY, "jwks": json.loads(jwks("one", "two"))})
    await rig.later(10)
    assert rig.key_ids() == {"one", "two"}
    rig.write()
    assert await rig.later(10) == ()
    assert rig.changes == 3


async def test_the_same_file_changes_nothing(rig: Rig) -> None:
    rig.write({**ENTRY, "jwks": json.loads(jwks())})
    for _ in range(3):
        await rig.later(10)
    assert rig.changes == 1


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ("x", "not a mapping"),
        ({**ENTRY, "issuer": "http://login.example.com"}, "no https address"),
        ({**ENTRY, "issuer": "https://"}, "no https address"),
        ({**ENTRY, "issuer": "https://[::1"}, "no https address"),
        ({**ENTRY, "issuer": "https://me@login.example.com"}, "no https address"),
        ({**ENTRY, "issuer": 7}, "issuer must be a text"),
        ({**ENTRY, "audience": ""}, "audience must be a text"),
        ({**ENTRY, "namespaceClaim": None}, "namespaceClaim must be a text"),
        ({**ENTRY, "nameClaim": []}, "nameClaim must be a text"),
        ({**ENTRY, "jwks": {"keys": []}}, "1 to 64 keys"),
        ({**ENTRY, "jwks": "text"}, "1 to 64 keys"),
        ({**ENTRY, "audience": "first"}, "named before"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_takes_no_other_with_it(bad: Any, part: str) -> None:
    good = {**ENTRY, "audience": "first"}
    found, problems = parse_providers(yaml.safe_dump({"oidc": [good, bad]}))
    assert [one.audience for one in found] == ["first"]
    assert len(problems) == 1
    assert problems[0].startswith("oidc[1] is left out: ")
    assert part in problems[0]


@pytest.mark.parametrize("text", ["[", "- a", "7", "oidc: 7"])
def test_a_file_that_is_none_has_no_providers_and_says_so(text: str) -> None:
    found, problems = parse_providers(text)
    assert found == ()
    assert len(problems) == 1


def test_only_public_parts_of_keys_for_signatures_travel_on() -> None:
    good = {name: value for name, value in json.loads(jwks())["keys"][0].items() if name != "key_ops"}
    secret = {"kty": "oct", "k": "c2VjcmV0"}
    private, sealing = {**good, "kid": "private", "d": "AA"}, {**good, "kid": "sealing", "use": "enc"}
    text = public_keys({"keys": [secret, private, sealing, {**good, "x5c": ["MII"]}, "x"]})
    assert json.loads(text) == {"keys": [good]}


def test_the_order_of_keys_makes_no_difference() -> None:
    keys = json.loads(jwks("one", "two"))["keys"]
    assert public_keys({"keys": keys}) == public_keys({"keys": keys[::-1], "more": 1})


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": [{"kty": "oct"}]}, {"keys": [{}] * 65}])
def test_a_document_without_a_usable_key_is_refused(document: Any) -> None:
    with pytest.raises(ProviderError):
        public_keys(document)


# --- from the provider


async def test_a_provider_is_asked_by_discovery_and_again_each_minute(rig: Rig, provider: Provider) -> None:
    rig.write(entry(provider))
    await rig.later(0)
    assert rig.key_ids() == {"one"}
    assert provider.asked == ["/.well-known/openid-configuration", "/keys"]
    provider.jwks = json.loads(jwks("one", "two"))
    await rig.later(30)
    assert rig.key_ids() == {"one"}
    await rig.later(31)
    assert rig.key_ids() == {"one", "two"}
    provider.jwks = json.loads(jwks("two"))
    await rig.later(61)
    assert rig.key_ids() == {"two"}
    assert rig.changes == 3


async def test_while_a_provider_does_not_answer_its_last_keys_stay(
    rig: Rig, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig.write(entry(provider))
    await rig.later(0)
    provider.status = 503
    for _ in range(3):
        await rig.later(61)
    assert rig.key_ids() == {"one"}
    assert caplog.text.count("its last keys stay") == 1
    assert list(rig.providers.failures) == [(provider.url, "fairlead")]
    provider.status = 200
    await rig.later(21)
    assert rig.providers.failures == {}
    assert "answers again" in caplog.text
    assert rig.changes == 1


async def test_one_provider_that_is_away_keeps_no_other_from_being_known(rig: Rig, provider: Provider) -> None:
    rig.write(entry(provider), {**entry(provider), "issuer": "https://127.0.0.1:9", "audience": "x"})
    await rig.later(0)
    assert [one.issuer for one in rig.providers.known] == [provider.url]
    assert rig.providers.asked


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"changes": {"issuer": "https://evil.example.com"}}, "it calls itself 'https://evil.example.com'"),
        ({"changes": {"issuer": None}}, "it calls itself"),
        ({"changes": {"jwks_uri": "http://127.0.0.1/keys"}}, "is no https address"),
        ({"changes": {"jwks_uri": "file:///etc/passwd"}}, "is no https address"),
        ({"changes": {"jwks_uri": ["x"]}}, "is no https address"),
        ({"status": 302}, "answers 302"),
        ({"status": 500}, "answers 500"),
        ({"raw": b"<html>"}, "does not answer JSON"),
        ({"raw": b"[" * 100_000}, "does not answer JSON"),
        ({"raw": b"[]"}, "it calls itself"),
        ({"raw": b" " * (oidc.MAX_BYTES + 1)}, "answers more than"),
        ({"jwks": {"keys": []}}, "1 to 64 keys"),
        ({"jwks": {"keys": [{"kty": "oct", "k": "AA"}]}}, "no key in it"),
    ],
)
async def test_an_answer_that_cannot_be_trusted_brings_no_keys(
    rig: Rig, provider: Provider, change: dict[str, Any], part: str
) -> None:
    for name, value in change.items():
        setattr(provider, name, value)
    rig.write(entry(provider))
    assert await rig.later(0) == ()
    assert part in rig.providers.failures[provider.url, "fairlead"]


async def test_a_provider_whose_certificate_nobody_vouches_for_is_not_believed(rig: Rig, provider: Provider) -> None:
    rig.write({**ENTRY, "issuer": provider.url})
    assert await rig.later(0) == ()
    assert "ertificate" in rig.providers.failures[provider.url, "fairlead"]
    assert provider.asked == []


async def test_a_bundle_that_is_none_is_said(rig: Rig, provider: Provider) -> None:
    rig.write(entry(provider, caBundle="-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"))
    assert await rig.later(0) == ()
    assert "caBundle" in rig.providers.failures[provider.url, "fairlead"]


async def test_a_provider_that_says_nothing_is_not_waited_for_long(
    rig: Rig, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "TIMEOUT_S", 0.0001)
    rig.write(entry(provider))
    assert await rig.later(0) == ()
    assert "did not answer" in rig.providers.failures[provider.url, "fairlead"]
