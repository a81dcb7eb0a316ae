"""The kinds that the operator reads or writes, and their paths."""

from dataclasses import dataclass

FIELD_MANAGER = "fairlead-operator"
MANAGED_BY = "app.kubernetes.io/managed-by=fairlead-operator"
GATEWAY = "app.kubernetes.io/name=fairlead-gateway"


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API server's paths know it. ``group`` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The value of an object's ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def title(self) -> str:
        """Name for people: ``deployments.apps``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Path below the server's address; without a namespace: of all namespaces."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [root, self.version, f"namespaces/{namespace}" if namespace and self.namespaced else ""]
        return "/".join(part for part in (*parts, self.plural, name, subresource) if part)


MODEL_POOLS = Resource("fairlead.dev", "v1alpha1", "modelpools", "ModelPool")
ROUTING_POLICIES = Resource("fairlead.dev", "v1alpha1", "routingpolicies", "RoutingPolicy")
COST_BUDGETS = Resource("fairlead.dev", "v1alpha1", "costbudgets", "CostBudget")
OWN_KINDS = (MODEL_POOLS, ROUTING_POLICIES, COST_BUDGETS)

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")

CHILD_KINDS = {kind.kind: kind for kind in (DEPLOYMENTS, SERVICES, DISRUPTION_BUDGETS)}
"""The kinds that a ModelPool becomes."""
