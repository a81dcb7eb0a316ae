"""The FOCUS export has the columns, types and values of the specification, and its costs are the bill to the nano."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.cli.focus import BY, COLUMNS, focus_csv, focus_rows
from fairlead_operator.ledger import usage
from fairlead_operator.ledger.catalog import put_costs
from fairlead_operator.ledger.reports import UsageQuery, usage_report
from fairlead_router.contract import CostRow, PutCosts, UsageAnswer, UsageRow
from tests.builders.ledger import NOW, SqliteLedger, line

DAY = 86_400_000
MIDNIGHT = 1_795_219_200_000
"""2026-11-21T00:00:00Z"""

TYPES = {
    "String": r"[ -~]+",
    "Decimal": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    "DateTime": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z",
    "Currency": r"[A-Z]{3}",
    "Unit": r"(Tokens|Hours)",
    "KeyValue": r"\{.*\}",
}


@dataclass(frozen=True)
class Column:
    """What the specification says of a column."""

    name: str
    level: str
    kind: str
    nulls: bool = False
    allowed: tuple[str, ...] = ()


CATEGORIES = ("Usage", "Purchase", "Tax", "Credit", "Adjustment")
FREQUENCIES = ("One-Time", "Recurring", "Usage-Based")
PRICINGS = ("Standard", "Dynamic", "Committed", "Other")

SPECIFICATION = (
    Column("BilledCost", "Mandatory", "Decimal"),
    Column("BillingAccountId", "Mandatory", "String"),
    Column("BillingAccountName", "Mandatory", "String", nulls=True),
    Column("BillingCurrency", "Mandatory", "Currency"),
    Column("BillingPeriodEnd", "Mandatory", "DateTime"),
    Column("BillingPeriodStart", "Mandatory", "DateTime"),
    Column("ChargeCategory", "Mandatory", "String", allowed=CATEGORIES),
    Column("ChargeClass", "Mandatory", "String", nulls=True, allowed=("Correction",)),
    Column("ChargeDescription", "Mandatory", "String", nulls=True),
    Column("ChargeFrequency", "Recommended", "String", allowed=FREQUENCIES),
    Column("ChargePeriodEnd", "Mandatory", "DateTime"),
    Column("ChargePeriodStart", "Mandatory", "DateTime"),
    Column("ConsumedQuantity", "Conditional", "Decimal", nulls=True),
    Column("ConsumedUnit", "Conditional", "Unit", nulls=True),
    Column("ContractedCost", "Mandatory", "Decimal"),
    Column("EffectiveCost", "Mandatory", "Decimal"),
    Column("InvoiceId", "Recommended", "String", nulls=True),
    Column("InvoiceIssuerName", "Mandatory", "String"),
    Column("ListCost", "Mandatory", "Decimal"),
    Column("PricingCategory", "Conditional", "String", nulls=True, allowed=PRICINGS),
    Column("PricingQuantity", "Mandatory", "Decimal", nulls=True),
    Column("PricingUnit", "Mandatory", "Unit", nulls=True),
    Column("ProviderName", "Mandatory", "String"),
    Column("PublisherName", "Mandatory", "String"),
    Column("ResourceId", "Conditional", "String", nulls=True),
    Column("ResourceName", "Conditional", "String", nulls=True),
    Column("ResourceType", "Conditional", "String", nulls=True),
    Column("ServiceCategory", "Mandatory", "String", allowed=("AI and Machine Learning", "Compute", "Other")),
    Column("ServiceName", "Mandatory", "String"),
    Column("ServiceSubcategory", "Recommended", "String", allowed=("Generative AI",)),
    Column("SubAccountId", "Conditional", "String", nulls=True),
    Column("SubAccountName", "Conditional", "String", nulls=True),
    Column("Tags", "Conditional", "KeyValue", nulls=True),
)
"""FOCUS 1.2, chapter Columns (https://focus.finops.org/focus-specification/v1-2/): all of the level Mandatory, and the
others that apply. Not needed, because what they are about does not exist here: availability zones and regions, capacity
reservations, commitment discounts, unit prices and SKUs of a price list, other currencies, types of accounts. Of long
lists of allowed values only those are named that this project could use."""

MANDATORY = 21
"""Columns of that level in 1.2."""


def used(cost: int, **changes: str) -> UsageRow:
    known = dict(zip(BY, ("support", "sa:web", "search", "chat", "ai/chat-8b", "h100"), strict=True)) | changes
    return UsageRow(
        group=tuple(known.values()),
        requests=3,
        prompt=2_000,
        cached=500,
        output=300,
        nano_usd=cost,
        saved=0,
        cost_p50_nano=0,
        cost_p95_nano=0,
        cost_p99_nano=0,
    )


def pool(cost: int, charged: int, name: str = "ai/chat-8b") -> CostRow:
    return CostRow(pool=name, variant="h100", bucket=0, replica_ms=7_200_000, nano_usd=cost, charged=charged)


def exported(answer: UsageAnswer) -> list[dict[str, str]]:
    return list(csv.DictReader(focus_csv(list(focus_rows(answer, "fairlead"))).splitlines()))


def day(*rows: UsageRow, costs: tuple[CostRow, ...] = (), since: int = MIDNIGHT, until: int = 0) -> UsageAnswer:
    return UsageAnswer(since=since, until=until or since + DAY, by=BY, rows=rows, costs=costs)


@pytest.fixture(scope="module", name="rows")
def _rows() -> list[dict[str, str]]:
    costs = (pool(10**9, 10**8), pool(5, 9, "ai/dear"))
    return exported(day(used(10**8), used(7, feature='a "quoted", one', caller="", pool="ai/dear"), costs=costs))


def faults(rows: list[dict[str, str]]) -> Iterator[str]:
    for column in SPECIFICATION:
        for number, row in enumerate(rows):
            value = row[column.name]
            if not value and not column.nulls:
                yield f"{number} {column.name} is null"
            elif value and not re.fullmatch(TYPES[column.kind], value):
                yield f"{number} {column.name}={value} is no {column.kind}"
            elif value and column.allowed and value not in column.allowed:
                yield f"{number} {column.name}={value} is not allowed"


def test_every_column_has_the_type_the_nullability_and_the_values_of_the_specification(
    rows: list[dict[str, str]],
) -> None:
    assert len(rows) == 4
    assert list(faults(rows)) == []


def test_every_mandatory_column_is_there_and_others_are_marked_as_ours() -> None:
    known = {column.name for column in SPECIFICATION}
    assert sum(column.level == "Mandatory" for column in SPECIFICATION) == MANDATORY
    assert known <= set(COLUMNS)
    assert all(name.startswith("x_") for name in set(COLUMNS) - known)
    assert list(COLUMNS) == sorted(COLUMNS, key=lambda name: (name.startswith("x_"), name))


def test_a_column_that_lacks_its_value_would_be_found(rows: list[dict[str, str]]) -> None:
    assert list(faults([rows[0] | {"ListCost": ""}])) == ["0 ListCost is null"]
    assert list(faults([rows[0] | {"ChargeCategory": "Idle"}])) == ["0 ChargeCategory=Idle is not allowed"]
    assert list(faults([rows[0] | {"BilledCost": "1e3"}])) == ["0 BilledCost=1e3 is no Decimal"]


amounts = st.integers(0, 10**15)


@settings(deadline=None)
@given(st.lists(st.tuples(amounts, amounts), max_size=6))
def test_the_billed_costs_are_the_bill_to_the_nano(pairs: list[tuple[int, int]]) -> None:
    costs = tuple(pool(cost, charged, f"ai/{number}") for number, (cost, charged) in enumerate(pairs))
    rows = tuple(used(charged, pool=f"ai/{number}") for number, (_cost, charged) in enumerate(pairs))
    lines = exported(day(*rows, costs=costs))
    for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
        assert sum(Decimal(line[name]) for line in lines) * 10**9 == sum(cost for cost, _charged in pairs)


def test_a_charge_tells_whose_it_is_and_what_for(rows: list[dict[str, str]]) -> None:
    row = rows[0]
    assert (row["SubAccountId"], row["ResourceId"], row["BilledCost"]) == (
        "support",
        "ai/chat-8b/h100",
        "0.100000000",
    )
    assert (row["ConsumedQuantity"], row["ConsumedUnit"], row["x_CachedTokens"]) == ("2300", "Tokens", "500")
    assert json.loads(row["Tags"]) == {
        "fairlead.dev/caller": "sa:web",
        "fairlead.dev/feature": "search",
        "fairlead.dev/model": "chat",
        "fairlead.dev/pool": "ai/chat-8b",
        "fairlead.dev/variant": "h100",
    }
    assert json.loads(rows[1]["Tags"])["fairlead.dev/feature"] == 'a "quoted", one'


def test_a_name_that_somebody_chose_is_no_formula() -> None:
    (row,) = exported(day(used(7, pool="=1+1", variant="\r")))
    assert (row["ResourceId"], row["ResourceName"]) == ("'=1+1/\ufffd", "'=1+1")


def test_idle_is_a_row_of_the_owner_in_replica_hours(rows: list[dict[str, str]]) -> None:
    row = rows[2]
    assert (row["SubAccountId"], row["ChargeCategory"], row["BilledCost"]) == ("ai", "Usage", "0.900000000")
    assert (row["ConsumedQuantity"], row["ConsumedUnit"]) == ("1.800000", "Hours")
    assert json.loads(row["Tags"])["fairlead.dev/idle"] == "true"


def test_charges_above_the_bill_are_an_adjustment_without_a_quantity(rows: list[dict[str, str]]) -> None:
    row = rows[3]
    assert (row["ChargeCategory"], row["BilledCost"]) == ("Adjustment", "-0.000000004")
    assert (row["ConsumedQuantity"], row["ConsumedUnit"], row["PricingQuantity"]) == ("", "", "")


@pytest.mark.parametrize(
    ("since", "first", "following"),
    [
        (MIDNIGHT, "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        (MIDNIGHT + 20 * DAY, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
    ],
)
def test_the_billing_period_is_the_month_and_the_charge_period_what_was_asked(
    since: int, first: str, following: str
) -> None:
    row = exported(day(used(1), since=since, until=since + DAY // 2))[0]
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == (first, following)
    assert row["ChargePeriodStart"][10:] == "T00:00:00Z"
    assert row["ChargePeriodEnd"][10:] == "T12:00:00Z"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ai/one", "ai/two", "support/own"]), amounts, amounts), max_size=8))
def test_from_the_ledgers_tables_to_the_file_no_nano_is_lost(cases: list[tuple[str, int, int]]) -> None:
    lines = tuple(
        line(pool=name, nano_usd=charged, caller=f"c{number}") for number, (name, charged, _) in enumerate(cases)
    )
    costs = tuple(
        CostRow(pool=name, variant=f"v{number}", bucket=NOW, replica_ms=1, nano_usd=cost)
        for number, (name, _, cost) in enumerate(cases)
    )
    with ledger().engine.connect() as connection:
        transaction = connection.begin()
        usage.add(connection, lines, NOW)
        assert put_costs(connection, PutCosts(costs=costs, until=NOW)) is None
        answer = usage_report(connection, UsageQuery(BY, NOW // DAY * DAY, NOW // DAY * DAY + DAY))
        transaction.rollback()
    assert sum(Decimal(row["BilledCost"]) for row in exported(answer)) * 10**9 == sum(cost.nano_usd for cost in costs)


@cache
def ledger() -> SqliteLedger:
    return SqliteLedger()
