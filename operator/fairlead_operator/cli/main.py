"""``fairlead``, also as ``kubectl fairlead``."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import aiohttp
import msgspec

from fairlead_operator.cli import key
from fairlead_operator.cli.cost import Span, cost_table, parse_dimensions, parse_since
from fairlead_operator.errors import LedgerError
from fairlead_operator.ledger_client import LedgerClient
from fairlead_router.contract import UsageAnswer

USAGE_ERROR = 2
LEDGER_ERROR = 1


class FileToken:
    """The token of one file, whatever the audience: the file's owner chose it for the ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self, _audience: str) -> str:
        """The file's present content."""
        return self._path.read_text(encoding="utf-8").strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 = done, 1 = refused or the ledger did not answer, 2 = a wrong command line, 3 = no cluster."""
    options = _parser(os.environ).parse_args(arguments)
    if options.command == "version":
        print(f"fairlead {version('fairlead')}")
        return 0
    if options.command == "key":
        return key.run(options)
    return _cost(options, time.time_ns() // 1_000_000)


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fairlead", description="Reads and explains a Fairlead fleet.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("version", help="print the version")
    key.add_parser(commands)
    cost = commands.add_parser("cost", help="who spent what: charged + idle = the bill")
    cost.add_argument("--by", default="namespace", help="dimensions, such as namespace,pool (default namespace)")
    cost.add_argument("--since", default="24h", help="how far back, such as 90m, 24h or 7d (default 24h)")
    cost.add_argument("-o", "--output", choices=["table", "json"], default="table")
    ledger = environment.get("FAIRLEAD_LEDGER_URL", "http://127.0.0.1:8080")
    cost.add_argument("--ledger", default=ledger, help=f"address of the ledger (default {ledger})")
    folder = environment.get("FAIRLEAD_TOKENS_DIR", "/var/run/fairlead/tokens")
    cost.add_argument(
        "--token-file",
        type=Path,
        default=Path(folder) / "ledger",
        help="ServiceAccount token with audience fairlead.dev/ledger (default: the operator's own)",
    )
    return parser


def _cost(options: argparse.Namespace, now_ms: int) -> int:
    try:
        span = Span(now_ms - parse_since(options.since), now_ms)
        by = parse_dimensions(options.by)
    except ValueError as error:
        return _complain(str(error), USAGE_ERROR)
    try:
        answer = asyncio.run(_usage(options.ledger, options.token_file, by, span))
    except LedgerError as error:
        return _complain(f"{error}. Is --ledger right? Outside: kubectl port-forward svc/fairlead-ledger", LEDGER_ERROR)
    render: Callable[[UsageAnswer], str] = cost_table if options.output == "table" else _json
    print(render(answer))
    return 0


async def _usage(url: str, token_file: Path, by: tuple[str, ...], span: Span) -> UsageAnswer:
    async with aiohttp.ClientSession() as session:
        client = LedgerClient(session, url, FileToken(token_file))
        return await client.usage(",".join(by), span.since_ms, span.until_ms)


def _json(answer: UsageAnswer) -> str:
    return msgspec.json.encode(answer).decode()


def _complain(text: str, status: int) -> int:
    print(f"fairlead: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
