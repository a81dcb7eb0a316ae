"""Who speaks is what a token, signed by the cluster, claims; nothing else."""

import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from threading import Thread

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fairlead_operator.tokens import (
    UNKNOWN_KEY_S,
    ClusterKeys,
    FileKeys,
    Identity,
    KeysUnavailableError,
    TokenError,
    Verifier,
    bearer,
)
from fairlead_router.contract import AUDIENCE_LEDGER, Issuer
from tests.builders.ledger import ISSUER, jwks, token


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.wall = int(time.time() * 1000)
        self.mono = 1_000.0

    def now_ms(self) -> int:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    async def sleep(self, seconds: float) -> None:
        self.mono += seconds


class Source:
    """Hands out keys and counts how often it was asked."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.asked = 0
        self.down = False

    async def __call__(self) -> Issuer:
        self.asked += 1
        if self.down:
            raise httpx.ConnectError("no route")
        return Issuer(issuer=ISSUER, jwks=jwks(*self.keys))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source() -> Source:
    return Source("key-1")


@pytest.fixture
def verifier(source: Source, clock: Clock) -> Verifier:
    return Verifier(source, clock)


async def test_a_pods_token_says_namespace_account_and_pod(verifier: Verifier) -> None:
    identity = await verifier.identify(token("default", "team-a", "web-1"), AUDIENCE_LEDGER)
    assert identity == Identity("team-a", "default", "web-1", "uid-web-1")


async def test_a_token_that_is_not_bound_to_a_pod_has_none(verifier: Verifier) -> None:
    identity = await verifier.identify(token("fairlead-operator", pod=""), AUDIENCE_LEDGER)
    assert (identity.pod, identity.pod_uid) == ("", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (token(aud=["fairlead.dev"]), "audience"),
        (token(iss="https://elsewhere"), "issuer"),
        (token(exp=int(time.time()) - 60), "expired"),
        (token(bound={"namespace": "team-a"}), "kubernetes.io claim"),
        (token(bound="team-a"), "kubernetes.io claim"),
        (token()[:-8] + "AAAAAAAA", "Signature"),
        (token(key="key-9"), "key-9"),
        ("no.token", "no signed token"),
        ("x" * 20_000, "20000 bytes"),
    ],
)
async def test_a_token_that_proves_nothing_is_refused_with_the_reason(
    verifier: Verifier, text: str, reason: str
) -> None:
    with pytest.raises(TokenError, match=reason):
        await verifier.identify(text, AUDIENCE_LEDGER)


async def test_an_unsigned_token_is_refused(verifier: Verifier) -> None:
    head = "eyJhbGciOiJub25lIiwia2lkIjoia2V5LTEifQ"
    with pytest.raises(TokenError):
        await verifier.identify(f"{head}.{token().split('.')[1]}.", AUDIENCE_LEDGER)


async def test_a_token_ends_also_when_it_was_verified_before(verifier: Verifier, clock: Clock) -> None:
    text = token()
    await verifier.identify(text, AUDIENCE_LEDGER)
    clock.wall += 3_700_000
    with pytest.raises(TokenError, match="expired"):
        await verifier.identify(text, AUDIENCE_LEDGER)


async def test_a_verified_token_is_good_for_its_audience_only(verifier: Verifier) -> None:
    text = token()
    await verifier.identify(text, AUDIENCE_LEDGER)
    with pytest.raises(TokenError, match="audience"):
        await verifier.identify(text, "fairlead.dev/control")


async def test_a_new_key_is_fetched_when_a_token_names_it_but_not_too_often(
    verifier: Verifier, source: Source, clock: Clock
) -> None:
    await verifier.identify(token(), AUDIENCE_LEDGER)
    for _ in range(5):
        with pytest.raises(TokenError, match="key-2"):
            await verifier.identify(token(key="key-2"), AUDIENCE_LEDGER)
    assert source.asked == 1
    source.keys = ("key-1", "key-2")
    clock.mono += UNKNOWN_KEY_S
    assert (await verifier.identify(token(key="key-2"), AUDIENCE_LEDGER)).service_account == "fairlead-gateway"
    assert source.asked == 2


async def test_a_key_that_is_taken_back_stops_working(verifier: Verifier, source: Source) -> None:
    text = token()
    await verifier.identify(text, AUDIENCE_LEDGER)
    source.keys = ("key-2",)
    await verifier.refresh()
    with pytest.raises(TokenError, match="key-1"):
        await verifier.identify(text, AUDIENCE_LEDGER)


async def test_without_any_keys_the_caller_shall_come_back(verifier: Verifier, source: Source, clock: Clock) -> None:
    source.down = True
    with pytest.raises(KeysUnavailableError):
        await verifier.identify(token(), AUDIENCE_LEDGER)
    assert not verifier.ready
    source.down = False
    clock.mono += UNKNOWN_KEY_S
    await verifier.identify(token(), AUDIENCE_LEDGER)
    assert verifier.ready


async def test_known_keys_survive_an_api_server_that_is_away(verifier: Verifier, source: Source, clock: Clock) -> None:
    text = token()
    await verifier.identify(text, AUDIENCE_LEDGER)
    source.down = True
    clock.mono += UNKNOWN_KEY_S
    with pytest.raises(TokenError, match="key-2"):
        await verifier.identify(token(key="key-2"), AUDIENCE_LEDGER)
    await verifier.identify(text, AUDIENCE_LEDGER)


async def test_keys_can_come_from_a_file(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "jwks.json").write_text(jwks())
    verifier = Verifier(FileKeys(tmp_path / "jwks.json", ISSUER), clock)
    assert (await verifier.identify(token(), AUDIENCE_LEDGER)).namespace == "fairlead"


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's TLS context for 127.0.0.1, and its authority as ca.crt."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "api")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "tls.key").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "tls.key")
    return context


class ApiServer(BaseHTTPRequestHandler):
    """The two documents, for whoever brings the pod's token."""

    def do_GET(self) -> None:
        documents = {"/.well-known/openid-configuration": f'{{"issuer": "{ISSUER}"}}', "/openid/v1/jwks": jwks()}
        allowed = self.headers["Authorization"] == "Bearer pods-own"
        body = documents[self.path].encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), ApiServer) as server:
        server.socket = certificate(tmp_path).wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_keys_come_from_the_api_server_with_the_pods_own_token(
    tmp_path: Path, api_server: str, clock: Clock
) -> None:
    (tmp_path / "token").write_text("pods-own\n")
    verifier = Verifier(ClusterKeys(api_server, tmp_path), clock)
    assert (await verifier.identify(token(), AUDIENCE_LEDGER)).namespace == "fairlead"


async def test_an_api_server_that_refuses_leaves_the_ledger_not_ready(
    tmp_path: Path, api_server: str, clock: Clock
) -> None:
    (tmp_path / "token").write_text("another")
    verifier = Verifier(ClusterKeys(api_server, tmp_path), clock)
    with pytest.raises(KeysUnavailableError):
        await verifier.identify(token(), AUDIENCE_LEDGER)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "abc"])
def test_a_header_without_a_bearer_token_is_refused(header: str) -> None:
    with pytest.raises(TokenError, match="Authorization"):
        bearer(header)


def test_a_bearer_token_is_read_whatever_the_case_of_its_scheme() -> None:
    assert bearer("bearer abc") == "abc"
