"""Names, labels and owner of what is applied for a pool."""

from typing import Any

from fairlead_operator.api.v1alpha1 import API_VERSION, ModelPool
from fairlead_operator.decide.facts import LABEL_POOL, LABEL_VARIANT

MANAGED_BY = "fairlead-operator"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
REQUEST_PORT = 8000
ADMIN_PORT = 9090


def deployment_name(pool_name: str, variant_name: str) -> str:
    """Name of a variant's Deployment."""
    return f"{pool_name}-{variant_name}"


def pool_labels(pool_name: str) -> dict[str, str]:
    """Labels of everything that belongs to a pool."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_POOL: pool_name}


def variant_labels(pool_name: str, variant_name: str) -> dict[str, str]:
    """Labels of a variant's Deployment and pods."""
    return {**pool_labels(pool_name), LABEL_VARIANT: variant_name}


def pool_selector(pool_name: str) -> str:
    """The pods of a pool, as ``status.selector`` for the scale subresource."""
    return f"{LABEL_POOL}={pool_name}"


def owner_reference(pool: ModelPool) -> dict[str, Any]:
    """Makes the garbage collector delete what belongs to a deleted pool."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelPool",
        "name": pool.name,
        "uid": pool.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(pool: ModelPool, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Metadata of an object that belongs to the pool."""
    return {
        "name": name,
        "namespace": pool.namespace,
        "labels": labels,
        "ownerReferences": [owner_reference(pool)],
    }
