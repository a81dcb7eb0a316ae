"""What the operator tells: budgets, rate cards, costs. And the ledger's own few facts in ``meta``."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, select

from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.escrow import MAX_AMOUNT, Refusal
from fairlead_operator.ledger.places import decode_budget
from fairlead_operator.ledger.schema import rate_card
from fairlead_operator.ledger.windows import UnknownZoneError, zone
from fairlead_router.contract import BUCKET_MS, LedgerBudget, PutBudgets, PutCards, PutCosts, TemporaryIncrease

MAX_ROWS = 10_000
Version = tuple[int, int]


def budgets_version(connection: Connection) -> Version:
    """The version of the budgets in force."""
    rows = sql.read(connection, sql.GET_META, k="budgets_version")
    return msgspec.json.decode(rows[0].v, type=Version) if rows else (0, 0)


def epoch(connection: Connection, new: Callable[[], str]) -> str:
    """The name of this database's history, given at its first start."""
    if not sql.read(connection, sql.GET_META, k="epoch"):
        sql.write(connection, sql.ADD_META, [{"k": "epoch", "v": new()}])
    return str(sql.read(connection, sql.GET_META, k="epoch")[0].v)


def costs_until(connection: Connection) -> int:
    """The time up to which the operator has counted costs."""
    rows = sql.read(connection, sql.GET_META, k="costs_until")
    return int(rows[0].v) if rows else 0


def budgets_fault(message: PutBudgets) -> Refusal | None:
    """What is wrong with a list of budgets in itself."""
    if len(message.budgets) > MAX_ROWS:
        return Refusal(413, reason=f"{len(message.budgets)} budgets, {MAX_ROWS} are allowed")
    for item in message.budgets:
        if fault := _budget_fault(item):
            return Refusal(422, reason=f"budget {item.namespace}/{item.name}: {fault}; nothing was changed")
    return None


def _budget_fault(item: LedgerBudget) -> str:
    try:
        zone(item.time_zone)
    except UnknownZoneError as error:
        return str(error)
    increase = item.temporary_increase.amount if item.temporary_increase else 0
    if min(item.limit, increase) < 0 or item.limit + increase > MAX_AMOUNT:
        return f"limit {item.limit} and increase {increase} must be at least 0 and at most {MAX_AMOUNT} together"
    return ""


def put_budgets(connection: Connection, message: PutBudgets, now: int, who: str = "operator") -> Refusal | None:
    """Replace all budgets; what is absent is deleted. An older version (a demoted operator) is refused."""
    sql.exclusive(connection, "budgets")
    current = budgets_version(connection)
    if message.version < current:
        return Refusal(409, reason=f"version {list(message.version)} is older than {list(current)}, which is in force")
    before = [decode_budget(row.spec) for row in sql.read(connection, sql.ALL_BUDGETS)]
    sql.run(connection, sql.DELETE_BUDGETS)
    rows = []
    for item in message.budgets:
        spec = msgspec.json.encode(item).decode()
        base = {"namespace": item.namespace, "name": item.name, "uid": item.uid, "spec": spec, "deleted": 0}
        rows.append(base | {"series_id": _series(connection, item, now)})
    sql.write(connection, sql.PUT_BUDGET, rows)
    sql.write(connection, sql.PUT_META, [{"k": "budgets_version", "v": msgspec.json.encode(message.version).decode()}])
    record(connection, who, edits(before, message.budgets, now), now)
    return None


Note = tuple[str, str]
"""What happened, and to what."""


def record(connection: Connection, who: str, notes: Iterable[Note], now: int) -> None:
    """Write down what changes how much may be spent."""
    rows = ({"at_ms": now, "who": who, "what": what, "detail": detail} for what, detail in notes)
    sql.write(connection, sql.ADD_AUDIT, rows)


def edits(before: Iterable[LedgerBudget], after: Iterable[LedgerBudget], now: int) -> list[Note]:
    """What of an edit matters for how much may be spent: deletion, other counters, temporary increases."""
    new = {(item.namespace, item.name): item for item in after}
    old = {(item.namespace, item.name): item for item in before}
    notes = []
    for place, item in sorted(old.items()):
        if place not in new:
            notes.append(("BudgetDeleted", _name(item)))
        elif _counters(item) != _counters(new[place]):
            counters = f"{_counters(item)} became {_counters(new[place])}"
            notes.append(("CountingRestarted", f"{_name(item)}: {counters}; the old counters stay as they are"))
    for place, item in sorted(new.items()):
        notes += _increases(item, old[place].temporary_increase if place in old else None, now)
    return notes


def _increases(item: LedgerBudget, before: TemporaryIncrease | None, now: int) -> list[Note]:
    after = item.temporary_increase
    if after == before:
        return []
    notes = []
    if before is not None and before.until > now:
        notes.append(("TemporaryIncreaseWithdrawn", _increase(item, before)))
    if after is not None and after.until > now:
        notes.append(("TemporaryIncreaseBegan", _increase(item, after)))
    return notes


def ended_increases(connection: Connection, since: int, now: int) -> list[Note]:
    """The temporary increases that ended after one time and up to another."""
    budgets = (decode_budget(row.spec) for row in sql.read(connection, sql.ALL_BUDGETS))
    found = ((item, item.temporary_increase) for item in budgets)
    return [
        ("TemporaryIncreaseEnded", _increase(item, increase))
        for item, increase in found
        if increase is not None and since < increase.until <= now
    ]


def _name(item: LedgerBudget) -> str:
    return f"{item.namespace}/{item.name}"


def _counters(item: LedgerBudget) -> str:
    return f"{item.unit} per {item.per} and {item.period} in {item.time_zone}"


def _increase(item: LedgerBudget, increase: TemporaryIncrease) -> str:
    return f"{_name(item)}: {increase.amount} more until {increase.until} ms"


def _series(connection: Connection, item: LedgerBudget, now: int) -> int:
    """The counters of a budget. Not by its UID: whoever deletes and recreates a budget finds what was spent."""
    identity = {
        "namespace": item.namespace,
        "name": item.name,
        "unit": item.unit,
        "per": item.per,
        "period": item.period,
        "tz": item.time_zone,
    }
    sql.write(connection, sql.ADD_SERIES, [identity | {"created_ms": now}])
    return int(sql.read(connection, sql.SERIES, **identity)[0].id)


def put_cards(connection: Connection, message: PutCards) -> Refusal | None:
    """Add rate cards; a stored version never changes, and whoever sends it with other rates is told."""
    if len(message.cards) > MAX_ROWS:
        return Refusal(413, reason=f"{len(message.cards)} cards, {MAX_ROWS} are allowed; nothing was stored")
    sql.exclusive(connection, "cards")
    pools = {card.pool for card in message.cards}
    stored = {(row.pool, row.version): row for row in connection.execute(_cards(pools))}
    for card in message.cards:
        row = stored.get((card.pool, card.version))
        if row is not None and _rates(row) != _rates(card):
            return Refusal(
                409, reason=f"card {card.pool} v{card.version} is stored with other rates; nothing was stored"
            )
    sql.write(connection, sql.ADD_CARD, (msgspec.structs.asdict(card) for card in message.cards))
    return None


def _cards(pools: Iterable[str]) -> Select[Any]:
    return select(rate_card).where(rate_card.c.pool.in_(sorted(pools)))


def _rates(card: Any) -> tuple[int, int, int]:
    return card.prompt_pico, card.cached_pico, card.output_pico


def put_costs(connection: Connection, message: PutCosts) -> Refusal | None:
    """Merge running totals by their maximum: repeated and late messages change nothing."""
    if len(message.costs) > MAX_ROWS:
        return Refusal(413, reason=f"{len(message.costs)} rows, {MAX_ROWS} are allowed; nothing was stored")
    for row in message.costs:
        if (
            row.bucket % BUCKET_MS
            or not 0 <= min(row.replica_ms, row.nano_usd) <= max(row.replica_ms, row.nano_usd) <= MAX_AMOUNT
        ):
            return Refusal(
                422, reason=f"{row}: buckets are quarter hours, totals 0 to {MAX_AMOUNT}; nothing was stored"
            )
    sql.exclusive(connection, "costs")
    sql.write(connection, sql.PUT_COST, (msgspec.structs.asdict(row) for row in message.costs))
    until = max(message.until, costs_until(connection))
    sql.write(connection, sql.PUT_META, [{"k": "costs_until", "v": str(until)}])
    return None
