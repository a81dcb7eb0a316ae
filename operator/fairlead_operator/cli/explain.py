"""``fairlead explain``; of a pool: why a pool has the replicas that it has, and what would change that.

It asks the API server for the pool and its Events. The figures behind the last decision are metrics of the operator
that leads: with --metrics they are shown as well, and so is what other numbers of replicas would cost and cover.
"""

import argparse
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from pydantic import ValidationError

from fairlead_operator.api.v1alpha1 import ModelPool, PoolCondition, Reason
from fairlead_operator.api.v1alpha1.common import Condition
from fairlead_operator.api.v1alpha1.modelpool import VariantStatus
from fairlead_operator.cli import explain_budget
from fairlead_operator.cli.ask import FINE, LOOK, UsageError
from fairlead_operator.cli.drafts import draft_lines, parse_drafts
from fairlead_operator.cli.key import add_cluster, carry_out, place, readable
from fairlead_operator.cli.rollout import FINISHED
from fairlead_operator.decide.speculation import Judgement
from fairlead_operator.errors import ApiError, NotFoundError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import EVENTS, MODEL_POOLS
from fairlead_operator.kube.session import login, open_session

TIMEOUT_S = 5.0
MAX_METRICS = 16 * 1024 * 1024
EVENTS_SHOWN = 5
HEAD = ("SET", "REQ/S", "$/HOUR", "$/1K", "VERDICT")
SECONDS = 3600
_SAMPLE = re.compile(r"^fairlead_pool_([a-z_]+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Figures:
    """What the operator's metrics say of one pool; rates are requests/s, ``capacity`` is of one replica by variant."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    capacity: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One set of replicas that could run. ``cost`` is USD an hour, ``None`` where a price is missing."""

    counts: Mapping[str, int]
    rate: float
    cost: float | None
    verdict: str


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", environment: Mapping[str, str]) -> None:
    """The command line of ``fairlead explain``."""
    explain = commands.add_parser("explain", help="why something is as it is, and what would change it")
    what = explain.add_subparsers(dest="what", required=True, metavar="WHAT")
    pool = what.add_parser("pool", help="why a pool has the replicas that it has", description=__doc__)
    pool.add_argument("name", help="name of the ModelPool")
    add_cluster(pool)
    metrics = environment.get("FAIRLEAD_METRICS_URL", "")
    text = "the operator's metrics, such as http://127.0.0.1:8080/metrics (default: none, the status alone)"
    pool.add_argument("--metrics", default=metrics, help=text)
    explain_budget.add_parser(what, environment)


def run(options: argparse.Namespace) -> int:
    """0 = nothing to look at, 1 = something is, 2 = the command line cannot be used, 3 = no answer."""
    return carry_out(_run(options), _refusal)


def _refusal(error: ApiError) -> str:
    return f"there is no {error.what}" if isinstance(error, NotFoundError) else str(error)


async def _run(options: argparse.Namespace) -> tuple[str, int]:
    kubeconfig, namespace = place(options)
    with readable():
        who = await login(kubeconfig, options.context)
        session = open_session(who)
    async with session:
        return await ANSWERS[options.what](Api(session, who.server), namespace, options)


async def _pool(api: Api, namespace: str, options: argparse.Namespace) -> tuple[str, int]:
    raw = await api.get(MODEL_POOLS, namespace, options.name)
    events = await _events(api, namespace, raw)
    try:
        pool = ModelPool.parse(raw)
    except ValidationError as error:
        raise UsageError(f"ModelPool {namespace}/{options.name} cannot be read: {error}") from error
    metrics = await _metrics(options.metrics) if options.metrics else None
    figures = parse_metrics(metrics, pool.key) if metrics is not None else None
    drafts = parse_drafts(metrics, pool.key) if metrics is not None else None
    return "\n".join(explain_pool(pool, events, figures, drafts)), LOOK if troubles(pool) else FINE


ANSWERS: Mapping[str, Callable[[Api, str, argparse.Namespace], Awaitable[tuple[str, int]]]] = {
    "pool": _pool,
    "budget": explain_budget.answer,
}


async def _events(api: Api, namespace: str, raw: Object) -> list[Object]:
    """What was told of the pool, newest first; nothing where Events may not be read."""
    uid = raw["metadata"].get("uid")
    try:
        found = (await api.list(EVENTS, namespace=namespace)).items
    except ApiError:
        return []
    own = [one for one in found if (one.get("regarding") or {}).get("uid") == uid]
    return sorted(own, key=lambda one: str(one.get("eventTime") or ""), reverse=True)


async def _metrics(url: str) -> str:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            return (await response.content.read(MAX_METRICS)).decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise UsageError(
            f"no metrics from {url} ({type(error).__name__}). Forward the port of the operator that leads, "
            "or leave --metrics out."
        ) from error


def parse_metrics(text: str, pool: str) -> Figures | None:
    """What an exposition says of the pool; ``None`` if it does not name it, as of an operator that does not lead."""
    numbers: dict[str, float] = {}
    capacity: dict[str, float] = {}
    for name, labels, value in _SAMPLE.findall(text):
        read = dict(_LABEL.findall(labels))
        if read.get("pool") != pool:
            continue
        try:
            number = float(value)
        except ValueError:
            continue
        if name == "capacity":
            capacity[read.get("variant", "")] = number
        elif "variant" not in read:
            numbers[name] = number
    return Figures(numbers, capacity) if {"rate", "forecast", "need", "have"} <= numbers.keys() else None


def troubles(pool: ModelPool) -> list[str]:
    """The conditions that need a look, as ``Type=Status/Reason: message``."""
    return [
        f"{one.type}={one.status}/{one.reason}: {one.message}" for one in pool.status.conditions if _needs_look(one)
    ]


def _needs_look(one: Condition) -> bool:
    if one.type == PoolCondition.READY or one.reason == Reason.REPLICAS_SET:
        return False
    if one.type == PoolCondition.PROGRESSING:
        return one.status == "False" and one.reason not in FINISHED
    return (one.status == "True") == (one.type == PoolCondition.SCALING_LIMITED)


def explain_pool(
    pool: ModelPool, events: Sequence[Object], figures: Figures | None, drafts: Mapping[str, Judgement] | None = None
) -> list[str]:
    """The lines that are printed; ``drafts`` is what is known of them by variant, ``None`` if nobody was asked."""
    return [
        _first(pool),
        *_served(pool),
        *(_figures(pool, figures) if figures is not None else ()),
        *_thresholds(pool, figures),
        *draft_lines(pool.spec, drafts),
        *_last(pool),
        *[f"  LOOK     {text}" for text in troubles(pool)],
        *[f"  event    {_event(one)}" for one in events[:EVENTS_SHOWN]],
    ]


def _first(pool: ModelPool) -> str:
    status = pool.status
    runs = set_text({one.name: one.ready_replicas for one in status.variants}) or "none"
    cost = f" for {status.cost_per_hour} USD/h" if status.cost_per_hour is not None else ", cost unknown"
    ready, wanted = status.ready_replicas or 0, status.desired_replicas or 0
    limited = next((one for one in status.conditions if one.type == PoolCondition.SCALING_LIMITED), None)
    bound = limited.reason if limited is not None and limited.status == "True" else "nothing"
    since = f" Unchanged since {status.scaling[0].time}." if status.scaling else ""
    return f"{pool.name} runs {_replicas(ready)} ({runs}){cost}. It wants {wanted}; {bound} limits it.{since}"


def _served(pool: ModelPool) -> list[str]:
    service, scaling = pool.status.service, pool.spec.autoscaling
    if service is None:
        return []
    told = [
        f"first token {service.time_to_first_token}" if service.time_to_first_token else "",
        f"{service.time_per_output_token} a token" if service.time_per_output_token else "",
        f"{service.attainment_percent}% met" if service.attainment_percent is not None else "",
        f"{service.queue_depth} waiting" if service.queue_depth is not None else "waiting unknown",
    ]
    lines = [f"  served   last {service.window or '5m'}, p99: {', '.join(one for one in told if one)}"]
    if scaling is not None:
        aims = scaling.objectives
        wanted = [
            f"first token {aims.time_to_first_token}" if aims.time_to_first_token else "",
            f"{aims.time_per_output_token} a token" if aims.time_per_output_token else "",
            f"{aims.attainment_percent}% met" if aims.timed else "",
            f"{aims.queue_depth} waiting at each replica",
        ]
        lines.append(f"  wanted   {', '.join(one for one in wanted if one)}")
    return lines


def _figures(pool: ModelPool, figures: Figures) -> list[str]:
    numbers = figures.numbers
    have = " + ".join(
        f"{one.desired_replicas} x {figures.capacity[one.name]:.2f}"
        for one in pool.status.variants
        if one.name in figures.capacity and one.desired_replicas
    )
    used = f"{100 * numbers['rate'] / numbers['have']:.0f}% used" if numbers["have"] > 0 else "nothing to use"
    waits = f"; {numbers.get('backlog', 0):.0f} waiting, {numbers.get('misses_left', 0):.0f} may still miss today"
    ahead = f"{numbers['forecast']:.2f} in {numbers.get('horizon_seconds', 0):.0f}s"
    lines = [
        f"  need     {numbers['rate']:.2f} requests/s now{waits}",
        f"  forecast {ahead}; {numbers['need']:.2f} is exceeded one time in ten",
        f"  have     {have or 'none'} = {numbers['have']:.2f}, {used}",
    ]
    rows = sets_of(pool, figures)
    cells = [HEAD, *[_cells(row, numbers["rate"]) for row in rows]]
    widths = [max(len(line[place]) for line in cells) for place in range(len(HEAD))]
    return [*lines, *[f"  {_aligned(line, widths)}" for line in cells]]


def sets_of(pool: ModelPool, figures: Figures) -> list[Row]:
    """What runs, and what one replica more or fewer of each variant would cost and cover."""
    variants = [one for one in pool.status.variants if one.name in figures.capacity]
    wanted = {one.name: one.desired_replicas for one in variants}
    others = [
        {**wanted, one.name: one.desired_replicas + change}
        for change in (1, -1)
        for one in variants
        if one.desired_replicas + change >= 0
    ]
    present = _row(wanted, variants, figures, None)
    return [present, *[_row(one, variants, figures, present) for one in others]]


def _row(counts: Mapping[str, int], variants: Sequence[VariantStatus], figures: Figures, present: Row | None) -> Row:
    rate = sum(figures.capacity[name] * count for name, count in counts.items())
    prices = {one.name: _price(one) for one in variants}
    known = [price * counts[name] for name, price in prices.items() if price is not None]
    used = [name for name, count in counts.items() if count]
    cost = sum(known) if all(prices[name] is not None for name in used) else None
    return Row(counts, rate, cost, _verdict(rate, cost, figures, present))


def _verdict(rate: float, cost: float | None, figures: Figures, present: Row | None) -> str:
    short = figures.numbers["need"] - rate
    if present is None:
        return "runs" if short <= 0 else f"runs, {short:.2f} short"
    if short > 0:
        return f"{short:.2f} short"
    if cost is None or present.cost is None:
        return "covers it, cost unknown"
    difference = cost - present.cost
    return f"{abs(difference):.2f} USD/h {'more' if difference >= 0 else 'less'}"


def _price(variant: VariantStatus) -> float | None:
    """USD of a replica-hour; ``None`` while it is not known."""
    price, count = variant.price_per_accelerator_hour, variant.accelerators_per_replica
    return None if price is None or count is None else float(price) * count


def _cells(row: Row, rate: float) -> tuple[str, ...]:
    cost = "-" if row.cost is None else f"{row.cost:.2f}"
    per_thousand = "-" if row.cost is None or rate <= 0 else f"{row.cost * 1000 / (rate * SECONDS):.3f}"
    return (set_text(row.counts) or "none", f"{row.rate:.2f}", cost, per_thousand, row.verdict)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest, last = cells
    middle = "  ".join(cell.rjust(width) for cell, width in zip(rest, widths[1:-1], strict=True))
    return f"{first.ljust(widths[0])}  {middle}  {last}"


def _thresholds(pool: ModelPool, figures: Figures | None) -> list[str]:
    """What would change the number."""
    scaling = pool.spec.autoscaling
    if scaling is None:
        return [f"  change   spec.replicas is {pool.spec.replicas}; whoever writes it decides"]
    room = [f"from {scaling.min_replicas} to {scaling.max_replicas} replicas"]
    if scaling.max_cost_per_thousand_requests is not None:
        room.append(f"{scaling.max_cost_per_thousand_requests} USD a thousand requests at most")
    if scaling.idle_ms is not None:
        room.append(f"to zero after {scaling.scale_to_zero_after or '30m'} without a request")
    lines = [f"  bounds   {', '.join(room)}"]
    if figures is not None:
        have, least = figures.numbers["have"], min(figures.capacity.values(), default=0.0)
        down = f", down when {max(0.0, have - least):.2f} covers it for longer than a start costs"
        lines.append(f"  change   up above {have:.2f} requests/s{down if have > least else ''}")
    return lines


def _last(pool: ModelPool) -> list[str]:
    lines = [
        f"  {'' if place else 'last':8} {one.time} {one.from_replicas} to {one.to_replicas} {one.reason}: {one.message}"
        for place, one in enumerate(pool.status.scaling)
    ]
    return lines or ["  last     no change is remembered"]


def _event(event: Object) -> str:
    at = str(event.get("eventTime") or "")[:19]
    return f"{at}Z {event.get('type', '')} {event.get('reason', '')}: {event.get('note', '')}"


def set_text(counts: Mapping[str, int]) -> str:
    """``3 h100 + 1 l40s``; empty for none."""
    return " + ".join(f"{count} {name}" for name, count in counts.items() if count)


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"
