"""A pool's Services and its disruption budget."""

from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.decide.facts import LABEL_POOL
from fairlead_operator.render.objects import ADMIN_PORT, REQUEST_PORT, metadata, pool_labels


def pool_service(pool: ModelPool) -> dict[str, Any]:
    """The pool's address: any of its routers applies the same policies and picks the replica."""
    return _service(pool, pool.name, {"ports": [_port("http", 80, REQUEST_PORT)]})


def pool_headless_service(pool: ModelPool) -> dict[str, Any]:
    """Addresses of the pods, not ready ones too: for people who look at one of them and for scraping metrics."""
    ports = [_port("http", REQUEST_PORT, REQUEST_PORT), _port("admin", ADMIN_PORT, ADMIN_PORT)]
    return _service(pool, f"{pool.name}-pods", {"clusterIP": "None", "publishNotReadyAddresses": True, "ports": ports})


def pool_disruption_budget(pool: ModelPool, stranded: int = 0) -> dict[str, Any]:
    """One pod at a time for drained nodes. Pods that are not ready may always go: they serve nobody.

    ``stranded`` pods will not become ready soon: a drain does not wait for them, or it would wait for ever.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(pool, pool.name, pool_labels(pool.name)),
        "spec": {
            "maxUnavailable": 1 + stranded,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {LABEL_POOL: pool.name}},
        },
    }


def _service(pool: ModelPool, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(pool, name, pool_labels(pool.name)),
        "spec": {"selector": {LABEL_POOL: pool.name}, **spec},
    }


def _port(name: str, port: int, target: int) -> dict[str, Any]:
    return {"name": name, "port": port, "targetPort": target, "protocol": "TCP"}
