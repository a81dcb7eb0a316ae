"""A ModelPool becomes Deployments, Services and a PodDisruptionBudget, and says in its status why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairlead_operator.api.v1alpha1 import EventReason, ModelPool
from fairlead_operator.decide import replicas, rollout
from fairlead_operator.decide.autoscale import Wish
from fairlead_operator.decide.capacity import Look, Measure, counters_of, is_busy, measure, note, settings_key
from fairlead_operator.decide.facts import PodFact, drained_pods, live_pods, on_nodes, taken_pods
from fairlead_operator.decide.fit import judge
from fairlead_operator.decide.placement import placeable, reclaimed, without_room
from fairlead_operator.decide.pricing import hardware_of, price_on, price_variant
from fairlead_operator.decide.problems import Problem, errors
from fairlead_operator.decide.rates import (
    PoolCard,
    Rates,
    at_basis,
    card_row,
    next_basis,
    next_card,
    pool_rates,
    source_of,
)
from fairlead_operator.decide.replicas import Decision, Spending
from fairlead_operator.decide.rounds import attainment_percent, counting, look, requests_per_hour
from fairlead_operator.decide.second_writer import paused
from fairlead_operator.decide.signals import Router, pool_load, told_of
from fairlead_operator.decide.spend_cap import accounts_left, pays_a_replica, spend_cap, upkeep_of
from fairlead_operator.decide.variants import VariantOption, variant_options
from fairlead_operator.errors import LedgerError
from fairlead_operator.kube.api import Object
from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import DEPLOYMENTS, MODEL_POOLS
from fairlead_operator.reconcile.acting import SecondWriters, mark_victims
from fairlead_operator.reconcile.autoscaler import Scene, concurrency_of, figures_of, wish_of
from fairlead_operator.reconcile.books import PoolBook
from fairlead_operator.reconcile.budgets import wanted_budgets
from fairlead_operator.reconcile.configuration import CONTEXT, Picture, card_in_force, concurrency, measured, running
from fairlead_operator.reconcile.context import Context, Telling, publish, routers_of
from fairlead_operator.reconcile.curves import Curves
from fairlead_operator.reconcile.last_words import LastWords
from fairlead_operator.reconcile.model_facts import Checkpoints
from fairlead_operator.reconcile.pool_facts import Facts, cold_start, reported_context, rolling, settled_pods, starts
from fairlead_operator.reconcile.pool_objects import replace_reclaimed, write
from fairlead_operator.reconcile.rollouts import Rollouts
from fairlead_operator.reconcile.speculation import judgements_of
from fairlead_operator.render.deployment import TemplatePlan, validate_pool
from fairlead_operator.render.objects import deployment_name
from fairlead_operator.status.adapters import adapter_status, adapter_trouble
from fairlead_operator.status.events import (
    Event,
    events_of_drained,
    events_of_modelpool,
    events_of_pods,
    events_of_reclaimed,
    events_of_taken,
    replica_ready,
    scaled,
    warnings_of,
)
from fairlead_operator.status.modelpool import PoolView, modelpool_status
from fairlead_router.contract import LedgerBudget, PutCards

SEEDS_HOLD = "rates are cut from seeds, only pools of platform namespaces are measured"


class PoolReconciler:
    """Reconciles one pool at a time."""

    def __init__(self, context: Context) -> None:
        self._c = context
        self._rollouts = Rollouts(context.api, context.settings)
        self._checkpoints = Checkpoints(context.settings.hugging_face_endpoint)
        self._last_words = LastWords(context.api)
        self._told: tuple[Picture, tuple[LedgerBudget, ...]] | None = None
        self._curves = Curves()
        self._telling = Telling(context.feed.platform)
        self._heard: frozenset[str] = frozenset()
        """Routers that were heard in the round before."""
        self._second_writers = SecondWriters(context.api, context.children)

    async def close(self) -> None:
        """Compute nothing more."""
        await self._curves.close()

    def observe(self) -> None:
        """After a scrape round: remember each pool's demand and wake its reconciler."""
        snapshot, now = self._c.cluster.snapshot(), self._c.clock.now_ms()
        routers, reports = routers_of(snapshot, self._c.feed.platform), self._c.scraper.reports
        self._telling.forget()
        by_pool, heard = counting(routers, reports), self._heard
        self._heard = frozenset(one.router for one in routers if one.router in reports)
        for key, pool in snapshot.pools.items():
            book = self._c.books.pool(key, now)
            load = pool_load(key, running(snapshot, pool).slots, self._routers(snapshot, key), reports, now)
            starts = [replicas.cold_start_ms(taken) for taken in book.starts.measured.values()]
            window = replicas.window_ms(max(starts, default=replicas.DEFAULT_COLD_START_MS))
            book.memory = replicas.remember(book.memory, load, now, window)
            book.seen = look(book.seen, key, by_pool.get(key, ()), reports, now, heard)
            self._c.queue.add(Key(MODEL_POOLS.kind, pool.namespace, pool.name))

    async def __call__(self, key: Key) -> None:
        """Bring one pool to what its spec says."""
        # 1. Gather.
        snapshot = self._c.cluster.snapshot()
        raw, pool = snapshot.raw.get(key), snapshot.pools.get(f"{key.namespace}/{key.name}")
        if raw is None or pool is None or pool.metadata.deletion_timestamp:
            self._forget(key)
            return
        facts = self._gather(snapshot, raw, pool)
        facts = replace(facts, pods=await self._last_words.heard(facts.pods))
        weighed = await self._checkpoints.candidates(pool, facts.deployments, snapshot.nodes.values())
        # 2. Decide.
        measured_now = self._measure(facts)
        card = await self._card(facts, measured_now)
        ours = await self._ours(facts)
        options = self._options(facts, ours or {})
        decision = self._decide(facts, options)
        decision = decision if ours is not None else standing(decision, options)
        fit = judge(weighed)
        problems = (*validate_pool(pool, self._c.settings.engine_image), *fit.problems)
        accepted = not errors(problems)
        revisions = await self._rollouts.decide(facts, self._c.scraper.reports, accepted=accepted)
        plans = self._rollouts.plans(facts, revisions.decision)
        # 3. Act. What is not accepted keeps running as it was, and is still scaled.
        await mark_victims(self._c.api, settled_pods(facts), decision.counts, self._c.scraper.reports)
        replaced = await replace_reclaimed(self._c.api, reclaimed(facts.pods, snapshot.nodes))
        counts = {name: count for name, count in decision.counts if ours is not None or name not in facts.deployments}
        refused = await write(self._c.children, facts, counts, plans, accepted=accepted)
        if refused or not (accepted or facts.deployments):
            decision = standing(decision, options)
        # 4. Report.
        outcome = Outcome(
            problems=(*problems, *revisions.problems, *refused),
            decision=decision,
            options=options,
            revisions=revisions.decision,
            plans=plans,
            card=card,
            measured=measured_now,
            fit=fit.note,
            replaced=replaced,
        )
        await self._report(facts, outcome)

    async def _ours(self, facts: Facts) -> dict[str, int] | None:
        """The replicas that Fairlead wrote, by Deployment; ``None`` where it leaves the number to a second writer."""
        book, generation = self._c.books.pool(facts.pool.key, facts.now_ms), facts.pool.metadata.generation
        return await self._second_writers.look(book, facts.deployments.values(), generation, facts.now_ms)

    def _forget(self, key: Key) -> None:
        self._c.books.close_pool(f"{key.namespace}/{key.name}")
        self._c.children.forget(key.namespace, key.name)
        self._rollouts.forget(f"{key.namespace}/{key.name}")
        self._c.statuses.forget(key)
        self._c.telemetry.forget_pool(f"{key.namespace}/{key.name}")

    def _gather(self, snapshot: Snapshot, raw: Object, pool: ModelPool) -> Facts:
        now, prices = self._c.clock.now_ms(), self._c.prices.read()
        pods = on_nodes(live_pods(snapshot.pods, pool.key), snapshot.nodes)
        book = self._c.books.pool(pool.key, now)
        started = book.starts.note(starts(snapshot, pods), book.opened_ms)
        reports = self._c.scraper.reports
        nodes = list(snapshot.nodes.values())
        hardware = [hardware_of(pool.spec, variant) for variant in pool.spec.variants]
        slots = running(snapshot, pool).slots
        return Facts(
            pool=pool,
            raw=raw,
            snapshot=snapshot,
            pods=pods,
            deployments=self._deployments(snapshot, pool),
            prices=prices,
            variant_prices={
                one.name: price_variant(prices, one, [pod for pod in pods if pod.variant == one.name], nodes, now)
                for one in hardware
            },
            slots=slots,
            load=pool_load(pool.key, slots, self._routers(snapshot, pool.key), reports, now),
            reported_context=reported_context(pods, reports) or measured(snapshot, pool, CONTEXT),
            cold_starts={
                one.name: cold_start(snapshot, pool, one.name, book.starts.measured.get(one.name, ()))
                for one in pool.spec.variants
            },
            started=started,
            now_ms=now,
            concurrency=concurrency_of(book.law, pool) or concurrency(snapshot, pool),
        )

    def _routers(self, snapshot: Snapshot, pool: str) -> tuple[Router, ...]:
        """Those that have something to say of the pool."""
        return self._telling.of(snapshot, self._c.scraper.reports, pool)

    def _deployments(self, snapshot: Snapshot, pool: ModelPool) -> dict[str, Object]:
        found = {
            variant.name: self._c.children.live(
                snapshot, DEPLOYMENTS.kind, pool.namespace, deployment_name(pool.name, variant.name)
            )
            for variant in pool.spec.variants
        }
        return {name: body for name, body in found.items() if body is not None}

    def _options(self, facts: Facts, ours: Mapping[str, int]) -> tuple[VariantOption, ...]:
        """The variants to choose from; those whose pods have found no node for a while only as far as they run."""
        book, spec = self._c.books.pool(facts.pool.key, facts.now_ms), facts.pool.spec
        startup_ms = spec.rollout.startup_timeout.ms
        book.full = without_room(book.full, facts.pods, facts.snapshot.created_ms, startup_ms, facts.now_ms)
        options = variant_options(spec, _wanted(facts.deployments, ours), _replica_prices(facts))
        return placeable(options, book.full)

    def _decide(self, facts: Facts, options: tuple[VariantOption, ...]) -> Decision:
        book, spending = self._c.books.pool(facts.pool.key, facts.now_ms), self._spending(facts, options)
        decision = replicas.decide(
            replicas.Inputs(
                bounds=replicas.bounds_of(facts.pool.spec),
                options=options,
                slots=facts.slots,
                load=facts.load,
                memory=book.memory,
                cold_start_ms=facts.cold_start_ms,
                now_ms=facts.now_ms,
                ready=sum(pod.ready and not pod.terminating for pod in facts.pods),
                latency=self._latency(facts, options, spending),
                spending=spending,
            )
        )
        book.cost_per_hour = decision.cost_per_hour_after or 0
        return decision

    def _latency(self, facts: Facts, options: tuple[VariantOption, ...], spending: Spending) -> Wish | None:
        """What the objectives of latency ask for, if there are any and enough is known."""
        key, snapshot = facts.pool.key, facts.snapshot
        book = self._c.books.pool(key, facts.now_ms)
        scene = Scene(
            pool=facts.pool,
            pods=facts.pods,
            nodes=snapshot.nodes,
            created_ms=snapshot.created_ms,
            reports=self._c.scraper.reports,
            load=facts.load,
            seen=book.seen,
            bounds=replicas.bounds_of(facts.pool.spec),
            options=options,
            cold_starts=facts.cold_starts,
            spending=spending,
            now_ms=facts.now_ms,
            past=book.past,
        )
        wish, figures = wish_of(book.law, scene, self._curves), figures_of(book.law, facts.pool)
        if figures is None:
            self._c.telemetry.scaling.pop(key, None)
        else:
            self._c.telemetry.scaling[key] = figures
        self._c.telemetry.drafting[key] = judgements_of(book.law, scene)
        return wish

    def _spending(self, facts: Facts, options: tuple[VariantOption, ...]) -> Spending:
        """What may be paid for the pool's replicas; how much is asked is not known in the first minute."""
        book = self._c.books.pool(facts.pool.key, facts.now_ms)
        scaling, costs = facts.pool.spec.autoscaling, self._c.books.costs_per_hour()
        accounts = accounts_left(facts.pool.key, self._budgets(), self._c.books.spend, costs, facts.now_ms)
        upkeep = upkeep_of(options, facts.pods, facts.cold_start_ms, facts.pool.spec.rollout.drain_timeout.ms)
        limit = scaling.max_cost_per_thousand_requests if scaling is not None else None
        per_hour = requests_per_hour(book.seen.recent)
        return Spending(
            per_thousand=None if limit is None or per_hour is None else limit.nano,
            per_hour=spend_cap(accounts),
            requests_per_hour=per_hour or 0,
            pays_a_replica=pays_a_replica(accounts, upkeep),
        )

    def _budgets(self) -> tuple[LedgerBudget, ...]:
        """All budgets, put together once for each change of the cluster."""
        picture = self._c.compiler.refresh()
        if self._told is None or self._told[0] is not picture:
            self._told = (picture, wanted_budgets(picture))
        return self._told[1]

    def _measure(self, facts: Facts) -> Measure:
        """Add what is seen now to what is known of the pool's capacity."""
        if facts.pool.metadata.namespace not in self._c.feed.platform:
            return Measure(None, SEEDS_HOLD)
        book, key = self._c.books.pool(facts.pool.key, facts.now_ms), facts.pool.key
        routers = self._routers(facts.snapshot, key)
        # While pods are being replaced, some run with other settings.
        settled = not any(rolling(body) for body in facts.deployments.values())
        book.evidence = note(
            book.evidence,
            Look(
                at_ms=facts.now_ms,
                key=settings_key(facts.pool.spec, facts.prices),
                busy=settled and is_busy(key, facts.slots, routers, facts.load),
                counters=counters_of(key, routers, self._c.scraper.reports),
                cost_per_hour=_engines_cost(facts, routers),
                base=_rates(facts),
            ),
        )
        return measure(book.evidence)

    async def _card(self, facts: Facts, measured_now: Measure) -> PoolCard | None:
        """The rate card in force. A new version counts only after the ledger has it: charges name it for ever.

        When the ledger's answer is lost it may have the version or not: then it is asked before the next one is told.
        """
        books, key = self._c.books, facts.pool.key
        last = books.cards.get(key) if books.cards_known else card_in_force(facts.pool)
        card = wanted_card(facts, last, measured_now, books.pool(key, facts.now_ms).evidence.key)
        if card is None or card == last:
            return card
        if not books.cards_known:
            return last
        try:
            await self._c.ledger.put_cards(PutCards(cards=(card_row(key, card),)))
        except LedgerError:
            books.cards_known = False
            return last
        books.cards[key] = card
        return card

    async def _report(self, facts: Facts, outcome: "Outcome") -> None:
        """Status and Events, and the counter of decisions."""
        raw, old = facts.raw, self._c.statuses.present(facts.raw)
        status = modelpool_status(self._view(facts, outcome), old, facts.now_ms)
        if outcome.decision.changed:
            self._c.telemetry.decisions.labels(facts.pool.key, outcome.decision.reason).inc()
        foreign = second_writer_event(self._c.books.pool(facts.pool.key, facts.now_ms), facts.now_ms)
        await publish(self._c, MODEL_POOLS, raw, status, (*foreign, *events_of(facts, outcome, old, status)))

    def _view(self, facts: Facts, outcome: "Outcome") -> PoolView:
        routers = self._routers(facts.snapshot, facts.pool.key)
        seen = told_of(facts.pool.key, routers, self._c.scraper.reports, facts.now_ms)
        book = self._c.books.pool(facts.pool.key, facts.now_ms)
        return PoolView(
            pool=facts.pool,
            problems=outcome.problems,
            decision=outcome.decision,
            load=facts.load,
            pods=facts.pods,
            prices=facts.variant_prices,
            pod_prices=_pod_prices(facts),
            card=outcome.card,
            seeded=_rates(facts) is not None,
            capacity=outcome.measured.reason,
            awaited=facts.prices.node_prices.pending,
            plans=outcome.plans,
            cold_start_ms=facts.cold_start_ms,
            cost_per_thousand=self._c.books.cost_per_thousand.get(facts.pool.key),
            ttft_ms=max((one.ttft_ms_p99 for one in seen), default=0),
            tpot_ms=max((one.tpot_ms_p99 for one in seen), default=0),
            second_writer=second_writer(book, facts),
            attainment_percent=attainment_percent(book.seen.recent),
            full=book.full,
            latency=book.law.reason,
            deployments=facts.deployments,
            revisions=outcome.revisions,
            fit=outcome.fit,
            adapters=adapter_status(facts.pool, facts.pods, self._c.scraper.reports),
            adapter_trouble=adapter_trouble(facts.pool, self._c.scraper.reports, facts.pods),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided and what came of it."""

    problems: tuple[Problem, ...]
    decision: Decision
    options: tuple[VariantOption, ...]
    revisions: rollout.Decision
    plans: Mapping[str, TemplatePlan]
    card: PoolCard | None
    measured: Measure
    fit: str = ""
    replaced: tuple[PodFact, ...] = ()
    """Pods that were deleted because their nodes are about to go."""


def events_of(facts: Facts, outcome: Outcome, old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    """Everything that is worth an Event; what was told before is dropped where Events are written."""
    change, snapshot = scaled(outcome.decision, outcome.options), facts.snapshot
    pods = {pod.uid: pod for pod in facts.pods}
    started = [replica_ready(pods[uid], took) for uid, took in facts.started.items()]
    return (
        *([change] if change is not None else []),
        *events_of_modelpool(old, new),
        *warnings_of(outcome.problems),
        *started,
        *events_of_pods(facts.pods),
        *events_of_taken(taken_pods(snapshot.pods, facts.pool.key, facts.now_ms)),
        *events_of_reclaimed(outcome.replaced, snapshot.nodes),
        *events_of_drained(drained_pods((*snapshot.pods, *snapshot.gone), facts.pool.key, facts.now_ms)),
    )


def standing(decision: Decision, options: tuple[VariantOption, ...]) -> Decision:
    """The decision when it could not be carried out: everything stays as it is."""
    counts = tuple((option.name, option.current) for option in options)
    return replace(
        decision,
        replicas=decision.current,
        counts=counts,
        cost_per_hour_after=decision.cost_per_hour_before,
        moved=False,
    )


def second_writer(book: PoolBook, facts: Facts) -> str:
    """Who keeps Fairlead from scaling the pool; empty if nobody does."""
    return f"{book.foreign.text}." if paused(book.foreign, facts.pool.metadata.generation, facts.now_ms) else ""


def second_writer_event(book: PoolBook, now_ms: int) -> tuple[Event, ...]:
    """Somebody else has written the number of replicas since the last look."""
    wrote = book.foreign.last_ms == now_ms
    return (Event("Warning", EventReason.SECOND_WRITER, book.foreign.text),) if wrote else ()


def wanted_card(facts: Facts, last: PoolCard | None, measured_now: Measure, key: str) -> PoolCard | None:
    """The card that should be in force. While OpenCost has still to be heard after a start, the last one stays."""
    rates = _rates(facts)
    if rates is None:
        return last if facts.prices.node_prices.pending else None
    basis = next_basis(last, measured_now.factors, key, facts.now_ms)
    return next_card(last, at_basis(rates, basis), source_of(basis), facts.now_ms)


def _engines_cost(facts: Facts, routers: Sequence[Router]) -> int:
    """Nano-USD an hour of the pods whose engines take requests; 0 while one of them has no price."""
    serving = {one.router for one in routers if one.pool == facts.pool.key}
    prices = [facts.variant_prices.get(pod.variant) for pod in facts.pods if pod.key in serving]
    known = [price.replica for price in prices if price is not None and price.replica is not None]
    return sum(known) if len(known) == len(prices) else 0


def _rates(facts: Facts) -> Rates | None:
    hardware = [hardware_of(facts.pool.spec, variant) for variant in facts.pool.spec.variants]
    return pool_rates(facts.prices, hardware, facts.variant_prices)


def _wanted(deployments: Mapping[str, Object], ours: Mapping[str, int]) -> dict[str, int]:
    """Replicas by variant as Fairlead wrote them; as they are where it has not written yet."""
    return {
        name: ours.get(body["metadata"]["name"], int(body["spec"].get("replicas") or 0))
        for name, body in deployments.items()
    }


def _pod_prices(facts: Facts) -> dict[str, int | None]:
    """What each pod costs an hour on the node that it runs on, as it is billed."""
    hardware = {one.name: hardware_of(facts.pool.spec, one) for one in facts.pool.spec.variants}
    nodes = facts.snapshot.nodes
    return {
        pod.key: price_on(facts.prices, hardware[pod.variant], nodes[pod.node], facts.now_ms)
        for pod in facts.pods
        if pod.variant in hardware and pod.node in nodes
    }


def _replica_prices(facts: Facts) -> dict[str, int | None]:
    return {name: price.replica for name, price in facts.variant_prices.items()}
