"""PURE: ``fairlead explain budget -o json``: the same findings as one document.

Amounts are in the budget's unit (nano-USD, tokens or requests), as precise as the status has them; times are in ms
since the epoch. What is not known is ``null``, as is all that follows from figures of a window that is over.
"""

from dataclasses import asdict
from typing import Any

import msgspec

from fairlead_operator.cli.explain_budget_facts import Known, help_of, looks, parts_of, steps_of
from fairlead_operator.decide.facts import time_ms


def explanation_json(known: Known, silence: str = "") -> str:
    """The document; ``silence`` is what the ledger did not say, and why: the rest is the status's then."""
    budget, limit, routers = known.budget, known.budget.spec.limit, known.budget.status.routers
    document: dict[str, Any] = {
        "budget": budget.key,
        "unit": limit.unit,
        "per": limit.per,
        "period": limit.period,
        "time_zone": limit.time_zone,
        "enforcement": budget.spec.enforcement,
        "now": known.now,
        "silence": silence or None,
        "look": looks(known),
        "routers": routers.model_dump() if routers is not None else None,
        "window": None,
    }
    if budget.status.limit is not None and budget.status.window is not None:
        document |= _counted(known)
    return msgspec.json.encode(document).decode()


def _counted(known: Known) -> dict[str, Any]:
    """What is known once the budget is counted."""
    status, (start, end) = known.budget.status, known.span
    counted_from = time_ms(status.window.counted_from) if status.window else None
    present = known.left > 0
    return {
        "window": {
            "id": status.window.id if status.window else "",
            "start": start,
            "end": end,
            "counted_from": counted_from,
        },
        "account": status.fullest,
        "action": status.active_action,
        "limit": known.limit,
        "increase": known.units(status.increase),
        "parts": asdict(parts_of(known)),
        "burn_per_hour": known.units(status.burn_per_hour) if present and status.burn_per_hour is not None else None,
        "forecast": _forecast(known) if present else None,
        "steps": [asdict(one) for one in steps_of(known)] if present else None,
        "accounts": _accounts(known) if present else None,
        "shares": _shares(known) if present else None,
        "helps": _helps(known) if present else None,
    }


def _forecast(known: Known) -> dict[str, int] | None:
    found = known.budget.status.forecast
    if found is None:
        return None
    return {
        "at_window_end": known.units(found.at_window_end),
        "low": known.units(found.low),
        "high": known.units(found.high),
    }


def _accounts(known: Known) -> dict[str, Any] | None:
    found = known.budget.status.allowances
    if found is None:
        return None
    top = [{"key": one.key, "spent": known.units(one.spent), "used_percent": one.used_percent} for one in found.top]
    return {"total": found.total, "limited": found.limited, "top": top}


def _shares(known: Known) -> dict[str, Any] | None:
    """Who spent how much, all of them."""
    usage = known.usage
    if usage is None:
        return None
    rows = [{"name": name, "amount": amount} for name, amount in usage.shares]
    return {"by": usage.who, "days": usage.days, "rows": rows}


def _helps(known: Known) -> dict[str, Any] | None:
    found = help_of(known)
    if found is None:
        return None
    patch = {"spec": {"temporaryIncrease": found.increase}} if found.increase is not None else None
    return {"limit": found.limit, "percent": found.percent, "action": found.action, "patch": patch}
