"""ServiceAccount tokens for the ledger as an API server signs them, with a key made for this run."""

from functools import cache
from typing import Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from fairlead_router.contract import AUDIENCE_CONTROL, AUDIENCE_LEDGER

ISSUER: Final = "https://chaos.test"
_KEY_ID: Final = "chaos"
_NEVER: Final = 4_000_000_000


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwks() -> str:
    """The public key as a JWKS document."""
    public = jwt.algorithms.ECAlgorithm.to_jwk(_key().public_key(), as_dict=True)
    return msgspec.json.encode({"keys": [public | {"kid": _KEY_ID, "alg": "ES256", "use": "sig"}]}).decode()


def token(service_account: str, pod: str) -> str:
    """A token of a pod in Fairlead's own namespace, for the ledger and the operator."""
    claims = {
        "iss": ISSUER,
        "aud": [AUDIENCE_LEDGER, AUDIENCE_CONTROL],
        "exp": _NEVER,
        "kubernetes.io": {
            "namespace": "fairlead",
            "serviceaccount": {"name": service_account, "uid": "sa-uid"},
            "pod": {"name": pod, "uid": f"uid-{pod}"},
        },
    }
    return jwt.encode(claims, _key(), algorithm="ES256", headers={"kid": _KEY_ID})
