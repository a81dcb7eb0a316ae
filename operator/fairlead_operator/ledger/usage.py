"""Usage lines, added up in quarter hours by dimension."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from hashlib import blake2b
from operator import add as add_up
from operator import attrgetter
from typing import Any

import msgspec
from sqlalchemy import Connection

from fairlead_operator.ledger import statements as sql
from fairlead_router.contract import BUCKET_MS, OTHER, UsageLine

MAX_DIMS = 10_000
"""Combinations of dimensions in one namespace; the callers and features of more are counted together."""
OLDEST_MS = sql.ARCHIVE_MS
NEWEST_MS = 3_600_000

Dimension = tuple[str | int, ...]
"""The values of DIM_COLUMNS."""
Ids = dict[Dimension, int]
Place = tuple[int, int]
"""Bucket and dimension."""
_DIMENSION: Callable[[UsageLine], Dimension] = attrgetter(*sql.DIM_COLUMNS)
_SUMS: Callable[[UsageLine], tuple[int, ...]] = attrgetter(*sql.SUMS)


def add(connection: Connection, lines: Collection[UsageLine], now: int, numbers: Iterable[int] | None = None) -> None:
    """Add lines to the sums; the sequence number of their message takes care that each comes once.

    ``numbers``: those of the lines' dimensions (``number``), for callers that know them.
    """
    dimensions = number(connection, lines, {}) if numbers is None else numbers
    sums: dict[Place, Iterable[int]] = {}
    bins: dict[Place, dict[int, int]] = {}
    for line, dimension in zip(lines, dimensions, strict=True):
        place, amounts = (_bucket(line, now), dimension), _SUMS(line)
        sums[place] = tuple(map(add_up, sums[place], amounts)) if place in sums else amounts
        counts = bins.setdefault(place, {})
        for name, count in line.bins.items():
            bin_ = int(name)
            counts[bin_] = counts.get(bin_, 0) + count
    places = sorted(sums)
    sql.write_many(connection, sql.ADD_USAGE, [(*place, *sums[place]) for place in places])
    found = [(*place, bin_, bins[place][bin_]) for place in places for bin_ in sorted(bins[place])]
    sql.write_many(connection, sql.ADD_BIN, found)


def number(connection: Connection, lines: Iterable[UsageLine], known: Ids) -> list[int]:
    """The numbers of the lines' dimensions; those that are not known are added, and new ones get one."""
    dimensions = list(map(_DIMENSION, lines))
    numbers = list(map(known.get, dimensions))
    if None in numbers:
        missing = {dimension: None for dimension, found in zip(dimensions, numbers, strict=True) if found is None}
        known |= _ids(connection, list(missing))
    return [known[dimension] if found is None else found for dimension, found in zip(dimensions, numbers, strict=True)]


def _bucket(line: UsageLine, now: int) -> int:
    """The line's quarter hour; one that cannot be right is counted now."""
    believable = now - OLDEST_MS <= line.bucket <= now + NEWEST_MS
    return (line.bucket if believable else now) // BUCKET_MS * BUCKET_MS


def _ids(connection: Connection, dimensions: list[Dimension]) -> Ids:
    hashes = {dimension: _hash(dimension) for dimension in dimensions}
    known = _known(connection, hashes.values())
    missing = [dimension for dimension, digest in hashes.items() if digest not in known]
    if missing:
        stored = _bounded(connection, missing)
        hashes |= {dimension: _hash(kept) for dimension, kept in stored.items()}
        rows = {_hash(kept): kept for kept in stored.values()}
        sql.write(connection, sql.ADD_DIM, (_dim_row(digest, kept) for digest, kept in sorted(rows.items())))
        known |= _known(connection, rows)
    return {dimension: known[digest] for dimension, digest in hashes.items()}


def _known(connection: Connection, hashes: Any) -> dict[str, int]:
    rows = sql.read(connection, sql.DIMS, ids=sql.as_list(set(hashes)))
    return {row.hash: row.id for row in rows}


def _bounded(connection: Connection, missing: list[Dimension]) -> dict[Dimension, Dimension]:
    """What each new dimension is stored as: itself, or without caller and feature where a namespace has too many."""
    namespaces = sql.as_list({dimension[0] for dimension in missing})
    counts = Counter({row.namespace: row.dims for row in sql.read(connection, sql.DIM_COUNTS, ids=namespaces)})
    stored = {}
    for dimension in missing:
        counts[dimension[0]] += 1
        namespace, _caller, _feature, *rest = dimension
        stored[dimension] = dimension if counts[namespace] <= MAX_DIMS else (namespace, OTHER, OTHER, *rest)
    return stored


def _dim_row(digest: str, dimension: Dimension) -> dict[str, str | int]:
    return {"hash": digest, **dict(zip(sql.DIM_COLUMNS, dimension, strict=True))}


@lru_cache(maxsize=65_536)
def _hash(dimension: Dimension) -> str:
    return blake2b(msgspec.json.encode(dimension), digest_size=16).hexdigest()
