"""Compiles the routers' configuration from a snapshot; every replica does, and all come to the same bytes.

What only the leader measures (how long a start takes, what context an engine reports) reaches the others through
annotations of the pools' Deployments, so it also outlives a restart and a pool at zero.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar
from zoneinfo import available_timezones

from fairlead_operator.api.v1alpha1 import CostBudget, ModelPool, PoolCondition, Reason, RoutingPolicy
from fairlead_operator.api.v1alpha1.modelpool import Rate
from fairlead_operator.clock import Clock
from fairlead_operator.config_feed import ConfigFeed
from fairlead_operator.decide.budgets import UNCOUNTABLE, budget_problems
from fairlead_operator.decide.engine_table.hardware import default_sequences
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.models import Callers, resolve_models
from fairlead_operator.decide.problems import Problem
from fairlead_operator.decide.rates import PoolCard, Rates
from fairlead_operator.decide.replicas import DEFAULT_COLD_START_MS, sequences_of
from fairlead_operator.kube.api import Object
from fairlead_operator.kube.cluster import Cluster, Snapshot
from fairlead_operator.kube.resources import DEPLOYMENTS
from fairlead_operator.render.ledger_budgets import covered_namespaces
from fairlead_operator.render.objects import deployment_name
from fairlead_operator.render.pod_template import engine_argument
from fairlead_operator.render.router_config import (
    BudgetInput,
    Compiled,
    PolicyInput,
    PoolInput,
    ReleaseInput,
    Running,
    compile_config,
    compile_endpoints,
    objectives_ms,
    serves,
)
from fairlead_operator.settings import Settings
from fairlead_operator.units import parse_usd
from fairlead_router.contract import ApiKey, Issuer, Signals

log = logging.getLogger(__name__)

T = TypeVar("T", RoutingPolicy, CostBudget)

CONTEXT = "fairlead.dev/reported-context-tokens"
COLD_START = "fairlead.dev/cold-start-ms"
CONCURRENCY = "fairlead.dev/requests-at-once"
DEBOUNCE_S = 0.05
NANO_PER_MICRO = 1000
_MEASURED = re.compile("[0-9]{1,8}", re.ASCII)
"""A team may write its Deployments' annotations, and none of them may keep the configuration from being compiled."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the last compilation was made of, for those who write statuses."""

    snapshot: Snapshot
    inputs: Mapping[str, PoolInput]
    callers: Mapping[str, Callers]
    budgets: Mapping[str, BudgetInput]
    refused: Mapping[str, tuple[Problem, ...]]
    """What is wrong with budgets, by namespace/name."""

    @property
    def countable(self) -> list[BudgetInput]:
        """The budgets that ledger and routers are told of: all that can be counted."""
        return [one for key, one in sorted(self.budgets.items()) if not uncountable(self.refused[key])]


def measured(snapshot: Snapshot, pool: ModelPool, annotation: str, variant: str = "") -> int:
    """The largest number that an annotation of the pool's Deployments, or of one variant's, holds; 0 = none."""
    live = [body for name, body in _deployments(snapshot, pool).items() if variant in {"", name}]
    texts = [str((body["metadata"].get("annotations") or {}).get(annotation, "")) for body in live]
    return max((_number(text) for text in texts), default=0)


def running(snapshot: Snapshot, pool: ModelPool) -> Running:
    """What the live pod templates tell the pool's engines; of a variant without one, what the spec would tell them."""
    spec = pool.spec
    variants = {one.name: one for one in spec.variants}
    slots = {name: sequences_of(spec, one) for name, one in variants.items()}
    contexts = dict.fromkeys(slots, spec.engine.max_context_tokens or 0)
    for name, body in _deployments(snapshot, pool).items():
        template = (body.get("spec") or {}).get("template") or {}
        tokens = _number(engine_argument(template, "--max-num-batched-tokens"))
        slots[name] = _number(engine_argument(template, "--max-num-seqs")) or default_sequences(variants[name], tokens)
        contexts[name] = _number(engine_argument(template, "--max-model-len"))
    return Running(
        slots=min(slots.values()),
        context=min((number for number in contexts.values() if number), default=0),
    )


def _deployments(snapshot: Snapshot, pool: ModelPool) -> dict[str, Object]:
    """The pool's Deployments that are there, by variant."""
    names = {one.name: deployment_name(pool.name, one.name) for one in pool.spec.variants}
    found = {key: snapshot.children.get((DEPLOYMENTS.kind, pool.namespace, name)) for key, name in names.items()}
    return {variant: body for variant, body in found.items() if body is not None}


def _number(text: str) -> int:
    """What people may have written, where it is a number; else 0."""
    return int(text) if _MEASURED.fullmatch(text) else 0


def concurrency(snapshot: Snapshot, pool: ModelPool) -> dict[str, int]:
    """Requests that a replica should run at once, by variant, as far as that was measured; none without objectives."""
    if objectives_ms(pool.spec) == (0, 0):
        return {}
    found = {one.name: measured(snapshot, pool, CONCURRENCY, one.name) for one in pool.spec.variants}
    return {name: number for name, number in found.items() if number}


def card_in_force(pool: ModelPool) -> PoolCard | None:
    """The pool's card as its status says: that is where every replica reads it."""
    rate = pool.status.rate
    if rate is None or rate.version is None:
        return None
    try:
        return PoolCard(rate.version, rates_of(rate), rate.source or "", 0)
    except ValueError:
        return None


def unpaid(pool: ModelPool) -> bool:
    """Whether the pool's status says that it stays at zero because its budgets do not pay for a replica."""
    limited = next((one for one in pool.status.conditions if one.type == PoolCondition.SCALING_LIMITED), None)
    by_budget = limited is not None and limited.status == "True" and limited.reason == Reason.BUDGET
    return by_budget and pool.status.desired_replicas == 0


def rates_of(rate: Rate) -> Rates:
    """USD for a million tokens with six places are pico-USD for one token, exactly.

    Raises:
        ValueError: somebody else wrote the status, and not such an amount.
    """
    texts = (rate.prompt_per_million_tokens, rate.cached_prompt_per_million_tokens, rate.output_per_million_tokens)
    return Rates(*(parse_usd(text or "0") // NANO_PER_MICRO for text in texts))


def _input(snapshot: Snapshot, pool: ModelPool) -> PoolInput:
    return PoolInput(
        pool=pool,
        card=card_in_force(pool),
        reported_context=measured(snapshot, pool, CONTEXT),
        cold_start_ms=measured(snapshot, pool, COLD_START) or DEFAULT_COLD_START_MS,
        concurrency=concurrency(snapshot, pool),
        running=running(snapshot, pool),
        unpaid=unpaid(pool),
    )


def compile_all(snapshot: Snapshot, settings: Settings) -> Picture:
    """The inputs of the configuration, from the snapshot alone."""
    inputs = {key: _input(snapshot, pool) for key, pool in snapshot.pools.items()}
    callers = resolve_models(list(snapshot.policies.values()), snapshot.namespaces, settings.platform_namespaces)
    # A pool without a card is refused by itself: one of them must not shut a budget for all the others.
    budgets = {
        key: BudgetInput(budget, covered_namespaces(budget, snapshot.namespaces, settings.platform_namespaces))
        for key, budget in snapshot.budgets.items()
    }
    refused = {
        key: budget_problems(budget, settings.platform_namespaces, zones()) for key, budget in snapshot.budgets.items()
    }
    return Picture(snapshot, inputs, callers, budgets, refused)


def carried(before: Picture, snapshot: Snapshot) -> Picture | None:
    """The picture of a later snapshot; ``None`` unless routers and ledger are told the same but for the endpoints.

    Figures in statuses move all the time, and pods come and go: they are not worth a compilation, which takes 25 ms for
    200 pools.
    """
    old = before.snapshot
    if old.namespaces != snapshot.namespaces or old.keys != snapshot.keys:
        return None
    if not (_alike(old.policies, snapshot.policies) and _alike(old.budgets, snapshot.budgets)):
        return None
    if old.pools.keys() != snapshot.pools.keys():
        return None
    touched = {key: _input(snapshot, pool) for key, pool in _touched(old, snapshot)}
    if not all(_told_alike(before.inputs[key], one) for key, one in touched.items()):
        return None
    budgets = {key: replace(one, budget=snapshot.budgets[key]) for key, one in before.budgets.items()}
    return replace(before, snapshot=snapshot, inputs={**before.inputs, **touched}, budgets=budgets)


def _serving(pods: tuple[PodFact, ...]) -> list[tuple[str, str, str, str, str]]:
    """What the endpoints are made of."""
    return [(pod.namespace, pod.name, pod.pool, pod.variant, pod.ip) for pod in pods if serves(pod)]


def _alike(first: Mapping[str, T], then: Mapping[str, T]) -> bool:
    """Whether these are the same policies, or budgets, but for their statuses."""
    if first is then:
        return True
    return first.keys() == then.keys() and all(_same(first[key], one) for key, one in then.items())


def _same(one: RoutingPolicy | CostBudget, other: RoutingPolicy | CostBudget) -> bool:
    if one is other:
        return True
    versionless = (two.metadata.model_copy(update={"resource_version": ""}) for two in (one, other))
    return one.spec == other.spec and next(versionless) == next(versionless)


def _touched(old: Snapshot, new: Snapshot) -> list[tuple[str, ModelPool]]:
    """The pools that were written in between, or one of whose Deployments was."""
    if old.pools is new.pools and old.children is new.children:
        return []
    return [(key, pool) for key, pool in new.pools.items() if old.pools[key] is not pool or _moved(old, new, pool)]


def _moved(old: Snapshot, new: Snapshot, pool: ModelPool) -> bool:
    names = [(DEPLOYMENTS.kind, pool.namespace, deployment_name(pool.name, one.name)) for one in pool.spec.variants]
    return any(old.children.get(one) is not new.children.get(one) for one in names)


def _told_alike(one: PoolInput, other: PoolInput) -> bool:
    """Whether routers are told the same of a pool: of its object that is what its spec says."""
    return one.pool.spec == other.pool.spec and replace(one, pool=other.pool) == other


@cache
def zones() -> frozenset[str]:
    """All time zones; reading them takes longer than a compilation."""
    return frozenset(available_timezones())


def uncountable(problems: tuple[Problem, ...]) -> bool:
    """Whether a budget cannot be counted at all; it must not keep the others out of the ledger."""
    return any(problem.reason in UNCOUNTABLE for problem in problems)


def unpriced(picture: Picture, covered: Collection[str], models: Collection[str] = ()) -> tuple[str, ...]:
    """The pools without a rate card that callers of the covered namespaces may be routed to.

    ``models``: by these names alone; empty = by any.
    """
    reached = {
        f"{policy.namespace}/{name}"
        for key, policy in picture.snapshot.policies.items()
        if (allowed := picture.callers[key].namespaces) is None or set(allowed) & set(covered)
        if not models or set(policy.spec.models) & set(models)
        for route in policy.spec.routes
        for name in route.pool_names
    }
    return tuple(sorted(key for key in reached if key in picture.inputs and picture.inputs[key].card is None))


@dataclass(frozen=True, slots=True)
class _Done:
    """The last compilation."""

    picture: Picture
    issuers: tuple[Issuer, ...]
    config: Compiled


class Compiler:
    """Keeps the feed in step with the cluster."""

    def __init__(
        self, cluster: Cluster, feed: ConfigFeed, settings: Settings, issuers: Callable[[], tuple[Issuer, ...]]
    ) -> None:
        self._cluster = cluster
        self._feed = feed
        self._settings = settings
        self._issuers = issuers
        self._done: _Done | None = None
        self._kick = asyncio.Event()
        self._pods: tuple[object, ...] = ()
        self.newcomers: dict[str, Signals] = {}
        """What routers have at least: what was in force when their pods were seen before they had an address."""

    def kick(self) -> None:
        """Something changed: compile soon."""
        self._kick.set()

    def refresh(self) -> Picture:
        """Compile now unless nothing that counts has changed; the reconcilers call it before they judge."""
        snapshot, issuers = self._cluster.snapshot(), self._issuers()
        before = self._done
        if before is not None and before.picture.snapshot is snapshot and before.issuers == issuers:
            return before.picture
        self._done = self._again(before, snapshot, issuers) or self._anew(snapshot, issuers)
        if self._pods != (snapshot.pods, snapshot.gateways):
            self._pods = (snapshot.pods, snapshot.gateways)
            self._note((*snapshot.pods, *snapshot.gateways))
        return self._done.picture

    def _note(self, pods: tuple[PodFact, ...]) -> None:
        """A pod without an address runs nothing yet: whatever its router will ask for is this or newer."""
        kept = {pod.key: self.newcomers[pod.key] for pod in pods if pod.key in self.newcomers}
        new = {pod.key: self._feed.present(pod.key) for pod in pods if not pod.ip and pod.key not in kept}
        self.newcomers = {**kept, **new}

    def _again(self, before: "_Done | None", snapshot: Snapshot, issuers: tuple[Issuer, ...]) -> "_Done | None":
        """What was compiled last, if it still holds; other endpoints are told."""
        if before is None or before.issuers != issuers:
            return None
        picture = carried(before.picture, snapshot)
        if picture is None:
            return None
        pods = before.picture.snapshot.pods
        if pods is not snapshot.pods and _serving(pods) != _serving(snapshot.pods):
            self._tell(before.config, picture)
        return _Done(picture, issuers, before.config)

    def _anew(self, snapshot: Snapshot, issuers: tuple[Issuer, ...]) -> "_Done":
        picture = compile_all(snapshot, self._settings)
        policies = [PolicyInput(policy, picture.callers[key]) for key, policy in snapshot.policies.items()]
        release = self._release(issuers, snapshot.keys.keys)
        config = compile_config(list(picture.inputs.values()), policies, picture.countable, release)
        self._tell(config, picture)
        return _Done(picture, issuers, config)

    def _tell(self, config: Compiled, picture: Picture) -> None:
        self._feed.publish(config, compile_endpoints(sorted(picture.inputs), picture.snapshot.pods))

    def _release(self, issuers: tuple[Issuer, ...], keys: tuple[ApiKey, ...]) -> ReleaseInput:
        return ReleaseInput(
            issuers=issuers,
            keys=keys,
            platform_namespaces=self._settings.platform_namespaces,
            release_namespace=self._settings.namespace,
            unbudgeted_namespaces=self._settings.unbudgeted_namespaces,
        )

    async def run(self, clock: Clock) -> None:
        """Compile after each change, many changes at once, until cancelled."""
        await self._cluster.wait_synced()
        while True:
            self._kick.clear()
            try:
                self.refresh()
            except Exception:
                log.exception("the configuration was not compiled; routers keep the last one")
            await self._kick.wait()
            await clock.sleep(DEBOUNCE_S)
