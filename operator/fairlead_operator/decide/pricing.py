"""What hardware costs: the dated price list, then OpenCost, and which of their prices holds for a variant."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import yaml

from fairlead_operator.api.v1alpha1 import ModelPoolSpec, Variant
from fairlead_operator.decide.facts import ENGINE, NodeFact, PodFact
from fairlead_operator.decide.node_prices import NodePrices, OpenCostSource, parse_source, share_of_node
from fairlead_operator.decide.problems import Problem
from fairlead_operator.units import format_usd, parse_usd

MAX_ENTRIES = 1000
MAX_SEEDS = 200
MAX_TOKENS_PER_SECOND = 100_000_000
DEFAULT_SEED = "default"
CPU = "cpu"
MILLI = 1000
MAX_SOURCE = 253
_QUANTITY = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,9})?)(m?)", re.ASCII)
"""Exponents are left out: nobody writes CPUs so, and 1e99999999 takes minutes to become an integer."""
PRICES_REASON = "PriceListEntry"


@dataclass(frozen=True, slots=True)
class AcceleratorPrice:
    """One dated entry: nano-USD for an accelerator-hour on the nodes that carry all of ``node_selector``."""

    resource_name: str
    node_selector: frozenset[tuple[str, str]]
    per_hour: int
    effective_from: date
    source: str


@dataclass(frozen=True, slots=True)
class Seeds:
    """Tokens that one accelerator processes in a second, assumed until a capacity is measured."""

    prompt: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True)
class PriceList:
    """The entries that could be read, and what is wrong with the others; beside them what OpenCost says of nodes."""

    accelerators: tuple[AcceleratorPrice, ...] = ()
    seeds: Mapping[str, Seeds] | None = None
    problems: tuple[Problem, ...] = ()
    source: OpenCostSource | None = None
    node_prices: NodePrices = field(default_factory=NodePrices)

    @property
    def newest(self) -> date | None:
        """Date of the newest entry, for messages."""
        return max((entry.effective_from for entry in self.accelerators), default=None)


@dataclass(frozen=True, slots=True)
class VariantHardware:
    """What one replica of a variant occupies: thousandths of ``resource_name`` on nodes with ``node_selector``."""

    name: str
    resource_name: str
    node_selector: Mapping[str, str]
    milli_units: int


@dataclass(frozen=True, slots=True)
class _HourPrice:
    """Nano-USD for an accelerator-hour, and who says so."""

    per_hour: int
    source: str


@dataclass(frozen=True, slots=True)
class VariantPrice:
    """Price of a variant in nano-USD an hour; ``problem`` says what is missing when it is not known."""

    name: str
    accelerator: int | None
    replica: int | None
    source: str = ""
    problem: str = ""


def parse_prices(text: str) -> PriceList:
    """The price list of ``prices.yaml``. What cannot be read is named and left out; the rest holds."""
    try:
        document = yaml.safe_load(text) if text.strip() else {}
    except (yaml.YAMLError, ValueError) as problem:  # ValueError: a date that no calendar has
        return PriceList(problems=(_problem("", f"The price list is not YAML: {_flat(problem)}"),))
    if not isinstance(document, Mapping):
        return PriceList(problems=(_problem("", "The price list must be a mapping with accelerators and rateCard"),))
    entries, entry_problems = _read_each(document.get("accelerators") or (), "accelerators", _entry)
    seeds, seed_problems = _read_seeds(document)
    source, source_problems = _read_source(document)
    return PriceList(entries, seeds, (*entry_problems, *_twice(entries), *seed_problems, *source_problems), source)


def hardware_of(spec: ModelPoolSpec, variant: Variant) -> VariantHardware:
    """What one replica of the variant occupies; for ``cpu``, the CPU request of the engine in podTemplate."""
    resource = variant.accelerator.resource_name
    units = _engine_cpu_milli(spec) if resource == CPU else variant.parallelism.accelerators * MILLI
    return VariantHardware(variant.name, resource, dict(variant.node_selector), units)


def price_variant(
    prices: PriceList, hardware: VariantHardware, pods: Sequence[PodFact], nodes: Sequence[NodeFact], now_ms: int
) -> VariantPrice:
    """What the variant costs: by its pods' nodes; without pods, the dearest node that its nodeSelector matches.

    A node costs what the price list says, else what OpenCost says. With no such node either, the entry holds whose
    nodeSelector is the variant's own.
    """
    today, by_name = _day(now_ms), {node.name: node for node in nodes}
    used = [by_name[pod.node] for pod in pods if pod.node in by_name]
    if used:
        return _of_nodes(prices, hardware, used, today, every=True)
    matching = [node for node in nodes if _could_run(hardware, node)]
    if matching:
        return _of_nodes(prices, hardware, matching, today, every=False)
    return _of_selector(prices, hardware, today)


def price_on(prices: PriceList, hardware: VariantHardware, node: NodeFact, now_ms: int) -> int | None:
    """Nano-USD an hour of one replica on this node; ``None`` where neither the price list nor OpenCost has it."""
    known = _of_node(prices, hardware, node, _day(now_ms))
    return None if known is None else replica_price(known.per_hour, hardware)


def replica_price(per_hour: int, hardware: VariantHardware) -> int:
    """Nano-USD of a replica-hour from that of an accelerator-hour, half to even."""
    return half_even(per_hour * hardware.milli_units, MILLI)


def match_entry(
    prices: PriceList, resource_name: str, labels: Mapping[str, str], today: date
) -> AcceleratorPrice | None:
    """The entry for these labels: the most specific, of those the newest in force, of those the dearest."""
    carried = frozenset(labels.items())
    fits = [one for one in _in_force(prices, resource_name, today) if one.node_selector <= carried]
    return max(fits, key=lambda one: (len(one.node_selector), one.effective_from, one.per_hour), default=None)


def seeds_for(prices: PriceList, hardware: VariantHardware) -> Seeds | None:
    """The seeds that are named after a value of the variant's nodeSelector or its resource; else the default's."""
    named = prices.seeds or {}
    keys = [*sorted(hardware.node_selector.values()), hardware.resource_name, DEFAULT_SEED]
    return next((named[key] for key in keys if key in named), None)


def half_even(number: int, divisor: int) -> int:
    """Integer division, rounded half to even."""
    quotient, rest = divmod(number, divisor)
    return quotient + (2 * rest > divisor or (2 * rest == divisor and quotient % 2 == 1))


def parse_cpu_milli(text: object) -> int | None:
    """Thousandths of a CPU of a Kubernetes quantity such as ``2``, ``1.5`` or ``500m``; ``None`` if it is none."""
    found = _QUANTITY.fullmatch(str(text).strip())
    if found is None:
        return None
    number, milli = found.groups()
    return int(Decimal(number) * (1 if milli else MILLI)) or None


def _in_force(prices: PriceList, resource_name: str, today: date) -> Iterable[AcceleratorPrice]:
    return (one for one in prices.accelerators if one.resource_name == resource_name and one.effective_from <= today)


def _could_run(hardware: VariantHardware, node: NodeFact) -> bool:
    selected = all(node.labels.get(key) == value for key, value in hardware.node_selector.items())
    return selected and hardware.resource_name in node.resources


def _of_nodes(
    prices: PriceList, hardware: VariantHardware, nodes: Sequence[NodeFact], today: date, *, every: bool
) -> VariantPrice:
    """``every``: replicas run on all of these nodes, so one without a price leaves the variant without one."""
    found = {node.name: _of_node(prices, hardware, node, today) for node in nodes}
    priced = [known for known in found.values() if known is not None]
    bare = next((node for node in nodes if found[node.name] is None), None)
    if not priced or (every and bare is not None):
        return _unknown(prices, hardware, f"node {bare.name}" if bare else "its nodes")
    return _known(hardware, max(priced, key=lambda one: (one.per_hour, one.source)))


def _of_node(prices: PriceList, hardware: VariantHardware, node: NodeFact, today: date) -> _HourPrice | None:
    entry = match_entry(prices, hardware.resource_name, node.labels, today)
    return _of_open_cost(prices, hardware, node) if entry is None else _HourPrice(entry.per_hour, entry.source)


def _of_open_cost(prices: PriceList, hardware: VariantHardware, node: NodeFact) -> _HourPrice | None:
    price = prices.node_prices.nodes.get(node.name)
    share = None if price is None else share_of_node(price, node, hardware.resource_name, CPU)
    milli = None if share is None else parse_cpu_milli(share[1])
    if share is None or milli is None:
        return None
    text = f"OpenCost: {format_usd(share[0])} USD an hour for node {node.name} / {share[1]} {hardware.resource_name}"
    return _HourPrice(half_even(share[0] * MILLI, milli), text[:MAX_SOURCE])


def _of_selector(prices: PriceList, hardware: VariantHardware, today: date) -> VariantPrice:
    wanted = frozenset(hardware.node_selector.items())
    equal = [one for one in _in_force(prices, hardware.resource_name, today) if one.node_selector == wanted]
    entry = max(equal, key=lambda one: (one.effective_from, one.per_hour), default=None)
    if entry is None:
        return _unknown(prices, hardware, _selector_text(hardware))
    return _known(hardware, _HourPrice(entry.per_hour, entry.source))


def _known(hardware: VariantHardware, price: _HourPrice) -> VariantPrice:
    return VariantPrice(hardware.name, price.per_hour, replica_price(price.per_hour, hardware), price.source)


def _unknown(prices: PriceList, hardware: VariantHardware, what: str) -> VariantPrice:
    newest = f", newest {prices.newest}" if prices.newest else ""
    listed = f"no entry of the price list ({len(prices.accelerators)} entries{newest})"
    asked = f"matches {hardware.resource_name} on {what}, {prices.node_prices.state}"
    text = f"Variant {hardware.name} has no price: {listed} {asked}."
    return VariantPrice(hardware.name, None, None, "", text)


def _selector_text(hardware: VariantHardware) -> str:
    labels = ",".join(f"{key}={value}" for key, value in sorted(hardware.node_selector.items()))
    return labels or "nodes without a nodeSelector"


def _day(now_ms: int) -> date:
    return datetime.fromtimestamp(now_ms // 1000, UTC).date()


def _engine_cpu_milli(spec: ModelPoolSpec) -> int:
    pod = _mapping(spec.pod_template.spec if spec.pod_template else None)
    containers = pod.get("containers")
    listed = [_mapping(one) for one in containers] if isinstance(containers, list) else []
    engine = next((one for one in listed if one.get("name") == ENGINE), {})
    resources = _mapping(engine.get("resources"))
    asked = [_mapping(resources.get(kind)).get(CPU) for kind in ("requests", "limits")]
    return next((milli for one in asked if one is not None and (milli := parse_cpu_milli(one))), MILLI)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _problem(where: str, message: str) -> Problem:
    return Problem(PRICES_REASON, message, where)


def _flat(problem: Exception) -> str:
    return " ".join(str(problem).split())


def _read_each(items: Any, where: str, read: Any) -> tuple[tuple[Any, ...], list[Problem]]:
    if not isinstance(items, list | tuple):
        return (), [_problem(where, f"{where} must be a list")]
    values, problems = [], []
    for index, item in enumerate(items[:MAX_ENTRIES]):
        try:
            values.append(read(item))
        except ValueError as problem:
            problems.append(_problem(f"{where}[{index}]", f"{where}[{index}]: {problem}. The entry is left out."))
    if len(items) > MAX_ENTRIES:
        problems.append(_problem(where, f"{where} has {len(items)} entries; those after {MAX_ENTRIES} are left out."))
    return tuple(values), problems


def _entry(item: Any) -> AcceleratorPrice:
    if not isinstance(item, Mapping):
        raise ValueError(f"{item!r} is not a mapping")  # noqa: TRY004 collected with the other problems of the list
    selector = item.get("nodeSelector") or {}
    if not isinstance(selector, Mapping):
        raise ValueError("nodeSelector must map labels to values")  # noqa: TRY004 collected as above
    return AcceleratorPrice(
        resource_name=str(item.get("resourceName") or "nvidia.com/gpu"),
        node_selector=frozenset((str(key), str(value)) for key, value in selector.items()),
        per_hour=_amount(item.get("perHour")),
        effective_from=_date(item.get("effectiveFrom")),
        source=str(item.get("source") or "prices.accelerators")[:MAX_SOURCE],
    )


def _amount(value: Any) -> int:
    if isinstance(value, bool | float) or not isinstance(value, int | str):
        raise ValueError(f"perHour is {value!r}: write a quoted decimal such as '1.55'")  # noqa: TRY004 collected with the other problems
    return parse_usd(str(value))


def _date(value: Any) -> date:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"effectiveFrom is {value!r}: write a date such as 2026-10-01") from None


def _twice(entries: Iterable[AcceleratorPrice]) -> list[Problem]:
    seen: set[tuple[Any, ...]] = set()
    problems = []
    for entry in entries:
        key = (entry.resource_name, entry.node_selector, entry.effective_from)
        if key in seen:
            labels = ",".join(f"{name}={value}" for name, value in sorted(entry.node_selector)) or "no labels"
            text = f"accelerators prices {entry.resource_name} with {labels} from {entry.effective_from} twice"
            problems.append(_problem("accelerators", f"{text}; the dearer one holds."))
        seen.add(key)
    return problems


def _read_source(document: Mapping[Any, Any]) -> tuple[OpenCostSource | None, list[Problem]]:
    try:
        return parse_source(document.get("openCost")), []
    except ValueError as problem:
        return None, [_problem("openCost", f"{problem}. OpenCost is not asked.")]


def _read_seeds(document: Mapping[Any, Any]) -> tuple[Mapping[str, Seeds], list[Problem]]:
    card = document.get("rateCard") or {}
    listed = card.get("seeds") or {} if isinstance(card, Mapping) else None
    if not isinstance(listed, Mapping):
        return {}, [_problem("rateCard.seeds", "rateCard.seeds must map accelerators to tokens per second")]
    seeds, problems = {}, []
    for name, item in sorted(listed.items(), key=lambda pair: str(pair[0]))[:MAX_SEEDS]:
        try:
            seeds[str(name)] = _seed(item)
        except ValueError as problem:
            where = f"rateCard.seeds.{name}"
            problems.append(_problem(where, f"{where}: {problem}. The entry is left out."))
    return seeds, problems


def _seed(item: Any) -> Seeds:
    if not isinstance(item, Mapping):
        raise ValueError(f"{item!r} is not a mapping")  # noqa: TRY004 collected with the other problems of the list
    fields = ("promptTokensPerSecond", "cachedTokensPerSecond", "outputTokensPerSecond")
    return Seeds(*(_speed(name, item.get(name)) for name in fields))


def _speed(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_TOKENS_PER_SECOND:
        text = f"{name} is {value!r}: write a whole number from 1 to {MAX_TOKENS_PER_SECOND}"
        raise ValueError(text)
    return value
