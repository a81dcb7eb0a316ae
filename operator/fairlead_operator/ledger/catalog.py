"""What the operator tells: budgets, rate cards, costs. And the ledger's own few facts in ``meta``."""

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection

from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.escrow import MAX_AMOUNT, Refusal
from fairlead_operator.ledger.windows import UnknownZoneError, zone
from fairlead_router.contract import BUCKET_MS, LedgerBudget, PutBudgets, PutCards, PutCosts

MAX_ROWS = 10_000
Version = tuple[int, int]


def budgets_version(connection: Connection) -> Version:
    """The version of the budgets in force."""
    rows = sql.read(connection, sql.GET_META, k="budgets_version")
    return msgspec.json.decode(rows[0].v, type=Version) if rows else (0, 0)


def epoch(connection: Connection, new: Callable[[], str]) -> str:
    """The name of this database's history, given at its first start."""
    rows = sql.read(connection, sql.GET_META, k="epoch")
    if rows:
        return str(rows[0].v)
    sql.write(connection, sql.PUT_META, [{"k": "epoch", "v": (name := new())}])
    return name


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


def put_budgets(connection: Connection, message: PutBudgets, now: int) -> Refusal | None:
    """Replace all budgets; what is absent is deleted. An older version (a demoted operator) is refused."""
    current = budgets_version(connection)
    if message.version < current:
        return Refusal(409, reason=f"version {list(message.version)} is older than {list(current)}, which is in force")
    sql.write(connection, sql.DELETE_BUDGETS, [{}])
    rows = []
    for item in message.budgets:
        spec = msgspec.json.encode(item).decode()
        base = {"namespace": item.namespace, "name": item.name, "uid": item.uid, "spec": spec, "deleted": 0}
        rows.append(base | {"series_id": _series(connection, item, now)})
    sql.write(connection, sql.PUT_BUDGET, rows)
    sql.write(connection, sql.PUT_META, [{"k": "budgets_version", "v": msgspec.json.encode(message.version).decode()}])
    return None


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
    """Add rate cards; a stored version never changes."""
    if len(message.cards) > MAX_ROWS:
        return Refusal(413, reason=f"{len(message.cards)} cards, {MAX_ROWS} are allowed; nothing was stored")
    sql.write(connection, sql.ADD_CARD, (msgspec.structs.asdict(card) for card in message.cards))
    return None


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
    sql.write(connection, sql.PUT_COST, (msgspec.structs.asdict(row) for row in message.costs))
    until = max(message.until, costs_until(connection))
    sql.write(connection, sql.PUT_META, [{"k": "costs_until", "v": str(until)}])
    return None
