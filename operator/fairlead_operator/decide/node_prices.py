"""What OpenCost says that nodes cost: where to ask, how its answers are read, and how long they hold."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlsplit

from fairlead_operator.decide.facts import NodeFact

TOTAL_METRIC = "node_total_hourly_cost"
"""USD an hour of a whole node: its CPUs, memory and accelerators."""
GPU_METRIC = "node_gpu_hourly_cost"
"""USD an hour of one accelerator of a node; 0 on a node without one, and where OpenCost found no price for it."""
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
MAX_NODES = 10_000
MAX_USD_PER_HOUR = 100_000
MAX_MATCHERS = 8
MAX_MATCHER_TEXT = 253
MAX_KEEP_MINUTES = 10_080
KEEP_MINUTES = 60
MICRO = Decimal(1).scaleb(-6)
MICRO_IN_NANO = 1000
MAX_NUMBER_TEXT = 40
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class OpenCostSource:
    """Where OpenCost's metrics are read.

    ``matchers`` are labels with values. Without paths, the system's authorities verify TLS and no headers are sent.
    """

    url: str
    matchers: tuple[tuple[str, str], ...] = ()
    ca_file: str = ""
    headers_dir: str = ""
    keep_ms: int = KEEP_MINUTES * MINUTE_MS


@dataclass(frozen=True, slots=True)
class NodePrice:
    """Nano-USD an hour of a whole node and of one of its accelerators (0: it has none that OpenCost can price).

    ``since_ms`` is when the price was taken, ``seen_ms`` when OpenCost last spoke of the node.
    """

    whole: int
    accelerator: int
    since_ms: int
    seen_ms: int


@dataclass(frozen=True, slots=True)
class NodePrices:
    """OpenCost's prices as they hold now. ``state`` says for messages why a node may be without one.

    ``pending``: OpenCost has not answered since this process started, and what it said before may still hold.
    """

    nodes: Mapping[str, NodePrice] = field(default_factory=dict)
    state: str = "OpenCost is not configured"
    pending: bool = False


def parse_source(document: object) -> OpenCostSource | None:
    """``openCost`` of prices.yaml; ``None`` if it is not there.

    Raises:
        ValueError: a field has a value that cannot be used.
    """
    if document is None:
        return None
    if not isinstance(document, Mapping):
        raise ValueError("openCost must be a mapping with url")  # noqa: TRY004 collected with the list's other problems
    return OpenCostSource(
        url=_url(document.get("url")),
        matchers=_matchers(document.get("matchers") or {}),
        ca_file=str(document.get("caFile") or ""),
        headers_dir=str(document.get("headersDir") or ""),
        keep_ms=_keep_minutes(document.get("keepMinutes", KEEP_MINUTES)) * MINUTE_MS,
    )


def query(metric: str, source: OpenCostSource) -> str:
    """The PromQL of a metric by node. A node told twice, as around a restart of OpenCost, counts with the dearer."""
    # A PromQL string has the escapes of a JSON string.
    matchers = ",".join(f"{label}={json.dumps(value, ensure_ascii=False)}" for label, value in source.matchers)
    return f"max by (node) ({metric}{{{matchers}}})"


def read_usd(samples: Any) -> dict[str, int]:
    """Nano-USD by node of an instant vector, in whole micro-USD; what is no price (negative, NaN, endless) is left out.

    Raises:
        ValueError: it is no instant vector, or has too many nodes.
    """
    if not isinstance(samples, list) or len(samples) > MAX_NODES:
        raise ValueError(f"the answer is no list of at most {MAX_NODES} samples")
    found: dict[str, int] = {}
    for sample in samples:
        try:
            node, text = sample["metric"]["node"], sample["value"][1]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{str(sample)[:80]} is no sample with a label node") from None
        nano = _nano(text)
        if nano is not None and isinstance(node, str):
            found[node] = nano
    return found


def merge(
    old: Mapping[str, NodePrice], whole: Mapping[str, int], accelerator: Mapping[str, int], now_ms: int
) -> dict[str, NodePrice]:
    """Old prices with an answer taken in. A node's price changes at most once an hour, so that rate cards do too.

    A node without a cost, or whose accelerators lost theirs, is not believed: what it had before grows old.
    """
    merged = dict(old)
    for node, nano in whole.items():
        before, each = old.get(node), accelerator.get(node, 0)
        if nano <= 0 or (before is not None and before.accelerator and not each):
            continue
        if before is not None and now_ms - before.since_ms < HOUR_MS:
            merged[node] = replace(before, seen_ms=now_ms)
        else:
            merged[node] = NodePrice(nano, each, now_ms, now_ms)
    return merged


def still_holding(nodes: Mapping[str, NodePrice], keep_ms: int, now_ms: int) -> dict[str, NodePrice]:
    """The prices of nodes that OpenCost spoke of within ``keep_ms``; of too many, those it spoke of last."""
    kept = [(name, one) for name, one in nodes.items() if now_ms - one.seen_ms < keep_ms]
    return dict(sorted(kept, key=lambda pair: -pair[1].seen_ms)[:MAX_NODES])


def share_of_node(price: NodePrice, node: NodeFact, resource_name: str, cpu: str) -> tuple[int, str] | None:
    """What a thousandth of ``resource_name`` is cut from: nano-USD of the whole node, and how much of it there is.

    An accelerator bears the whole node, its CPUs and memory too, since the node is there for it. ``None`` where the
    node cannot be shared out so: its accelerators have no price, or it allocates several kinds of the same vendor
    (such as MIG profiles); and for CPUs, where it has accelerators.
    """
    amount = node.resources.get(resource_name)
    accelerated = price.accelerator > 0
    if amount is None or price.whole <= 0 or accelerated == (resource_name == cpu):
        return None
    vendor = resource_name.partition("/")[0]
    if any(name != resource_name and name.startswith(f"{vendor}/") for name in node.resources):
        return None
    return price.whole, amount


def _nano(text: object) -> int | None:
    try:
        usd = Decimal(str(text)[:MAX_NUMBER_TEXT])
    except InvalidOperation:
        return None
    if not usd.is_finite() or not 0 <= usd <= MAX_USD_PER_HOUR:
        return None
    return int(usd.quantize(MICRO).scaleb(6)) * MICRO_IN_NANO if usd >= MICRO else 0


def _url(value: object) -> str:
    text = str(value or "")
    if not _usable(text):
        raise ValueError(f"openCost.url is {text[:80]!r}: write Prometheus' address, such as http://prometheus.m:9090")
    return text.rstrip("/")


def _usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return known and not ("@" in parts.netloc or parts.query or parts.fragment)


def _matchers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or len(value) > MAX_MATCHERS:
        raise ValueError(f"openCost.matchers must map at most {MAX_MATCHERS} labels to values")
    pairs = tuple(sorted((str(label), str(text)) for label, text in value.items()))
    wrong = _wrong_label(pairs)
    if wrong is not None:
        raise ValueError(f"openCost.matchers has {wrong[:80]!r}: labels are letters, digits and _; values are short")
    return pairs


def _wrong_label(pairs: Iterable[tuple[str, str]]) -> str | None:
    return next((label for label, text in pairs if not _LABEL.fullmatch(label) or len(text) > MAX_MATCHER_TEXT), None)


def _keep_minutes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_KEEP_MINUTES:
        raise ValueError(f"openCost.keepMinutes is {value!r}: write a whole number from 1 to {MAX_KEEP_MINUTES}")
    return value
