"""A RoutingPolicy becomes part of the routers' configuration; its status says what it resolves to and who has it."""

from collections.abc import Mapping
from functools import cache

from fairlead_operator.api.v1alpha1 import RoutingPolicy
from fairlead_operator.kube.api import Object
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import ROUTING_POLICIES
from fairlead_operator.reconcile.configuration import Picture
from fairlead_operator.reconcile.context import Context, confirmations, publish
from fairlead_operator.render.router_config import PoolInput
from fairlead_operator.status.events import events_of_routingpolicy
from fairlead_operator.status.routingpolicy import PolicyView, routingpolicy_status
from fairlead_router.contract import Signals


class PolicyReconciler:
    """Reconciles one policy at a time."""

    def __init__(self, context: Context) -> None:
        self._c = context

    async def __call__(self, key: Key) -> None:
        """Report on one policy; the configuration itself is compiled for all at once."""
        # 1. Gather: the configuration must be of the same moment as what is judged by it.
        compiled = self._c.compiler.refresh()
        raw = compiled.snapshot.raw.get(key)
        policy = compiled.snapshot.policies.get(f"{key.namespace}/{key.name}")
        if raw is None or policy is None:
            self._c.statuses.forget(key)
            return
        # 2. Decide.
        status = self._status(compiled, policy, raw)
        # 3. Report.
        events = events_of_routingpolicy(self._c.statuses.present(raw), status)
        await publish(self._c, ROUTING_POLICIES, raw, status, events)

    def _status(self, compiled: Picture, policy: RoutingPolicy, raw: Object) -> Mapping[str, object]:
        places = {*self._c.feed.platform, policy.namespace}

        @cache
        def knows(namespace: str, version: str) -> bool:
            return self._c.feed.knows_policy(namespace, version, policy.key)

        def has(namespace: str, signals: Signals) -> bool:
            return knows(namespace, signals.config_version)

        routers = confirmations(self._c, places, has)
        view = PolicyView(
            policy=policy,
            callers=compiled.callers[policy.key],
            pools=pools_of(compiled, policy.namespace),
            ready=ready_replicas(compiled, policy.namespace),
            namespaces_total=len(compiled.snapshot.namespaces),
            routers_total=routers.total,
            routers_programmed=routers.confirmed,
            address=self._c.settings.gateway_url,
        )
        return routingpolicy_status(view, self._c.statuses.present(raw), self._c.clock.now_ms())


def pools_of(compiled: Picture, namespace: str) -> dict[str, PoolInput]:
    """The pools of a namespace by name."""
    return {one.pool.name: one for one in compiled.inputs.values() if one.pool.namespace == namespace}


def ready_replicas(compiled: Picture, namespace: str) -> dict[str, int]:
    """Ready replicas of each pool of a namespace."""
    counts: dict[str, int] = {}
    for pod in compiled.snapshot.pods:
        place, _, name = pod.pool.partition("/")
        if place == namespace and pod.ready and not pod.terminating:
            counts[name] = counts.get(name, 0) + 1
    return counts
