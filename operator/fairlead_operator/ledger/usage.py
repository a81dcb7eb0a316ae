"""Usage lines, added up in quarter hours by dimension."""

from collections import Counter
from collections.abc import Callable, Iterable
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
_DIMENSION: Callable[[UsageLine], Dimension] = attrgetter(*sql.DIM_COLUMNS)
_SUMS: Callable[[UsageLine], tuple[int, ...]] = attrgetter(*sql.SUMS)


def add(connection: Connection, lines: Iterable[UsageLine], now: int) -> None:
    """Add lines to the sums; the sequence number of their message takes care that each comes once."""
    placed = [(_DIMENSION(line), _bucket(line, now), line) for line in lines]
    if not placed:
        return
    ids = _ids(connection, list(dict.fromkeys(dimension for dimension, _, _ in placed)))
    sums: dict[tuple[int, int], Iterable[int]] = {}
    bins: dict[tuple[int, int, int], int] = {}
    for dimension, bucket, line in placed:
        place = bucket, ids[dimension]
        told = _SUMS(line)
        sums[place] = tuple(map(add_up, sums[place], told)) if place in sums else told
        for index, count in line.bins.items():
            bin_ = *place, int(index)
            bins[bin_] = bins.get(bin_, 0) + count
    sql.write_many(connection, sql.ADD_USAGE, [(*place, *told) for place, told in sorted(sums.items())])
    sql.write_many(connection, sql.ADD_BIN, [(*bin_, count) for bin_, count in sorted(bins.items())])


def _bucket(line: UsageLine, now: int) -> int:
    """The line's quarter hour; one that cannot be right is counted now."""
    believable = now - OLDEST_MS <= line.bucket <= now + NEWEST_MS
    return (line.bucket if believable else now) // BUCKET_MS * BUCKET_MS


def _ids(connection: Connection, dimensions: list[Dimension]) -> dict[Dimension, int]:
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
