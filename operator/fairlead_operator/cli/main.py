"""``fairlead``, also as ``kubectl fairlead``."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import msgspec

from fairlead_operator.cli import explain, focus, key, render, rollout, simulate, validate
from fairlead_operator.cli.ask import (
    DAY_MS,
    FINE,
    USAGE_ERROR,
    UsageError,
    add_ledger,
    complain,
    ledger,
    parse_time,
    trouble,
)
from fairlead_operator.cli.cost import DIMENSIONS, TIME, Span, cost_csv, cost_table, parse_dimensions
from fairlead_operator.errors import LedgerError
from fairlead_operator.units import parse_duration_ms
from fairlead_router.contract import BUCKET_MS, UsageAnswer

ONLY = {
    "caller": "caller, such as sa:web",
    "feature": "feature",
    "model": "model, as clients send it",
    "pool": "pool: namespace/name",
}
FILTERS = ("namespace", *ONLY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    0 = done, 1 = refused, or something needs a look, 2 = a wrong command line, 3 = whoever was asked did not answer.
    """
    options = _parser(os.environ).parse_args(arguments)
    if options.command in PROGRAMS:
        return PROGRAMS[options.command](options)
    try:
        print(COMMANDS[options.command](options, time.time_ns() // 1_000_000))
    except UsageError as error:
        return complain(str(error), USAGE_ERROR)
    except LedgerError as error:
        return complain(*trouble(error))
    return FINE


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fairlead", description="Costs, budgets, keys and files of a Fairlead fleet.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("version", help="print the version")
    key.add_parser(commands)
    explain.add_parser(commands, environment)
    rollout.add_parser(commands)
    _add_cost(commands, environment)
    simulate.add_parser(commands, environment)
    validate.add_parser(commands, environment)
    render.add_parser(commands, environment)
    return parser


def _add_cost(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", environment: Mapping[str, str]) -> None:
    text = "Who spent what: charged + idle = the bill. Asks the ledger; a team's token shows its own namespace."
    cost = commands.add_parser("cost", help="who spent what: charged + idle = the bill", description=text)
    cost.add_argument("what", nargs="?", choices=["export"], help="export: every charge by day, for other tools")
    names = ", ".join(DIMENSIONS)
    cost.add_argument("--by", default="namespace", help=f"one or more of {names}, with commas (default namespace)")
    cost.add_argument("--since", default="24h", help="from when: 90m, 24h, 7d, 2026-11-01 (default 24h)")
    cost.add_argument("--until", default="now", help="up to when, written like --since (default now)")
    cost.add_argument("--step", default="", help="length of a row of --by time, such as 15m, 1h, 24h (default 1h)")
    cost.add_argument("-n", "--namespace", default=None, help="only callers of this namespace")
    for name, text in ONLY.items():
        cost.add_argument(f"--{name}", default=None, help=f"only this {text}")
    text = "table (default), json: the ledger's answer in nano-USD, csv: exact USD"
    cost.add_argument("-o", "--output", choices=["table", "json", "csv"], default="table", help=text)
    cost.add_argument("--format", choices=["focus"], default="focus", help="of export: FOCUS 1.2 as CSV")
    cost.add_argument("--billing-account", default="fairlead", help="of export: BillingAccountId (default fairlead)")
    add_ledger(cost, environment)


def _version(_options: argparse.Namespace, _now_ms: int) -> str:
    return f"fairlead {version('fairlead')}"


def _cost(options: argparse.Namespace, now_ms: int) -> str:
    span = _cost_span(options, now_ms)
    only = {name: value for name in FILTERS if (value := getattr(options, name)) is not None}
    if options.what == "export":
        return asyncio.run(_export(options, span, only))
    by = parse_dimensions(options.by)
    if TIME in by:
        only["step"] = str(_step(options.step or "1h"))
    elif options.step:
        raise UsageError("--step is the length of a row of --by time: add time to --by")
    answer = asyncio.run(_usage(options, by, span, only))
    return RENDERS[options.output](answer)


def _cost_span(options: argparse.Namespace, now_ms: int) -> Span:
    since, until = (parse_time(getattr(options, name), f"--{name}", now_ms) for name in ("since", "until"))
    if since >= until:
        raise UsageError(f"--since {options.since} is not before --until {options.until}")
    return Span(since, until)


def _step(text: str) -> int:
    try:
        step = parse_duration_ms(text)
    except ValueError:
        step = 0
    if step <= 0 or step % BUCKET_MS:
        raise UsageError(f"--step {text[:40]!r} is no length of a row: write a multiple of 15m, such as 1h or 24h")
    return step


async def _usage(options: argparse.Namespace, by: tuple[str, ...], span: Span, only: Mapping[str, str]) -> UsageAnswer:
    async with ledger(options) as client:
        return await client.usage(",".join(by), span.since_ms, span.until_ms, **only)


async def _export(options: argparse.Namespace, span: Span, only: Mapping[str, str]) -> str:
    """Every charge since the day (UTC) of ``--since``, a day at a time."""
    if set(only) - {"namespace", "pool"}:
        raise UsageError("cost export takes no filter but --namespace and --pool: idle belongs to whole pools")
    rows: list[focus.Row] = []
    async with ledger(options) as client:
        for day in range(span.since_ms // DAY_MS * DAY_MS, span.until_ms, DAY_MS):
            answer = await client.usage(",".join(focus.BY), day, min(day + DAY_MS, span.until_ms), **only)
            rows += focus.focus_rows(answer, options.billing_account)
    return focus.focus_csv(rows)


def _json(answer: UsageAnswer) -> str:
    return msgspec.json.encode(answer).decode()


RENDERS: dict[str, Callable[[UsageAnswer], str]] = {"table": cost_table, "json": _json, "csv": cost_csv}
PROGRAMS: dict[str, Callable[[argparse.Namespace], int]] = {
    "key": key.run,
    "explain": explain.run,
    "validate": validate.run,
    "render": render.run,
    "rollout": rollout.run,
}
"""Commands that print and end by themselves; the others answer with their text."""
COMMANDS: dict[str, Callable[[argparse.Namespace, int], str]] = {
    "version": _version,
    "cost": _cost,
    "simulate": simulate.run,
}

if __name__ == "__main__":
    sys.exit(main())
