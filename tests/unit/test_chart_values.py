"""The values' schema refuses what nothing reads, and what cannot be meant."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from tests.builders.chart import ALL_OPTIONS, CHART, Object, refusal

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
SEED = {"promptTokensPerSecond": 1, "cachedTokensPerSecond": 1, "outputTokensPerSecond": 1}
PRICE = {
    "resourceName": "nvidia.com/gpu",
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"},
    "perHour": "1.55",
    "effectiveFrom": "2026-10-01",
    "source": "contract-4711",
}


PROVIDER = {"issuer": "https://login.example.com", "audience": "fairlead", "namespaceClaim": "team"}


def complaints(values: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(values)]


def nested(path: str, value: Any) -> Object:
    for key in reversed(path.split(".")):
        value = {key: value}
    result: Object = value
    return result


def schemas(schema: Any, path: str = "$") -> Iterator[tuple[str, Object]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, child in schema.items():
            yield from schemas(child, f"{path}.{key}")
    elif isinstance(schema, list):
        for index, child in enumerate(schema):
            yield from schemas(child, f"{path}[{index}]")


def typed_objects(schema: Object, path: str = "") -> Iterator[str]:
    """Dotted path of every value that is a mapping with named members."""
    for name, child in schema["properties"].items():
        if "properties" in resolved(child):
            yield f"{path}{name}"
            yield from typed_objects(resolved(child), f"{path}{name}.")


def resolved(schema: Object) -> Object:
    reference = schema.get("$ref")
    target: Object = SCHEMA["definitions"][reference.removeprefix("#/definitions/")] if reference else schema
    return target


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("values", [VALUES, ALL_OPTIONS, {}], ids=["values.yaml", "all options", "empty"])
def test_good_values_are_good(values: Object) -> None:
    assert complaints(values) == []


def test_every_object_is_closed_or_bounded() -> None:
    open_objects = [path for path, schema in schemas(SCHEMA) if "additionalProperties" not in schema]
    assert open_objects == ["$.properties.global"]


@pytest.mark.parametrize("path", list(typed_objects(SCHEMA)))
def test_a_name_that_nothing_reads_is_refused(path: str) -> None:
    (complaint,) = complaints(nested(f"{path}.typo", "x"))
    assert "'typo' was unexpected" in complaint


def test_a_name_that_nothing_reads_is_refused_at_the_top() -> None:
    assert len(complaints({"platformNamespace": ["a"]})) == 1


def test_schema_and_values_name_the_same() -> None:
    def keys(schema: Object, values: Any, path: str) -> Iterator[str]:
        named = set(schema["properties"]) - {"global"}
        yield from (f"{path}{name}" for name in named ^ set(values))
        for name in named & set(values):
            child = resolved(schema["properties"][name])
            if "properties" in child and name != "resources":
                yield from keys(child, values[name], f"{path}{name}.")

    assert list(keys(SCHEMA, VALUES, "")) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("image.registry", "example.com/"),
        ("image.tag", "a b"),
        ("image.pullPolicy", "Sometimes"),
        ("image.pullSecrets", ["registry"]),
        ("engine.image", ""),
        ("platformNamespaces", "ai-platform"),
        ("platformNamespaces", ["Ai"]),
        ("platformNamespaces", ["a", "a"]),
        ("unbudgetedNamespaces", "Deny"),
        ("crds.keep", "yes"),
        ("oidc", [{**PROVIDER, "issuer": "http://login.example.com"}]),
        ("oidc", [{**PROVIDER, "issuer": "https://me@login.example.com"}]),
        ("oidc", [{**PROVIDER, "audience": ""}]),
        ("oidc", [{**PROVIDER, "claim": "team"}]),
        ("oidc", [{key: value for key, value in PROVIDER.items() if key != "namespaceClaim"}]),
        ("oidc", [{**PROVIDER, "jwks": "{}"}]),
        ("oidc", [{**PROVIDER, "jwks": {"keys": []}}]),
        ("oidc", [{**PROVIDER, "jwks": {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}}]),
        ("oidc", [{**PROVIDER, "jwks": {"keys": [{"kty": "RSA", "n": "sXch", "e": "AQAB", "d": "priv"}]}}]),
        ("oidc", [{**PROVIDER, "caBundle": "/etc/ssl/ca.pem"}]),
        ("prices.accelerators", [{**PRICE, "perHour": 1.55}]),
        ("prices.accelerators", [{**PRICE, "perHour": "-1"}]),
        ("prices.accelerators", [{**PRICE, "perHour": "1.1234567"}]),
        ("prices.accelerators", [{**PRICE, "effectiveFrom": "October"}]),
        ("prices.accelerators", [{key: value for key, value in PRICE.items() if key != "source"}]),
        ("prices.accelerators", [{**PRICE, "perhour": "1"}]),
        ("prometheus.url", "prometheus:9090"),
        ("prometheus.url", "http://me:secret@prometheus:9090"),
        ("prometheus.url", "http://prometheus:9090/?x=1"),
        ("prometheus.caBundle", "/etc/ssl/ca.pem"),
        ("prometheus.headersSecret", "Headers"),
        ("openCost.enabled", "yes"),
        ("openCost.keepMinutes", 0),
        ("openCost.matchers", {"clus-ter": "prod"}),
        ("rateCard.seeds", {"NVIDIA-L40S": SEED}),
        ("rateCard.seeds", {"default": {**SEED, "outputTokensPerSecond": 0}}),
        ("rateCard.seeds", {"default": {"promptTokensPerSecond": 1}}),
        ("operator.replicas", 0),
        ("operator.replicas", "2"),
        ("operator.logLevel", "loud"),
        ("operator.resources", {"requests": {"cpu": "much"}}),
        ("operator.tolerations", [{"keys": "a"}]),
        ("ledger.replicas", 17),
        ("ledger.storage.size", "big"),
        ("ledger.storage.whenDeleted", "Keep"),
        ("router.accessLog", 1.5),
        ("router.accessLog", "0.5"),
        ("router.tracing.endpoint", "otel-collector:4318"),
        ("router.tracing.endpoint", "http://me:secret@collector:4318"),
        ("router.tracing.share", -0.1),
        ("tls.secretName", "Gateway"),
        ("gateway.drainTimeoutSeconds", 0),
        ("gateway.service.type", "NodePort"),
        ("gateway.service.loadBalancerSourceRanges", ["10.0.0.1"]),
        ("networkPolicy.dnsPorts", []),
        ("networkPolicy.apiServerPorts", [70000]),
        ("podMonitor.interval", "soon"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(path: str, value: Any) -> None:
    assert complaints(nested(path, value))


def test_a_price_and_seeds_of_ones_own_are_accepted() -> None:
    assert complaints({"prices": {"accelerators": [PRICE]}, "rateCard": {"seeds": {"default": SEED}}}) == []


def test_a_provider_with_and_without_keys_is_accepted() -> None:
    key = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "one", "x5c": ["MII"]}
    assert complaints({"oidc": [PROVIDER, {**PROVIDER, "jwks": {"keys": [key]}}]}) == []


def test_helm_itself_refuses_by_the_schema() -> None:
    assert "additional properties 'replica' not allowed" in refusal({"operator": {"replica": 2}})
    assert "got string, want integer" in refusal({"gateway": {"replicas": "two"}})
    assert refusal({"gateway": {"replicas": 2}}) == ""


def test_open_cost_without_a_prometheus_is_refused() -> None:
    assert "openCost.enabled needs prometheus.url" in refusal({"openCost": {"enabled": True}})
