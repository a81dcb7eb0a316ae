"""The chart as helm renders it, without a cluster."""

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.layout import programs_dir

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "fairlead"
NAMESPACE = "fairlead"
PROGRAMS = ("operator", "ledger", "gateway")
OTHERS = ("templates/crds/", "templates/admission/")
"""Templates with golden tests of their own."""

Object = dict[str, Any]

ALL_OPTIONS: Object = {
    "image": {
        "registry": "registry.example.com/fairlead",
        "tag": "0.1.0-rc.1",
        "pullPolicy": "Always",
        "pullSecrets": [{"name": "registry"}],
    },
    "engine": {"image": "registry.example.com/vllm:v0.32.0"},
    "huggingFaceEndpoint": "http://mirror.models:8080",
    "platformNamespaces": ["ml", "ai-platform"],
    "unbudgetedNamespaces": "Reject",
    "oidc": [
        {
            "issuer": "https://login.example.com/realms/acme",
            "audience": "fairlead",
            "namespaceClaim": "team",
            "nameClaim": "preferred_username",
            "jwks": {"keys": [{"kty": "RSA", "kid": "one", "n": "sXch", "e": "AQAB"}]},
        },
        {
            "issuer": "https://dex.example.com:5556",
            "audience": "fairlead",
            "namespaceClaim": "/kubernetes.io/namespace",
            "caBundle": "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n",
        },
    ],
    "prometheus": {
        "url": "https://prometheus.example.com:9443/prod",
        "caBundle": "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n",
        "headersSecret": "prometheus-headers",
    },
    "openCost": {"enabled": True, "keepMinutes": 120, "matchers": {"cluster": "prod"}},
    "crds": {"install": True, "keep": False},
    "operator": {
        "replicas": 2,
        "logLevel": "debug",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
        "podAnnotations": {"example.com/team": "platform"},
    },
    "ledger": {
        "storage": {"size": "50Gi", "storageClassName": "fast", "whenDeleted": "Delete"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
        "podAnnotations": {"example.com/team": "platform"},
    },
    "gateway": {
        "replicas": 3,
        "drainTimeoutSeconds": 900,
        "service": {
            "type": "LoadBalancer",
            "annotations": {"example.com/internal": "true"},
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
        },
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
        "podAnnotations": {"example.com/team": "platform"},
    },
    "router": {"accessLog": 0.01, "tracing": {"endpoint": "http://otel-collector.monitoring:4318", "share": 0.5}},
    "tls": {"secretName": "gateway-tls"},
    "priorityClassName": "system-cluster-critical",
    "networkPolicy": {"monitoringNamespaces": ["monitoring"], "apiServerPorts": [6443], "dnsPorts": [53]},
    "podMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
}


def helm(*arguments: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm on the chart with these values; skips where there is no helm."""
    built = programs_dir() / "helm"
    program = str(built) if built.is_file() else shutil.which("helm")
    if program is None:
        pytest.skip("no helm: neither built by hack/cluster nor on PATH")
    return subprocess.run(
        [program, *arguments, "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def render(values: Mapping[str, Any] | None = None, *options: str, namespace: str = NAMESPACE) -> str:
    """What ``helm template`` writes."""
    return _rendered(json.dumps(values or {}), options, namespace)


def refusal(values: Mapping[str, Any]) -> str:
    """What helm says against these values; empty if nothing."""
    run = helm("template", "fairlead", str(CHART), f"--namespace={NAMESPACE}", values=values)
    return run.stderr if run.returncode else ""


def objects(values: Mapping[str, Any] | None = None, *options: str, namespace: str = NAMESPACE) -> list[Object]:
    """The rendered objects."""
    return [one for one in yaml.safe_load_all(render(values, *options, namespace=namespace)) if one]


def find(rendered: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = [one for one in rendered if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod_specs(rendered: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and PodSpec of everything that runs."""
    for one in rendered:
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["spec"]
        elif one["kind"] in {"Deployment", "StatefulSet"}:
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def pod_spec(rendered: list[Object], name: str) -> Object:
    """The PodSpec of that name."""
    return dict(pod_specs(rendered))[name]


def environment(spec: Object) -> dict[str, str | None]:
    """Environment of the pod's only container; None where a value comes from the pod itself."""
    (container,) = spec["containers"]
    return {one["name"]: one.get("value") for one in container["env"]}


def own_part(text: str) -> str:
    """Rendered text without the templates that other tests hold."""
    parts = text.split("---\n# Source: fairlead/")
    return "".join(f"---\n# Source: fairlead/{one}" for one in parts[1:] if not one.startswith(OTHERS))


@functools.lru_cache(maxsize=64)
def _rendered(values: str, options: tuple[str, ...], namespace: str) -> str:
    run = helm("template", "fairlead", str(CHART), f"--namespace={namespace}", *options, values=json.loads(values))
    assert run.returncode == 0, run.stderr
    return run.stdout
