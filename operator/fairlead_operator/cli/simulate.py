"""``fairlead simulate``: what a budget, or a fleet, would have done with recorded demand. Nothing is changed."""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import yaml
from pydantic import ValidationError

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.cli.ask import DAY_MS, UsageError, add_ledger, ledger, minute_text, parse_time
from fairlead_operator.cli.cost import aligned
from fairlead_operator.cli.replay import Demand, Outcome, replay
from fairlead_operator.cli.simulate_fleet import add_parser as add_fleet
from fairlead_operator.cli.simulate_fleet import simulate_fleet
from fairlead_operator.decide.forecast import Forecast, forecast
from fairlead_operator.ledger.windows import window_at
from fairlead_operator.render.ledger_budgets import ledger_budget
from fairlead_operator.units import NANO_PER_USD, format_usd, usd_places
from fairlead_router.contract import BUCKET_MS, LedgerBudget, Unit, UsageAnswer, UsageRow

HOUR_MS = 3_600_000
HISTORY_DAYS = 28
MAX_LINES = 20
KEYS = {
    "Total": (),
    "Namespace": ("namespace",),
    "Caller": ("namespace", "caller"),
    "Feature": ("namespace", "feature"),
}
"""The dimensions that make a key of each ``per`` that usage knows."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What ``fairlead simulate budget`` prints. ``forecast`` is of what the fullest key asks for in the last window."""

    budget: LedgerBudget
    since: int
    until: int
    outcomes: tuple[Outcome, ...]
    forecast: Forecast | None
    days_until: int


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", environment: Mapping[str, str]) -> None:
    """The command line of ``fairlead simulate``."""
    simulate = commands.add_parser("simulate", help="what a budget, or a fleet, would have done with recorded demand")
    actions = simulate.add_subparsers(dest="action", required=True, metavar="WHAT")
    text = "Runs the ledger's decisions over its usage, as if this CostBudget had been. Nothing is changed."
    budget = actions.add_parser("budget", help="replay usage under a CostBudget", description=text)
    budget.add_argument("-f", "--file", type=Path, required=True, help="the CostBudget's manifest, YAML or JSON")
    budget.add_argument("--since", default="7d", help="from the window of this time on: 7d, 2026-11-01 (default 7d)")
    budget.add_argument("--namespaces", default="", help="those that its namespaceSelector selects, such as a,b")
    text = "table (default), or json"
    budget.add_argument("-o", "--output", choices=["table", "json"], default="table", help=text)
    add_ledger(budget, environment)
    add_fleet(actions)


def run(options: argparse.Namespace, now_ms: int) -> str:
    """What to print. Raises UsageError, LedgerError."""
    if options.action == "fleet":
        return simulate_fleet(options)
    budget, models = read_budget(options.file, options.namespaces)
    since = parse_time(options.since, "--since", now_ms)
    since = window_at(since, budget.period, budget.time_zone).start
    simulation = asyncio.run(_simulate(options, budget, models, since, now_ms))
    return simulation_json(simulation) if options.output == "json" else simulation_text(simulation)


def read_budget(path: Path, namespaces: str) -> tuple[LedgerBudget, tuple[str, ...]]:
    """The budget of a manifest, and the models that it covers. Raises UsageError: it cannot be replayed."""
    try:
        documents = [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]
        budget = CostBudget.parse(next(one for one in documents if one.get("kind") == "CostBudget"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError, StopIteration) as error:
        raise UsageError(f"-f {path}: no manifest of a CostBudget can be read there: {error}") from error
    except ValidationError as error:
        raise UsageError(f"-f {path}: {error.errors()[0]['msg']} at {error.errors()[0]['loc']}") from error
    covered = tuple(sorted(filter(None, namespaces.split(","))))
    if budget.spec.applies_to.namespace_selector is not None and not covered:
        raise UsageError("the budget has a namespaceSelector: say with --namespaces a,b which ones it selects")
    compiled = ledger_budget(budget, covered or (budget.namespace,))
    if compiled.per not in KEYS:
        raise UsageError(f"per {compiled.per} cannot be replayed: usage does not tell workflows; use per Caller")
    if compiled.period == "Minute":
        raise UsageError("period Minute cannot be replayed: usage is kept in quarter hours")
    return compiled, tuple(budget.spec.applies_to.models)


async def _simulate(
    options: argparse.Namespace, budget: LedgerBudget, models: tuple[str, ...], since: int, now_ms: int
) -> Simulation:
    demands: list[Demand] = []
    days_until = 0
    by = ",".join(("time", *KEYS[budget.per]))
    async with ledger(options) as client:
        begin = min(since, now_ms - HISTORY_DAYS * DAY_MS) // DAY_MS * DAY_MS
        for day in range(begin, now_ms, DAY_MS):
            until = min(day + DAY_MS, now_ms)
            for only in _scopes(budget, models):
                answer = await client.usage(by, day, until, step=str(BUCKET_MS), **only)
                demands.extend(demands_of(answer, budget))
                days_until = max(days_until, answer.days_until)
    return simulated(budget, demands, since, now_ms, days_until)


def _scopes(budget: LedgerBudget, models: tuple[str, ...]) -> list[dict[str, str]]:
    """What usage must equal, question by question."""
    named = [{"model": model} for model in models] or [{}]
    return [{"namespace": namespace, **model} for namespace in budget.namespaces for model in named]


def demands_of(answer: UsageAnswer, budget: LedgerBudget) -> list[Demand]:
    """What was asked for, by quarter hour and key."""
    return [
        Demand("/".join(row.group[1:]), int(row.group[0]), amount_of(row, budget.unit), row.requests)
        for row in answer.rows
    ]


def amount_of(row: UsageRow, unit: Unit) -> int:
    """A row in the unit of a budget."""
    match unit:
        case "USD":
            return row.nano_usd
        case "Tokens":
            return row.prompt + row.output
        case "Requests":
            return row.requests


def simulated(budget: LedgerBudget, demands: Sequence[Demand], since: int, now: int, days_until: int = 0) -> Simulation:
    """The replay of what came since a window's start, and the forecast from all that is known before."""
    merged: dict[tuple[str, int], Demand] = {}
    for one in demands:
        known = merged.get((one.key, one.at), Demand(one.key, one.at, 0, 0))
        merged[one.key, one.at] = Demand(one.key, one.at, known.amount + one.amount, known.requests + one.requests)
    outcomes = replay(budget, [one for one in merged.values() if one.at >= since])
    window = window_at(now, budget.period, budget.time_zone)
    current = [one for one in outcomes if one.window.start == window.start]
    ahead = None
    if current:
        history = [(one.at, one.amount) for one in merged.values() if one.key == current[0].key]
        start = max(window.start, min(at for at, _amount in history))
        ahead = forecast(history, spent=current[0].asked, now=now, start=start, end=window.end)
    return Simulation(budget, since, now, tuple(outcomes), ahead, days_until)


# --- what is printed


def simulation_text(simulation: Simulation) -> str:
    """The story of one window, or a table of several, and the smallest limit that would not have held back."""
    budget, outcomes = simulation.budget, simulation.outcomes
    lines = [f"{_title(budget)}; {(simulation.until - simulation.since) // HOUR_MS}h replayed"]
    if not outcomes:
        lines.append("There was no usage that it covers.")
    elif len(outcomes) == 1:
        lines += _story(budget, outcomes[0], simulation.until)
    else:
        lines += _table(budget, outcomes)
    if outcomes and simulation.forecast is not None:
        lines.append(_smallest(budget, outcomes, simulation.forecast))
    if simulation.since < simulation.days_until:
        lines.append(f"Before {minute_text(simulation.days_until)} usage is kept by day (UTC): times there are rough.")
    lines.append(_assumed(budget))
    return "\n".join(lines)


def _title(budget: LedgerBudget) -> str:
    actions = "".join(f", {action.action} {action.at_percent}" for action in budget.actions)
    per = "" if budget.per == "Total" else f" per {budget.per}"
    unit = "" if budget.unit == "USD" else f" {budget.unit}"
    amount = f"{_plain(budget, budget.limit)}{unit or ' USD'}"
    return f"{budget.namespace}/{budget.name}: {amount} a {budget.period.lower()}{per}{actions}"


def _story(budget: LedgerBudget, outcome: Outcome, now: int) -> list[str]:
    begun = ", ".join(f"{one.action} at {minute_text(one.at)}" for one in outcome.begun) or "No action"
    held = outcome.asked - outcome.spent
    share = f"{held * 1000 // outcome.asked / 10:.1f}%" if outcome.asked else "0.0%"
    when = "by now" if outcome.window.end > now else f"in {outcome.window.label}"
    spent, asked, kept = (_amount(budget, amount) for amount in (outcome.spent, outcome.asked, held))
    extra = budget.temporary_increase.amount if budget.temporary_increase else 0
    overspend = _amount(budget, max(0, outcome.spent - budget.limit - extra))
    lines = [f"{begun}. Spent {when} {spent} instead of {asked}: {kept} ({share}) held back, overspend {overspend}."]
    if outcome.refused:
        first = next(one.action for one in outcome.begun if one.action in {"Pace", "Reject"})
        lines.append(
            f"{outcome.refused:,} of the {outcome.since:,} requests since {first}"
            f" ({outcome.refused * 100 // outcome.since}%) would have waited or got 429."
        )
    if outcome.pace_per_hour:
        lines.append(f"Pace admitted {_amount(budget, outcome.pace_per_hour)} an hour.")
    return lines


def _table(budget: LedgerBudget, outcomes: Sequence[Outcome]) -> list[str]:
    shown = sorted(outcomes, key=lambda one: (one.spent - one.asked, -one.spent))[:MAX_LINES]
    rows = [["WINDOW", "KEY", "ASKED", "SPENT", "REFUSED", "ACTIONS"]]
    rows += [
        [
            one.window.label,
            one.key or budget.namespace,
            _amount(budget, one.asked),
            _amount(budget, one.spent),
            f"{one.refused:,}",
            ", ".join(f"{begun.action} {minute_text(begun.at)}" for begun in one.begun),
        ]
        for one in shown
    ]
    asked, spent = (sum(getattr(one, name) for one in outcomes) for name in ("asked", "spent"))
    refused = f"{sum(one.refused for one in outcomes):,}"
    rows.append([f"all {len(outcomes)}", "", _amount(budget, asked), _amount(budget, spent), refused, ""])
    figures = aligned([row[:5] for row in rows], 2)
    return [f"{line}  {row[5]}".rstrip() for line, row in zip(figures, rows, strict=True)]


def _smallest(budget: LedgerBudget, outcomes: Sequence[Outcome], ahead: Forecast) -> str:
    paces = [action.at_percent for action in budget.actions if action.action == "Pace"]
    percent = min(paces, default=100)
    most = max(ahead.at_end, *(outcome.asked for outcome in outcomes))
    unit = NANO_PER_USD if budget.unit == "USD" and most >= NANO_PER_USD else 1
    limit = -(-(most * 100 // percent + bool(paces)) // unit) * unit
    share = _amount(budget, limit * percent // 100)
    without = "Pace" if paces else "refusals"
    told = f"{percent}% = {share}, forecast {_amount(budget, ahead.at_end)}"
    return f"Smallest limit without {without} this {budget.period.lower()}: {_plain(budget, limit)} ({told})."


def _assumed(budget: LedgerBudget) -> str:
    text = "Assumed: what was refused did not come again"
    named = {action.action for action in budget.actions}
    if "RejectBatch" in named:
        text += "; no request was Batch"
    if "Downgrade" in named:
        text += "; none went to a cheaper route"
    return f"{text}. Refusals are at most this many."


def _amount(budget: LedgerBudget, amount: int) -> str:
    return format_usd(amount, usd_places(budget.limit)) if budget.unit == "USD" else f"{amount:,}"


def _plain(budget: LedgerBudget, amount: int) -> str:
    text = _amount(budget, amount)
    return text.rstrip("0").rstrip(".") if "." in text else text


def simulation_json(simulation: Simulation) -> str:
    """The same as one JSON document; amounts in the budget's unit (nano-USD), times in ms."""
    return msgspec.json.encode(
        {
            "budget": f"{simulation.budget.namespace}/{simulation.budget.name}",
            "since": simulation.since,
            "until": simulation.until,
            "outcomes": [asdict(outcome) for outcome in simulation.outcomes],
            "forecast": asdict(simulation.forecast) if simulation.forecast else None,
        }
    ).decode()
