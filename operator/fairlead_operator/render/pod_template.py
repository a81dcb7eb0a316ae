"""The pod of a variant: the router as a native sidecar, and vLLM behind it on a Unix socket."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPool, ModelPoolSpec, Variant
from fairlead_operator.decide.facts import ENGINE, LABEL_REVISION, ROUTER
from fairlead_operator.render.engine_args import ENGINE_SOCKET, MODELS_DIR, engine_arguments, fetches_from_hub
from fairlead_operator.render.merge import merged_template
from fairlead_operator.render.objects import ADMIN_PORT, REQUEST_PORT, variant_labels
from fairlead_router.contract import AUDIENCE_CONTROL, AUDIENCE_LEDGER, AUDIENCE_ROUTER

USER = 65532
RUN_DIR = "/run/fairlead"
DRAIN_SOCKET = f"{RUN_DIR}/drain.sock"
TOKENS_DIR = "/var/run/fairlead/tokens"
STATE_DIR = "/var/lib/fairlead"
CACHE_DIR = "/cache"
TOKEN_SECONDS = 3600
GRACE_AFTER_DRAIN_S = 30
TERMINATION_LOG = "/dev/termination-log"
"""Where the kubelet reads a container's last words, unless its spec says otherwise; it may be written in any case."""
STARTUP_PERIOD_S = 2
LIVENESS_PERIOD_S = 10
LIVENESS_FAILURES = 6
"""A router that restarts for a minute must not take a loaded engine with it."""
ROUTER_START_FAILURES = 150
SHM_LIMIT = "2Gi"

_TOKENS = (("control", AUDIENCE_CONTROL), ("ledger", AUDIENCE_LEDGER), ("router", AUDIENCE_ROUTER))
_START = f'rm -f {ENGINE_SOCKET} && exec vllm serve "$@"'
_DRAIN = """\
import socket
drain = socket.socket(socket.AF_UNIX)
drain.settimeout({seconds})
try:
    drain.connect({path!r})
    while drain.recv(4096):
        pass
except OSError:
    pass
"""
"""Waits for the router's word that nothing runs any more; a router that is gone has no requests to wait for."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images of this release; ``engine`` is for pools that name none."""

    router: str
    engine: str


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """Where the pods' routers find the control plane."""

    operator_url: str = "http://fairlead-operator.fairlead:8080"
    ledger_url: str = "http://fairlead-ledger.fairlead:8080"


def pod_template(
    pool: ModelPool, variant: Variant, images: Images, settings: RenderSettings, revision: str
) -> dict[str, Any]:
    """The pod template of a variant as this release renders it, podTemplate included.

    ``revision`` becomes a label, by which pods of one revision are told from those of another; empty: none.
    """
    drain = pool.spec.rollout.drain_timeout.seconds
    labels = variant_labels(pool.name, variant.name)
    rendered = {
        "metadata": {"labels": {**labels, LABEL_REVISION: revision} if revision else labels},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": drain + GRACE_AFTER_DRAIN_S,
            "securityContext": _pod_security(),
            "initContainers": [_router(pool, images.router, settings)],
            "containers": [_engine(pool, variant, images.engine)],
            "volumes": _volumes(pool, variant),
            **_placement(variant),
        },
    }
    return merged_template(rendered, pool.spec.pod_template)


def _placement(variant: Variant) -> dict[str, Any]:
    tolerations = [one.to_dict() for one in variant.tolerations]
    selector = {"nodeSelector": dict(variant.node_selector)} if variant.node_selector else {}
    return {**selector, **({"tolerations": tolerations} if tolerations else {})}


def _router(pool: ModelPool, image: str, settings: RenderSettings) -> dict[str, Any]:
    return {
        "name": ROUTER,
        "image": image,
        "restartPolicy": "Always",
        "env": _router_env(pool, settings),
        "ports": [_port("http", REQUEST_PORT), _port("admin", ADMIN_PORT)],
        "startupProbe": _probe("/-/ready", period=2, failures=ROUTER_START_FAILURES),
        "readinessProbe": _probe("/-/ready", period=5, failures=2),
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": _container_security(),
        "volumeMounts": [
            {"name": "run", "mountPath": RUN_DIR},
            {"name": "state", "mountPath": STATE_DIR},
            {"name": "fairlead-tokens", "mountPath": TOKENS_DIR, "readOnly": True},
            {"name": "router-tmp", "mountPath": "/tmp"},  # noqa: S108 a volume of the pod
        ],
    }


def _router_env(pool: ModelPool, settings: RenderSettings) -> list[dict[str, Any]]:
    values = {
        "FAIRLEAD_OPERATOR_URL": settings.operator_url,
        "FAIRLEAD_LEDGER_URL": settings.ledger_url,
        "FAIRLEAD_TOKENS_DIR": TOKENS_DIR,
        "FAIRLEAD_STATE_DIR": STATE_DIR,
        "FAIRLEAD_POOL": pool.key,
        "FAIRLEAD_ENGINE_SOCKET": ENGINE_SOCKET,
        "FAIRLEAD_DRAIN_SOCKET": DRAIN_SOCKET,
        "FAIRLEAD_DRAIN_TIMEOUT": str(pool.spec.rollout.drain_timeout.seconds),
        "FAIRLEAD_TERMINATION_LOG": TERMINATION_LOG,
        "HOME": STATE_DIR,
    }
    fields = {"FAIRLEAD_NAMESPACE": "metadata.namespace", "FAIRLEAD_POD_NAME": "metadata.name"}
    from_pod = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    return [*from_pod, *_env(values)]


def _engine(pool: ModelPool, variant: Variant, default_image: str) -> dict[str, Any]:
    spec = pool.spec
    secret = spec.model.secret_ref
    return {
        "name": ENGINE,
        "image": spec.engine_of(variant).image or default_image,
        "command": ["/bin/sh", "-c", _START, "vllm"],
        "args": list(engine_arguments(pool.name, spec, variant)),
        "env": _engine_env(spec, variant),
        **({"envFrom": [{"secretRef": {"name": secret.name}}]} if secret else {}),
        **_engine_probes(spec.rollout.startup_timeout.seconds),
        "lifecycle": {"preStop": {"exec": {"command": ["python3", "-c", _drain(pool)]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": _engine_resources(variant),
        "securityContext": _container_security(),
        "volumeMounts": _engine_mounts(pool, variant),
    }


def _drain(pool: ModelPool) -> str:
    return _DRAIN.format(seconds=pool.spec.rollout.drain_timeout.seconds, path=DRAIN_SOCKET)


def _engine_env(spec: ModelPoolSpec, variant: Variant) -> list[dict[str, Any]]:
    lora = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if spec.model.lora is not None else {}
    offline = {} if fetches_from_hub(spec, variant) else {"HF_HUB_OFFLINE": "1"}
    return _env(
        {
            "HOME": "/tmp",  # noqa: S108 a volume of the pod
            "HF_HOME": f"{CACHE_DIR}/huggingface",
            "VLLM_CACHE_ROOT": f"{CACHE_DIR}/vllm",
            "VLLM_ENGINE_READY_TIMEOUT_S": str(spec.rollout.startup_timeout.seconds),
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            **offline,
            **lora,
        }
    )


def _engine_probes(startup_seconds: int) -> dict[str, Any]:
    """Ready once it has answered the router's warm-up; alive as long as it is healthy."""
    starts = -(-startup_seconds // STARTUP_PERIOD_S)
    return {
        "startupProbe": _probe("/-/engine/ready", period=STARTUP_PERIOD_S, failures=max(1, starts)),
        "readinessProbe": _probe("/-/engine/ready", period=5, failures=2),
        "livenessProbe": _probe("/-/engine/health", period=LIVENESS_PERIOD_S, failures=LIVENESS_FAILURES),
    }


def _engine_resources(variant: Variant) -> dict[str, Any]:
    resource = variant.accelerator.resource_name
    return {} if resource == "cpu" else {"limits": {resource: str(variant.parallelism.accelerators)}}


def _engine_mounts(pool: ModelPool, variant: Variant) -> list[dict[str, Any]]:
    return [
        {"name": "run", "mountPath": RUN_DIR},
        {"name": "cache", "mountPath": CACHE_DIR},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 a volume of the pod
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 a volume of the pod
        *(mount for _, mount in _model_volumes(pool, variant)),
    ]


def _volumes(pool: ModelPool, variant: Variant) -> list[dict[str, Any]]:
    cache = pool.spec.model.cache
    kept = {"persistentVolumeClaim": {"claimName": cache.claim_name}} if cache else {"emptyDir": {}}
    tokens = [
        {"serviceAccountToken": {"audience": audience, "expirationSeconds": TOKEN_SECONDS, "path": path}}
        for path, audience in _TOKENS
    ]
    return [
        *({"name": name, "emptyDir": {}} for name in ("run", "state", "tmp", "router-tmp")),
        {"name": "fairlead-tokens", "projected": {"sources": tokens}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHM_LIMIT}},
        {"name": "cache", **kept},
        *(volume for volume, _ in _model_volumes(pool, variant)),
    ]


def adapter_claims(spec: ModelPoolSpec, variant: Variant) -> tuple[str, ...]:
    """The claims that only adapters are read from, sorted: all that of adapters is part of the pods."""
    adapters = spec.model.lora.adapters if spec.model.lora else ()
    mounted = {_claim(uri) for _, uri in _checkpoints(spec, variant)}
    return tuple(sorted({claim for one in adapters if (claim := _claim(one.uri))} - mounted))


def _checkpoints(spec: ModelPoolSpec, variant: Variant) -> list[tuple[str, str]]:
    """The model and the draft: a name for its volume, and where it is."""
    drafting = spec.engine_of(variant).speculative_decoding
    return [("image", spec.model_of(variant).uri), ("draft", (drafting and drafting.model) or "")]


def _claim(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else ""


def _model_volumes(pool: ModelPool, variant: Variant) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Volume and mount of each checkpoint that comes in one; a claim that holds several is mounted once."""
    claims = enumerate(adapter_claims(pool.spec, variant))
    uris = [*_checkpoints(pool.spec, variant), *((f"adapters-{place}", f"pvc://{claim}") for place, claim in claims)]
    found = [pair for name, uri in uris if (pair := _model_volume(name, uri)) is not None]
    return list({pair[1]["mountPath"]: pair for pair in reversed(found)}.values())[::-1]


def _model_volume(name: str, uri: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    scheme, _, rest = uri.partition("://")
    claim, volume = rest.partition("/")[0], f"model-{name}"
    match scheme:
        case "pvc":
            source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": claim}}
            path = f"{MODELS_DIR}/{claim}"
        case "oci":
            source, path = {"image": {"reference": rest, "pullPolicy": "IfNotPresent"}}, f"{MODELS_DIR}/{name}"
        case _:
            return None
    return {"name": volume, **source}, {"name": volume, "mountPath": path, "readOnly": True}


def _pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": ADMIN_PORT},
        "periodSeconds": period,
        "timeoutSeconds": min(period, 5),
        "failureThreshold": failures,
    }


def _port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _env(values: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def container(template: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A container of a pod template by its name."""
    spec = template.get("spec") or {}
    listed: Sequence[dict[str, Any]] = [*spec.get("containers", ()), *spec.get("initContainers", ())]
    return next((item for item in listed if item.get("name") == name), {})


def engine_argument(template: Mapping[str, Any], name: str) -> str:
    """The value that a pod template gives vLLM for an argument; empty where it gives none."""
    arguments = container(template, ENGINE).get("args") or ()
    return next((text.partition("=")[2] for text in arguments if text.startswith(f"{name}=")), "")
