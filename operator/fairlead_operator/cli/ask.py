"""How commands reach the ledger, and the times that people write."""

import argparse
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from fairlead_operator.errors import LedgerError
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.units import parse_duration_ms

DAY_MS = 86_400_000
LONGEST_DAYS = 400
FINE, LOOK, USAGE_ERROR, UNREACHABLE = 0, 1, 2, 3
"""Exit statuses: nothing to do, refused or something needs a look, a wrong command line, could not ask."""


class UsageError(ValueError):
    """The command line cannot be used; the text says what can."""


def complain(text: str, status: int) -> int:
    """Say on the standard error what is wrong, and return the exit status."""
    print(f"fairlead: {text}", file=sys.stderr)
    return status


class FileToken:
    """The token of one file, whatever the audience: the file's owner chose it for the ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self, _audience: str) -> str:
        """The file's present content."""
        return self._path.read_text(encoding="utf-8").strip()


def add_ledger(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Where the ledger is, and who asks."""
    ledger = environment.get("FAIRLEAD_LEDGER_URL", "http://127.0.0.1:8080")
    parser.add_argument("--ledger", default=ledger, help=f"address of the ledger (default {ledger})")
    folder = environment.get("FAIRLEAD_TOKENS_DIR", "/var/run/fairlead/tokens")
    parser.add_argument(
        "--token-file",
        type=Path,
        default=Path(folder) / "ledger",
        help="ServiceAccount token with audience fairlead.dev/ledger (default: the operator's own)",
    )


@asynccontextmanager
async def ledger(options: argparse.Namespace) -> AsyncIterator[LedgerClient]:
    """The ledger that the command line names."""
    async with aiohttp.ClientSession() as session:
        yield LedgerClient(session, options.ledger, FileToken(options.token_file))


def trouble(error: LedgerError) -> tuple[str, int]:
    """What to say of a ledger that did not answer with what was asked for, and the exit status."""
    if error.status:
        return str(error), LOOK
    return f"{error}. Is --ledger right? Outside: kubectl port-forward svc/fairlead-ledger", UNREACHABLE


def parse_length(text: str, option: str) -> int:
    """Milliseconds of ``7d``, ``24h`` or ``1h30m``. Raises UsageError."""
    days = text.removesuffix("d")
    try:
        length = int(days) * DAY_MS if days != text and days.isascii() and days.isdecimal() else parse_duration_ms(text)
    except ValueError:
        length = 0
    if not 0 < length <= LONGEST_DAYS * DAY_MS:
        raise UsageError(
            f"{option} {text[:40]!r} is no time to look back: write 7d, 24h or 1h30m, {LONGEST_DAYS}d at most,"
            " or a date such as 2026-11-01 or 2026-11-01T08:00Z"
        )
    return length


def parse_time(text: str, option: str, now_ms: int) -> int:
    """Milliseconds since the epoch of a length before now, ``now``, or an ISO date or time (UTC unless it says).

    Raises:
        UsageError: it is none of these, in the future, or longer ago than usage is kept.
    """
    if text == "now":
        return now_ms
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return now_ms - parse_length(text, option)
    at = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if not now_ms - LONGEST_DAYS * DAY_MS <= at <= now_ms:
        raise UsageError(f"{option} {text} is not within the {LONGEST_DAYS} days up to now that are kept")
    return at


def minute_text(at_ms: int) -> str:
    """``2026-11-20T11:00Z``."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")
