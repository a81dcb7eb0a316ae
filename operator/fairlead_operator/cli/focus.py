"""Charges in the FinOps Open Cost and Usage Specification (FOCUS) 1.2, as CSV.

A row is one day (UTC) of one namespace's requests of one caller, feature, model, pool and variant, or what one pool and
variant left idle that day. All four costs are the same exact amount: nothing here is discounted or paid in advance, and
the price of a replica-hour is the chart's. The sum of BilledCost is the bill, to the nano-USD.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from fairlead_operator.cli.cost import cell, shown
from fairlead_operator.units import format_usd
from fairlead_router.contract import CostRow, UsageAnswer, UsageRow

BY = ("namespace", "caller", "feature", "model", "pool", "variant")
COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_CachedTokens",
    "x_OutputTokens",
    "x_PromptTokens",
    "x_Requests",
)
_HOUR_MS = 3_600_000
_MICRO = 1_000_000

Row = dict[str, str]
"""Text by column; a column that is missing is null."""


def focus_rows(answer: UsageAnswer, account: str) -> Iterator[Row]:
    """The charges of one day or a part of it, grouped by BY; ``account`` names who the bill is for."""
    common = _common(answer, account)
    for row in answer.rows:
        yield common | _used(row)
    for cost in answer.costs:
        if cost.nano_usd != cost.charged:
            yield common | _idle(cost)


def focus_csv(rows: Sequence[Row]) -> str:
    """The rows under their column names; null is an empty field."""
    text = io.StringIO()
    lines = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    return text.getvalue().rstrip("\n")


def _common(answer: UsageAnswer, account: str) -> Row:
    first = datetime.fromtimestamp(answer.since / 1000, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return {
        "BillingAccountId": account,
        "BillingAccountName": account,
        "BillingCurrency": "USD",
        "BillingPeriodStart": _time(first),
        "BillingPeriodEnd": _time(following),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _time(datetime.fromtimestamp(answer.since / 1000, UTC)),
        "ChargePeriodEnd": _time(datetime.fromtimestamp(answer.until / 1000, UTC)),
        "InvoiceIssuerName": "Fairlead",
        "ProviderName": "Fairlead",
        "PublisherName": "Fairlead",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "LLM inference",
        "ServiceSubcategory": "Generative AI",
        "ResourceType": "ModelPool",
    }


def _used(row: UsageRow) -> Row:
    known = dict(zip(BY, row.group, strict=True))
    tokens = str(row.prompt + row.output)
    return {
        **_cost(row.nano_usd),
        **_place(known["namespace"], known["pool"], known["variant"]),
        **_usage(tokens, "Tokens"),
        "ChargeDescription": f"Requests of model {shown(known['model'])}",
        "Tags": _tags(known),
        "x_Requests": str(row.requests),
        "x_PromptTokens": str(row.prompt),
        "x_CachedTokens": str(row.cached),
        "x_OutputTokens": str(row.output),
    }


def _idle(cost: CostRow) -> Row:
    """What nobody was charged for, as replica-hours; a correction where charges were more than the replicas cost."""
    idle, owner = cost.nano_usd - cost.charged, cost.pool.partition("/")[0]
    place = {
        **_cost(idle),
        **_place(owner, cost.pool, cost.variant),
        "Tags": _tags({"pool": cost.pool, "variant": cost.variant, "idle": "true"}),
    }
    if idle < 0:
        return {**place, "ChargeCategory": "Adjustment", "ChargeDescription": "Charged more than the replicas cost"}
    micro_hours = cost.replica_ms * idle * _MICRO // (_HOUR_MS * cost.nano_usd)
    hours = f"{micro_hours // _MICRO}.{micro_hours % _MICRO:06d}"
    return {**place, **_usage(hours, "Hours"), "ChargeDescription": "Replicas that nobody's requests were charged for"}


def _cost(nano_usd: int) -> Row:
    names = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")
    return dict.fromkeys(names, format_usd(nano_usd, 9))


def _usage(quantity: str, unit: str) -> Row:
    quantities = dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), quantity)
    units = dict.fromkeys(("ConsumedUnit", "PricingUnit"), unit)
    return {**quantities, **units, "ChargeCategory": "Usage", "PricingCategory": "Standard"}


def _place(namespace: str, pool: str, variant: str) -> Row:
    return {
        "SubAccountId": cell(shown(namespace)),
        "SubAccountName": cell(shown(namespace)),
        "ResourceId": cell(shown(f"{pool}/{variant}")),
        "ResourceName": cell(shown(pool)),
    }


def _tags(values: dict[str, str]) -> str:
    tags = {f"fairlead.dev/{name}": value for name, value in values.items() if value and name != "namespace"}
    return msgspec.json.encode(tags, order="sorted").decode()


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
