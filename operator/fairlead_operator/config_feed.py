"""What the routers are told: one configuration for each place that a router can be in, and who waits for the next.

A router in a platform namespace, and the gateway, get everything. A router in a team's namespace gets what that
namespace needs: its own policies, pools and API keys, and the budgets that cover it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from fairlead_operator.render.router_config import Compiled, CompiledEndpoints, version_of
from fairlead_router.contract import BudgetConfig, ConfigAnswer, Endpoints, PolicyConfig, RouterConfig, Signals

ALL = ""
"""The scope of platform routers; every other scope is the namespace of a team."""
REMEMBERED = 32
"""Versions that a lagging router may still confirm."""
ROUTERS_REMEMBERED = 100_000

BudgetsVersion = tuple[int, int]


@dataclass(slots=True)
class _Scope:
    """One scope's present configuration, and what earlier versions said."""

    compiled: Compiled
    endpoints: CompiledEndpoints
    known: OrderedDict[str, RouterConfig] = field(default_factory=OrderedDict)

    def remember(self) -> None:
        self.known[self.compiled.version] = self.compiled.config
        self.known.move_to_end(self.compiled.version)
        while len(self.known) > REMEMBERED:
            self.known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Have:
    """What a router says it has: it is answered as soon as there is something else."""

    version: str
    endpoints: str
    router: str


class ConfigFeed:
    """The newest configuration of every scope. ``published`` is set once there is one."""

    def __init__(self, platform_namespaces: Iterable[str], release_namespace: str) -> None:
        self.platform = frozenset({*platform_namespaces, release_namespace})
        self._everything: tuple[Compiled, CompiledEndpoints] | None = None
        self._scopes: dict[str, _Scope] = {}
        self._budgets_version: BudgetsVersion = (0, 0)
        self._answered: OrderedDict[str, BudgetsVersion] = OrderedDict()
        self._changed = asyncio.Event()
        self.published = asyncio.Event()

    def scope_of(self, namespace: str) -> str:
        """The scope of a router in this namespace."""
        return ALL if namespace in self.platform else namespace

    def publish(self, compiled: Compiled, endpoints: CompiledEndpoints) -> bool:
        """Take a newly compiled configuration; answers whether anything differs."""
        if self._everything is not None and _versions(self._everything) == (compiled.version, endpoints.version):
            return False
        self._everything = (compiled, endpoints)
        homes = {pool.pool.partition("/")[0] for pool in compiled.config.pools}
        for name in [name for name in self._scopes if name != ALL and name not in homes]:
            # No router of ours is there any more; whoever asks from there has it made again.
            del self._scopes[name]
        for name in (ALL, *self._scopes):
            self._refresh(name)
        self.published.set()
        self._wake()
        return True

    def set_budgets_version(self, version: BudgetsVersion) -> None:
        """Tell routers that the ledger has newer budgets, so that they sync at once."""
        if version > self._budgets_version:
            self._budgets_version = version
            self._wake()

    @property
    def config(self) -> RouterConfig | None:
        """The whole configuration, if there is one yet."""
        return None if self._everything is None else self._everything[0].config

    def present(self, router: str) -> Signals:
        """What a router, namespace/name, would report if it asked now; there is a configuration."""
        scope = self._scope(router.partition("/")[0])
        return Signals(
            router=router,
            config_version=scope.compiled.version,
            endpoints_version=scope.endpoints.version,
            budgets_version=self._budgets_version,
        )

    def knows_policy(self, namespace: str, version: str, key: str) -> bool:
        """Whether a router in this namespace with this version has the policy as it is now."""
        known, present = self._known(namespace, version)
        return known is not None and _policy(known, key) == _policy(present, key)

    def knows_budget(self, namespace: str, version: str, key: str) -> bool:
        """Whether a router in this namespace with this version has the budget as it is now."""
        known, present = self._known(namespace, version)
        return known is not None and _budget(known, key) == _budget(present, key)

    def knows_keys(self, namespace: str, version: str) -> bool:
        """Whether a router in this namespace with this version has the API keys as they are now."""
        known, present = self._known(namespace, version)
        return known is not None and known.keys == present.keys

    async def answer(self, namespace: str, have: Have, seconds: float) -> ConfigAnswer:
        """What differs from ``have``, as soon as something does; after ``seconds`` whatever is true then."""
        try:
            async with asyncio.timeout(seconds):
                while not self._news(namespace, have):
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self._answer(namespace, have)

    def _wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _scope(self, namespace: str) -> _Scope:
        name = self.scope_of(namespace)
        if name not in self._scopes:
            self._refresh(name)
        return self._scopes[name]

    def _refresh(self, name: str) -> None:
        if self._everything is None:
            raise RuntimeError("nothing was compiled yet")
        compiled, endpoints = self._everything
        if name != ALL:
            compiled, endpoints = scoped(compiled.config, name), scoped_endpoints(endpoints.endpoints, name)
        scope = self._scopes.setdefault(name, _Scope(compiled, endpoints))
        scope.compiled, scope.endpoints = compiled, endpoints
        scope.remember()

    def _known(self, namespace: str, version: str) -> tuple[RouterConfig | None, RouterConfig]:
        if self._everything is None:
            return None, RouterConfig()
        scope = self._scope(namespace)
        return scope.known.get(version), scope.compiled.config

    def _news(self, namespace: str, have: Have) -> bool:
        scope = self._scope(namespace)
        told = self._answered.get(have.router, (0, 0))
        return (scope.compiled.version, scope.endpoints.version) != (
            have.version,
            have.endpoints,
        ) or told < self._budgets_version

    def _answer(self, namespace: str, have: Have) -> ConfigAnswer:
        scope = self._scope(namespace)
        self._answered[have.router] = self._budgets_version
        self._answered.move_to_end(have.router)
        while len(self._answered) > ROUTERS_REMEMBERED:
            self._answered.popitem(last=False)
        return ConfigAnswer(
            version=scope.compiled.version,
            endpoints_version=scope.endpoints.version,
            config=None if scope.compiled.version == have.version else scope.compiled.config,
            endpoints=None if scope.endpoints.version == have.endpoints else scope.endpoints.endpoints,
            budgets_version=self._budgets_version,
        )


def scoped(config: RouterConfig, namespace: str) -> Compiled:
    """The part of the configuration that a router in a team's namespace needs."""
    budgets = tuple(
        msgspec.structs.replace(budget, namespaces=(namespace,))
        for budget in config.budgets
        if namespace in budget.namespaces
    )
    part = msgspec.structs.replace(
        config,
        pools=tuple(pool for pool in config.pools if _in(pool.pool, namespace)),
        policies=tuple(policy for policy in config.policies if policy.namespace == namespace),
        adapter_policies=tuple(policy for policy in config.adapter_policies if policy.namespace == namespace),
        budgets=budgets,
        keys=tuple(key for key in config.keys if key.namespace == namespace),
    )
    return Compiled(part, version_of(part))


def scoped_endpoints(endpoints: Endpoints, namespace: str) -> CompiledEndpoints:
    """The replicas of the pools in a team's namespace."""
    part = Endpoints(pools=tuple(pool for pool in endpoints.pools if _in(pool.pool, namespace)))
    return CompiledEndpoints(part, version_of(part))


def _in(pool: str, namespace: str) -> bool:
    return pool.partition("/")[0] == namespace


def _versions(pair: tuple[Compiled, CompiledEndpoints]) -> tuple[str, str]:
    return pair[0].version, pair[1].version


def _policy(config: RouterConfig, key: str) -> PolicyConfig | None:
    policies = (*config.policies, *config.adapter_policies)
    return next((one for one in policies if f"{one.namespace}/{one.name}" == key), None)


def _budget(config: RouterConfig, key: str) -> BudgetConfig | None:
    return next((one for one in config.budgets if f"{one.namespace}/{one.name}" == key), None)
