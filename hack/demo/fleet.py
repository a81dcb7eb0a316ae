"""The demo's fleet as objects: namespaces, two pools under one price, one policy, two budgets. Pure."""

from dataclasses import dataclass
from typing import Any

API = "fairlead.dev/v1alpha1"
PLATFORM = "ai-platform"
TEAMS = ("support", "search")
STORAGE_CLASS = "fairlead-local"
UID = 65532
PRODUCT = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
SHORT_TOKENS = 1024
LONG_TOKENS = 8192
CPU_ENGINE = ["--enforce-eager", "--dtype=float32", "--block-size=32"]
"""What vLLM's CPU build needs beside what a GPU pool says."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the node finds vLLM's environment, the models and vLLM's own cache."""

    site_packages: str
    models: str
    cache: str


def named(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    """An object of one of the three kinds."""
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def namespaces() -> list[dict[str, Any]]:
    """The platform's namespace and two tenants'."""
    teams = [{"name": team, "labels": {"fairlead.dev/tenant": "true"}} for team in TEAMS]
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": m} for m in [{"name": PLATFORM}, *teams]]


def volume(name: str, path: str, mode: str, namespace: str = PLATFORM) -> list[dict[str, Any]]:
    """A folder of the node as a claim in a namespace."""
    size = {"storage": "10Gi"}
    volume_name = f"fairlead-{name}"
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume_name},
            "spec": {
                "capacity": size,
                "accessModes": [mode],
                "storageClassName": STORAGE_CLASS,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": path},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": name, "namespace": namespace},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "accessModes": [mode],
                "storageClassName": STORAGE_CLASS,
                "volumeName": volume_name,
                "resources": {"requests": size},
            },
        },
    ]


def cpu_pod(site_packages: str) -> dict[str, Any]:
    """The podTemplate of a pool whose vLLM is the node's CPU build."""
    mount = {"name": "vllm", "mountPath": "/opt/vllm/site-packages", "readOnly": True}
    engine = {
        "name": "engine",
        "volumeMounts": [mount],
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
    }
    return {"spec": {"containers": [engine], "volumes": [{"name": "vllm", "hostPath": {"path": site_packages}}]}}


def pool(name: str, model: str, image: str, paths: Paths, **spec: Any) -> dict[str, Any]:
    """A pool of CPU engines that asks for one GPU each, so its manifests are those of a GPU cluster."""
    engine = {"image": image, **spec.pop("engine"), "extraArgs": [*CPU_ENGINE, *spec.pop("extra_args", [])]}
    return named(
        "ModelPool",
        name,
        PLATFORM,
        {
            "model": {"uri": f"pvc://models/{model}", "cache": {"claimName": "vllm-cache"}},
            "engine": engine,
            "variants": [{"name": "h100", "nodeSelector": PRODUCT}],
            "podTemplate": cpu_pod(paths.site_packages),
            **spec,
        },
    )


def pools(image: str, paths: Paths) -> list[dict[str, Any]]:
    """chat-8b, which scales from one to two, and chat-8b-long for what does not fit it."""
    short = pool(
        "chat-8b",
        "tiny",
        image,
        paths,
        engine={"maxContextTokens": 2048, "maxSequences": 4},
        extra_args=["--kv-cache-memory-bytes=64M"],
        autoscaling={"minReplicas": 1, "maxReplicas": 2, "objectives": {"queueDepth": 2}},
        rollout={"maxSurge": 1, "maxUnavailable": 0, "drainTimeout": "1m", "startupTimeout": "5m"},
    )
    long = pool(
        "chat-8b-long",
        "small",
        image,
        paths,
        engine={"maxContextTokens": LONG_TOKENS, "maxSequences": 2},
        extra_args=["--kv-cache-memory-bytes=256M"],
        replicas=1,
        rollout={"maxSurge": 1, "maxUnavailable": 0, "drainTimeout": "1m", "startupTimeout": "5m"},
    )
    return [short, long]


def policy() -> dict[str, Any]:
    """One model name, two routes by size."""
    return named(
        "RoutingPolicy",
        "chat",
        PLATFORM,
        {
            "models": ["chat"],
            "allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"fairlead.dev/tenant": "true"}}},
            "outputTokens": {"default": 64, "max": 512},
            "routes": [
                {"name": "short", "maxContextTokens": SHORT_TOKENS, "poolRefs": [{"name": "chat-8b"}]},
                {
                    "name": "long",
                    "maxContextTokens": LONG_TOKENS,
                    "poolRefs": [{"name": "chat-8b-long"}],
                    "maxWait": "90s",
                },
            ],
        },
    )


def budget(team: str, amount: str) -> dict[str, Any]:
    """A team's daily budget in USD, with an alert before the end."""
    limit = {"amount": amount, "unit": "USD", "per": "Namespace", "period": "Day", "timeZone": "UTC"}
    return named("CostBudget", team, team, {"limit": limit, "actions": [{"atPercent": 80, "action": "Alert"}]})
