"""Who is calling: what proves it, what does not, and how long it is remembered."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_router import identity
from fairlead_router.contract import AUDIENCE_CALLER, AUDIENCE_ROUTER, AUDIENCE_SIGNALS, ApiKey, Issuer, RouterConfig
from fairlead_router.identity import Identity, Verifier, claim
from fairlead_router.policy import build_index
from tests.builders.router import (
    ISSUER,
    OIDC_AUDIENCE,
    POOL,
    api_key,
    chat,
    configuration,
    jwks,
    oidc_issuer,
    oidc_token,
    post,
    private_key,
    station,
    token,
)
from tests.fakes.engine import FakeEngine

CLUSTER = Issuer(issuer=ISSUER, jwks=jwks())
SECRET = "fl_" + "k" * 43
HOUR = 3600.0


class Wall:
    """Wall time that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def verifier(wall: Wall) -> Verifier:
    made = Verifier(wall)
    made.trust((CLUSTER, oidc_issuer()), (api_key(SECRET, feature="ticket-summary"),))
    return made


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signature was verified, in order."""
    seen: list[str] = []
    original = identity._claims

    def counted(token: str, *arguments: Any) -> Any:
        seen.append(token)
        return original(token, *arguments)

    monkeypatch.setattr(identity, "_claims", counted)
    return seen


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def altered(text: str, head: Any = None, claims: Any = None) -> str:
    """The token with another head or other claims, and the signature that it had."""
    parts = text.split(".")
    return ".".join([part(head) if head else parts[0], part(claims) if claims else parts[1], parts[2]])


def claims_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(text, options={"verify_signature": False})
    return found


def signed(head: Any, claims: Any) -> str:
    """A token with a true RS256 signature, whatever its head says."""
    text = f"{part(head)}.{part(claims)}"
    signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(text.encode(), private_key("one"))
    return f"{text}.{part(signature)}"


def who(found: Identity | None) -> tuple[str, str]:
    assert found is not None
    return found.namespace, found.caller


# --- the three kinds of callers


def test_a_service_account_is_its_tokens_namespace_and_name(verifier: Verifier) -> None:
    found = verifier.identify(token())
    assert who(found) == ("support", "sa:web")
    assert found is not None
    assert (found.pod, found.feature, found.subject) == ("web-1", "", "system:serviceaccount:support:web")


def test_an_api_key_is_its_namespace_and_name_and_brings_its_feature(verifier: Verifier) -> None:
    found = verifier.identify(SECRET)
    assert who(found) == ("support", "key:ticket-worker")
    assert found is not None
    assert found.feature == "ticket-summary"
    assert found.expires_s == float("inf")
    assert found.subject == ""


def test_a_provider_s_token_is_whoever_its_claims_name(verifier: Verifier) -> None:
    assert who(verifier.identify(oidc_token())) == ("support", "oidc:alice")


@pytest.mark.parametrize("secret", [SECRET[:-1], SECRET + "k", SECRET.upper(), "", " ", "sk-anything", "a.b.c"])
def test_a_key_that_nobody_made_is_nobody(verifier: Verifier, secret: str) -> None:
    assert verifier.identify(secret) is None


def test_the_hash_of_a_key_is_not_the_key(verifier: Verifier) -> None:
    assert verifier.identify(api_key(SECRET).hash) is None


def test_any_opaque_text_can_be_a_key(wall: Wall) -> None:
    verifier = Verifier(wall)
    verifier.trust((), (api_key("sk-of-another-product", name="old"),))
    assert who(verifier.identify("sk-of-another-product")) == ("support", "key:old")


def test_an_expired_key_is_refused_from_its_end_on(wall: Wall) -> None:
    verifier = Verifier(wall)
    verifier.trust((), (api_key(SECRET, expires_ms=int(wall.now * 1000) + 60_000),))
    found = verifier.identify(SECRET)
    assert found is not None
    assert found.expires_s == pytest.approx(wall.now + 60, abs=0.01)
    wall.now += 60.1
    assert verifier.identify(SECRET) is None


def test_a_revoked_key_stops_and_a_new_one_works_with_the_next_configuration(verifier: Verifier) -> None:
    verifier.trust((CLUSTER,), (api_key("fl_new", name="new"),))
    assert verifier.identify(SECRET) is None
    assert who(verifier.identify("fl_new")) == ("support", "key:new")


def test_ten_thousand_keys_are_found_by_one_look_up_each(wall: Wall) -> None:
    verifier = Verifier(wall)
    verifier.trust((), tuple(api_key(f"fl_{number}", name=f"k{number}") for number in range(10_000)))
    assert {verifier.identify(f"fl_{number}").name for number in range(10_000)} == {  # type: ignore[union-attr]
        f"k{number}" for number in range(10_000)
    }


@pytest.mark.parametrize("bad", ["", "zz", "A" * 64, api_key(SECRET).hash.upper()])
def test_a_hash_that_is_none_matches_nothing(wall: Wall, bad: str) -> None:
    verifier = Verifier(wall)
    verifier.trust((), (ApiKey(hash=bad, namespace="support", name="bad"),))
    assert verifier.identify(SECRET) is None
    assert verifier.identify("") is None


# --- what a token is good for


def test_a_provider_s_token_is_good_for_no_control_plane_audience(verifier: Verifier) -> None:
    for audience in (AUDIENCE_CALLER, AUDIENCE_ROUTER, AUDIENCE_SIGNALS, OIDC_AUDIENCE, ""):
        claims = {"sub": "system:serviceaccount:fairlead:fairlead-operator", "aud": [audience, OIDC_AUDIENCE]}
        assert verifier.verify(oidc_token(**claims), audience) is None


def test_an_api_key_is_good_for_no_control_plane_audience(verifier: Verifier) -> None:
    assert verifier.verify(SECRET, AUDIENCE_ROUTER) is None


def test_a_token_of_the_control_plane_is_no_caller_s(verifier: Verifier) -> None:
    hop = token(audience=AUDIENCE_ROUTER)
    assert verifier.verify(hop, AUDIENCE_ROUTER) is not None
    assert verifier.identify(hop) is None
    assert verifier.verify(hop, AUDIENCE_SIGNALS) is None


def test_a_cached_verdict_for_one_audience_says_nothing_of_another(verifier: Verifier) -> None:
    text = token()
    assert verifier.identify(text) is not None
    assert verifier.verify(text, AUDIENCE_ROUTER) is None


def test_an_external_subject_cannot_pass_for_a_service_account(verifier: Verifier) -> None:
    found = verifier.identify(oidc_token(name="system:serviceaccount:fairlead:fairlead-operator"))
    assert found is not None
    assert found.caller.startswith("oidc:")
    assert found.subject == ""


def test_the_claim_of_a_cluster_s_token_does_not_choose_the_namespace(verifier: Verifier) -> None:
    assert who(verifier.identify(token(team="search"))) == ("support", "sa:web")


def test_two_applications_of_one_provider_are_told_apart_by_audience(wall: Wall) -> None:
    verifier = Verifier(wall)
    other = oidc_issuer(audience="batch", namespace_claim="tenant", name_claim="client")
    verifier.trust((oidc_issuer(), other), ())
    assert who(verifier.identify(oidc_token())) == ("support", "oidc:alice")
    batch = oidc_token(aud="batch", tenant="search", client="nightly")
    assert who(verifier.identify(batch)) == ("search", "oidc:nightly")


def test_a_provider_with_the_cluster_s_own_name_gets_no_more_than_its_audience(wall: Wall) -> None:
    verifier = Verifier(wall)
    verifier.trust((Issuer(issuer=ISSUER, jwks=jwks("oidc"), audience="x", namespace_claim="team"), CLUSTER), ())
    assert who(verifier.identify(token())) == ("support", "sa:web")
    assert verifier.identify(token(kid="oidc")) is None
    assert who(verifier.identify(token(kid="oidc", aud="x", team="search"))) == (
        "search",
        "oidc:system:serviceaccount:support:web",
    )


def test_a_provider_without_an_audience_takes_nobody_s_token(wall: Wall) -> None:
    verifier = Verifier(wall)
    verifier.trust((oidc_issuer(audience=""),), ())
    assert verifier.identify(oidc_token()) is None
    for aud in ("", [""]):
        assert verifier.identify(oidc_token(aud=aud)) is None


# --- what proves nothing


def wrongs() -> dict[str, str]:
    good = token()
    head, claims = jwt.get_unverified_header(good), jwt.decode(good, options={"verify_signature": False})
    now = int(time.time())
    return {
        "no algorithm": f"{part({**head, 'alg': 'none'})}.{good.split('.')[1]}.",
        "no algorithm, old signature": altered(good, {**head, "alg": "none"}),
        "other claims": altered(good, claims={**claims, "sub": "system:serviceaccount:search:web"}),
        "another issuer": token(iss="https://evil"),
        "an issuer that is no text": altered(good, claims={**claims, "iss": [ISSUER]}),
        "another audience": token(aud="fairlead.dev/other"),
        "audience as a prefix": token(aud="fairlead.de"),
        "no expiry": jwt.encode(
            {k: v for k, v in claims.items() if k != "exp"},
            private_key("one"),
            algorithm="RS256",
            headers={"kid": "one"},
        ),
        "expired": token(exp=now - 60),
        "not yet valid": token(nbf=now + 3_600),
        "made tomorrow": token(iat=now + 86_400),
        "another key": token(kid="two"),
        "another key under this id": jwt.encode(claims, private_key("two"), algorithm="RS256", headers={"kid": "one"}),
        "another algorithm of the same key": jwt.encode(
            claims, private_key("one"), algorithm="PS256", headers={"kid": "one"}
        ),
        "no subject": token(sub=""),
        "a user": token(sub="alice"),
        "a node": token(sub="system:node:worker"),
        "half a subject": token(sub="system:serviceaccount:support"),
        "too long": token(padding="x" * 9000),
        "a critical extension": jwt.encode(
            claims, private_key("one"), algorithm="RS256", headers={"kid": "one", "crit": ["x"], "x": 1}
        ),
        "an id that is no text": altered(good, {**head, "kid": 7}),
        "cut": good[:-10],
        "two parts": good.rpartition(".")[0],
        "five parts": good + ".a.b",
        "claims that are a list": altered(good, claims=[1]),
        "a head that is a list": altered(good, [1]),
        "nested past any stack": altered(good, b'{"kid":' + b"[" * 5000 + b"]" * 500),
        "claims nested past any stack": altered(good, claims=b'{"iss":' + b"[" * 4000),
        "not a letter of ASCII": "é.é.é",
        "half a surrogate": "\udc80.\udc80.\udc80",
    }


WRONGS = wrongs()


@pytest.mark.parametrize("text", WRONGS.values(), ids=WRONGS.keys())
def test_what_proves_nothing_is_nobody_and_is_not_remembered(verifier: Verifier, text: str) -> None:
    assert verifier.identify(text) is None
    assert verifier.verify(text, AUDIENCE_CALLER) is None
    assert len(verifier._known) == 0


@pytest.mark.parametrize("form", [serialization.Encoding.PEM, serialization.Encoding.DER])
def test_the_public_key_is_no_shared_secret(verifier: Verifier, form: serialization.Encoding) -> None:
    public = private_key("one").public_key().public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'one'})}.{token().split('.')[1]}"
    signature = hmac.new(public, text.encode(), hashlib.sha256).digest()
    assert verifier.identify(f"{text}.{part(signature)}") is None


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS512", "PS256", "ES256"])
def test_a_good_signature_under_another_algorithm_s_name_is_none(verifier: Verifier, algorithm: str) -> None:
    assert verifier.identify(signed({"alg": algorithm, "kid": "one"}, claims_of(token()))) is None
    assert verifier.identify(signed({"alg": "RS256", "kid": "one"}, claims_of(token()))) is not None


def test_a_shared_secret_in_the_keys_of_an_issuer_is_no_key(wall: Wall) -> None:
    verifier = Verifier(wall)
    secret = {"kty": "oct", "kid": "one", "k": part(b"s" * 32)}
    verifier.trust((Issuer(issuer=ISSUER, jwks=json.dumps({"keys": [secret, {**secret, "alg": "RS256"}]})),), ())
    claims = claims_of(token())
    assert verifier.identify(jwt.encode(claims, b"s" * 32, algorithm="HS256", headers={"kid": "one"})) is None


@pytest.mark.parametrize("exp", ["1e9", True, None, [1], {}, float("nan"), float("inf")])
def test_an_expiry_that_is_no_time_is_no_expiry(verifier: Verifier, exp: Any) -> None:
    assert verifier.identify(token(exp=exp)) is None


@pytest.mark.parametrize("field", ["nbf", "iat"])
@pytest.mark.parametrize("value", ["soon", True, None, [0]])
def test_a_start_that_is_no_time_is_refused(verifier: Verifier, field: str, value: Any) -> None:
    assert verifier.identify(token(**{field: value})) is None


def test_clocks_may_differ_by_some_seconds(verifier: Verifier, wall: Wall) -> None:
    now = int(wall.now)
    assert verifier.identify(token(nbf=now + 5, iat=now + 5)) is not None
    assert verifier.identify(token(exp=now - 5)) is not None


@pytest.mark.parametrize(
    "team", ["Support", "sup port", "-a", "a-", "a.b", "a" * 64, "", 7, None, ["support"], {"x": 1}, "kube\n", "ａ"]
)
def test_a_claim_that_is_no_namespace_is_nobody_s(verifier: Verifier, team: Any) -> None:
    assert verifier.identify(oidc_token(team=team)) is None


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00", "é", "a" * 124, 7, None, ["a"]])
def test_a_claim_that_is_no_name_is_nobody_s(verifier: Verifier, name: Any) -> None:
    assert verifier.identify(oidc_token(name=name)) is None


def test_the_longest_name_still_fits_a_budget_s_key(verifier: Verifier) -> None:
    found = verifier.identify(oidc_token(name="a" * 123))
    assert found is not None
    assert len(found.caller) == 128


@given(st.text(max_size=200))
def test_no_text_is_anybody_or_an_error(text: str) -> None:
    verifier = Verifier(time.time)
    verifier.trust((CLUSTER, oidc_issuer()), (api_key(SECRET),))
    assert verifier.identify(text) is None


WORDS = st.sampled_from(
    ["", "a", ISSUER, AUDIENCE_CALLER, "system:serviceaccount:a:b", "pod", "name", "namespace", "é"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
JSON = (
    LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(WORDS, LEAVES | st.dictionaries(WORDS, LEAVES, max_size=2))
)
FIELDS = ("iss", "aud", "sub", "exp", "nbf", "iat", "kubernetes.io", "team")


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_a_well_signed_token_with_any_claims_is_somebody_or_nobody_but_no_error(changes: dict[str, Any]) -> None:
    claims = {"iss": ISSUER, "aud": AUDIENCE_CALLER, "sub": "system:serviceaccount:a:b", "exp": 9e9, **changes}
    verifier = Verifier(time.time)
    verifier.trust((CLUSTER, oidc_issuer()), ())
    found = verifier.identify(signed({"alg": "RS256", "kid": "one"}, claims))
    assert found is None or found.caller.startswith("sa:")


# --- claims


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("team", "a"),
        ("https://example.com/team", "b"),
        ("kubernetes.io", {"namespace": "c"}),
        ("/kubernetes.io/namespace", "c"),
        ("/realm~1roles/x~0y", "d"),
        ("/team", "a"),
        ("/team/deeper", None),
        ("/list/0", None),
        ("/nothing/here", None),
        ("nothing", None),
    ],
)
def test_a_claim_is_named_as_it_is_or_by_a_json_pointer(path: str, value: Any) -> None:
    claims = {
        "team": "a",
        "https://example.com/team": "b",
        "kubernetes.io": {"namespace": "c"},
        "realm/roles": {"x~y": "d"},
        "list": ["e"],
    }
    assert claim(claims, path) == value


def test_callers_of_another_cluster_are_told_by_a_nested_claim(wall: Wall) -> None:
    verifier = Verifier(wall)
    verifier.trust((oidc_issuer(namespace_claim="/kubernetes.io/namespace"),), ())
    text = oidc_token(**{"kubernetes.io": {"namespace": "search"}})
    assert who(verifier.identify(text)) == ("search", "oidc:alice")


# --- keys of issuers


def curve_jwk(curve: ec.EllipticCurve, **more: str) -> tuple[ec.EllipticCurvePrivateKey, dict[str, Any]]:
    key = ec.generate_private_key(curve)
    entry = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return key, {**entry, **more}


@pytest.mark.parametrize(
    ("curve", "algorithm"), [(ec.SECP256R1(), "ES256"), (ec.SECP384R1(), "ES384"), (ec.SECP521R1(), "ES512")]
)
def test_a_key_that_names_no_algorithm_is_good_for_the_usual_one_of_its_curve(
    verifier: Verifier, curve: ec.EllipticCurve, algorithm: str
) -> None:
    key, entry = curve_jwk(curve, kid="ec")
    verifier.trust((Issuer(issuer=ISSUER, jwks=json.dumps({"keys": [entry]})),), ())
    claims = claims_of(token())
    text = jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "ec"})
    assert who(verifier.identify(text)) == ("support", "sa:web")


def without(document: str, *members: str) -> str:
    keys = json.loads(document)["keys"]
    return json.dumps({"keys": [{name: value for name, value in key.items() if name not in members} for key in keys]})


@pytest.mark.parametrize("document", [without(jwks("one", "two"), "kid"), without(jwks("one", "two"), "alg", "use")])
def test_keys_need_neither_an_id_nor_a_use(verifier: Verifier, document: str) -> None:
    verifier.trust((Issuer(issuer=ISSUER, jwks=document),), ())
    for kid in ("one", "two"):
        assert verifier.identify(token(kid=kid)) is not None


def test_two_keys_may_have_one_id_during_a_rotation(verifier: Verifier) -> None:
    keys = [{**key, "kid": "same"} for key in json.loads(jwks("one", "two"))["keys"]]
    verifier.trust((Issuer(issuer=ISSUER, jwks=json.dumps({"keys": keys})),), ())
    claims = claims_of(token())
    for name in ("one", "two"):
        text = jwt.encode(claims, private_key(name), algorithm="RS256", headers={"kid": "same"})
        assert verifier.identify(text) is not None


BROKEN: list[Any] = [
    {},
    {"kty": "RSA"},
    {"kty": "RSA", "n": "!", "e": "AQAB"},
    {"kty": "RSA", "n": 7, "e": 7},
    {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
    {"kty": ["RSA"]},
    {**json.loads(jwks())["keys"][0], "kid": ["one"]},
    {**json.loads(jwks("two"))["keys"][0], "use": "enc"},
    "key",
    7,
    None,
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_key_that_cannot_be_used_takes_no_other_with_it(verifier: Verifier, broken: Any) -> None:
    keys = [broken, *json.loads(jwks())["keys"]]
    verifier.trust((Issuer(issuer=ISSUER, jwks=json.dumps({"keys": keys})),), ())
    assert verifier.identify(token()) is not None
    assert verifier.identify(token(kid="two")) is None


@pytest.mark.parametrize("document", ["", "{", "[]", "7", '{"keys": 7}', '{"key": []}', "[" * 10_000])
def test_keys_that_are_no_document_are_no_keys_and_no_error(
    verifier: Verifier, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    verifier.trust((Issuer(issuer=ISSUER, jwks=document), oidc_issuer()), ())
    assert verifier.identify(token()) is None
    assert verifier.identify(oidc_token()) is not None
    assert ISSUER in caplog.text


# --- what is remembered


def test_a_token_s_signature_is_verified_once(verifier: Verifier, signatures: list[str]) -> None:
    text = token()
    assert [verifier.identify(text) for _ in range(5)] == [verifier.identify(text)] * 5
    assert signatures == [text]


def test_a_new_api_key_makes_nobody_verify_again(verifier: Verifier, signatures: list[str]) -> None:
    texts = [token(), oidc_token()]
    for text in texts:
        verifier.identify(text)
    verifier.trust((Issuer(issuer=ISSUER, jwks=jwks()), oidc_issuer()), (api_key("fl_other", name="other"),))
    assert all(verifier.identify(text) for text in texts)
    assert signatures == texts


def test_another_issuer_s_rotation_makes_nobody_verify_again(verifier: Verifier, signatures: list[str]) -> None:
    mine, theirs = token(), oidc_token()
    for text in (mine, theirs):
        verifier.identify(text)
    verifier.trust((CLUSTER, oidc_issuer(jwks=jwks("oidc", "next"))), ())
    assert verifier.identify(mine) is not None
    assert verifier.identify(theirs) is not None
    assert signatures == [mine, theirs, theirs]


def test_a_new_key_works_beside_the_old_one_and_a_removed_one_stops(verifier: Verifier) -> None:
    old, new = token(), token(kid="two")
    assert verifier.identify(old) is not None
    assert verifier.identify(new) is None
    verifier.trust((Issuer(issuer=ISSUER, jwks=jwks("one", "two")),), ())
    assert verifier.identify(old) is not None
    assert verifier.identify(new) is not None
    verifier.trust((Issuer(issuer=ISSUER, jwks=jwks("two")),), ())
    assert verifier.identify(old) is None
    assert verifier.identify(new) is not None


def test_an_issuer_that_is_gone_takes_its_tokens_with_it(verifier: Verifier) -> None:
    text = oidc_token()
    assert verifier.identify(text) is not None
    verifier.trust((CLUSTER,), ())
    assert verifier.identify(text) is None


def test_a_changed_claim_changes_who_a_remembered_token_is(verifier: Verifier) -> None:
    text = oidc_token(tenant="search")
    assert who(verifier.identify(text)) == ("support", "oidc:alice")
    verifier.trust((oidc_issuer(namespace_claim="tenant"),), ())
    assert who(verifier.identify(text)) == ("search", "oidc:alice")


def test_a_remembered_token_ends_with_its_expiry(verifier: Verifier, wall: Wall) -> None:
    text = token(exp=int(wall.now + HOUR))
    assert verifier.identify(text) is not None
    wall.now += HOUR - 1
    assert verifier.identify(text) is not None
    wall.now += 12
    assert verifier.identify(text) is None
    assert len(verifier._known) == 0


def test_the_memory_is_bounded_and_keeps_who_comes_often(wall: Wall, signatures: list[str]) -> None:
    verifier = Verifier(wall, remembered=3)
    verifier.trust((CLUSTER,), ())
    often = token(name="often")
    for number in range(6):
        verifier.identify(often)
        verifier.identify(token(name=f"n{number}"))
    assert len(verifier._known) == 3
    assert signatures.count(often) == 1


def test_the_memory_holds_no_token(verifier: Verifier) -> None:
    text = token()
    verifier.identify(text)
    assert text not in repr(verifier._known)


# --- through the router


def trusting(*keys: ApiKey, issuers: tuple[Issuer, ...] = (CLUSTER, oidc_issuer())) -> RouterConfig:
    return configuration(issuers=issuers, keys=keys)


async def test_all_three_kinds_of_callers_are_served_and_told_apart(engine: FakeEngine) -> None:
    config = trusting(api_key(SECRET, feature="ticket-summary"))
    async with station(config, {POOL: (await engine.start(),)}) as at:
        for bearer in (token(), SECRET, oidc_token()):
            assert (await at.ask(chat(), bearer=bearer)).status == 200
        told = {(caller.namespace, caller.name, labels.feature) for caller, labels in at.router._owners}
    assert told == {
        ("support", "sa:web", None),
        ("support", "key:ticket-worker", "ticket-summary"),
        ("support", "oidc:alice", None),
    }


async def test_the_feature_of_a_request_comes_before_the_key_s(engine: FakeEngine) -> None:
    config = trusting(api_key(SECRET, feature="ticket-summary"))
    async with station(config, {POOL: (await engine.start(),)}) as at:
        await at.ask(chat(), bearer=SECRET, x_fairlead_feature="eval")
        assert [labels.feature for _, labels in at.router._owners] == ["eval"]


async def test_a_key_may_come_as_anthropic_s_clients_send_it(engine: FakeEngine) -> None:
    body = chat()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nx-api-key: {SECRET}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    async with station(trusting(api_key(SECRET)), {POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(head.encode() + body)
        assert (await wire.answer()).status == 200


async def test_a_new_key_works_and_a_revoked_one_stops_on_a_connection_that_stays(engine: FakeEngine) -> None:
    async with station(trusting(), {POOL: (await engine.start(),)}) as at:
        wire = await at.connect()

        async def status(bearer: str) -> int:
            await wire.send(post(chat(), bearer=bearer))
            return (await wire.answer()).status

        assert await status(token()) == 200
        at.router.configure(build_index(trusting(api_key(SECRET))))
        assert await status(SECRET) == 200
        at.router.configure(build_index(trusting()))
        answers = await at.ask(chat(), bearer=SECRET)
        assert (answers.status, answers.code) == (401, "invalid_api_key")
        await wire.send(post(chat(), bearer=SECRET))
        assert (await wire.answer()).status == 401


async def test_a_key_that_expires_is_refused_at_its_end_and_not_when_it_is_next_looked_up(engine: FakeEngine) -> None:
    soon = api_key(SECRET, expires_ms=int(time.time() * 1000) + 400)
    async with station(trusting(soon), {POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat(), bearer=SECRET))
        assert (await wire.answer()).status == 200
        await asyncio.sleep(0.5)
        await wire.send(post(chat(), bearer=SECRET))
        assert (await wire.answer()).status == 401


async def test_a_rotation_and_a_removal_reach_requests_with_the_configuration(engine: FakeEngine) -> None:
    async with station(trusting(), {POOL: (await engine.start(),)}) as at:
        for names, statuses in ((("one",), (200, 401)), (("one", "two"), (200, 200)), (("two",), (401, 200))):
            at.router.configure(build_index(trusting(issuers=(Issuer(issuer=ISSUER, jwks=jwks(*names)),))))
            found = [(await at.ask(chat(), bearer=token(kid=kid))).status for kid in ("one", "two")]
            assert tuple(found) == statuses
