"""What a journal's records look like, and what they add up to. Pure.

A segment is ``MAGIC``, a SNAPSHOT, then the records since. A record is a CRC-32 and the length of what follows, then
its kind and its fields, little-endian. What is not written yet is zero. A key stands for a holding: twice the ledger's
id of the account, plus the class.

A process can be killed within any store, so a record is whole or it was not written: a torn OPEN was never acted upon,
and a torn SETTLE leaves its reservation open, which counts as its bound.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from fairlead_router.contract import (
    BUCKET_MS,
    Close,
    Holding,
    SyncRequest,
    Unknown,
    UsageLine,
    cost_bin,
)

MAGIC: Final = b"FLJRNL01"
HEAD: Final = struct.Struct("<II")
OPEN, SETTLE, SEAL, ACK, DIM, SNAPSHOT = range(1, 7)
OPEN_FIELDS: Final = "<BQH"
"""Kind, number of the reservation, number of pieces; then key and amount of each. The same number again: raised."""
SETTLE_FIELDS: Final = "<BQHqIqqqq"
"""Kind, number, number of pieces, time (ms), dimension, tokens of the prompt, cached, output, nano-USD; then key,
charge and how much of it is unbacked. Dimension 0: nothing to report; number 0: nothing was reserved."""
SEAL_FIELDS: Final = struct.Struct("<BQ")
"""Kind, number of the message; then its bytes."""
ACK_FIELDS: Final = "<BQI"
"""Kind, number of the message, number of grants; then key and running total of each."""
DIM_FIELDS: Final = struct.Struct("<BI")
"""Kind, number of the dimension; then a usage line without counts, in msgpack."""
MAX_LINES: Final = 4_000
"""Holdings, and usage lines, of one message of a successor."""

Amounts = tuple[tuple[int, int], ...]
Identity = tuple[str | int, ...]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """Everything that counts at one instant, so that older segments are not needed.

    ``holdings`` are (key, granted, returned, charged, unbacked); ``open`` the reservations with their amounts by key;
    ``outstanding`` the messages that the ledger has not answered.
    """

    session: str
    boot: str
    """The kernel's boot_id: what a machine that went down had not written is unknown."""
    seq: int = 0
    acked: int = 0
    holdings: tuple[tuple[int, int, int, int, int], ...] = ()
    open: tuple[tuple[int, Amounts], ...] = ()
    usage: tuple[UsageLine, ...] = ()
    outstanding: tuple[tuple[int, bytes], ...] = ()


@dataclass(slots=True)
class Totals:
    """Running totals of a holding. ``told``: a message said so."""

    granted: int = 0
    returned: int = 0
    charged: int = 0
    unbacked: int = 0
    told: bool = False


@dataclass(slots=True)
class Counts:
    """What was used of a dimension in a bucket."""

    line: UsageLine
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    nano_usd: int = 0
    bins: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Estate:
    """What a session left: what it holds, what was under way, and what the ledger was not told."""

    session: str
    boot: str
    seq: int = 0
    acked: int = 0
    closed: bool = False
    """The last message is the session's last word."""
    holdings: dict[int, Totals] = field(default_factory=dict)
    open: dict[int, Amounts] = field(default_factory=dict)
    usage: dict[tuple[int, Identity], Counts] = field(default_factory=dict)
    outstanding: dict[int, bytes] = field(default_factory=dict)
    end: int = 0
    """Bytes of the segment that were read."""
    torn: bool = False
    """Its last record was not finished."""

    def unknown(self) -> dict[int, int]:
        """Bounds of what was under way, by key."""
        found: dict[int, int] = {}
        for amounts in self.open.values():
            for key, amount in amounts:
                found[key] = found.get(key, 0) + amount
        return found


def key_of(account: int, klass: int) -> int:
    """The key of a holding."""
    return 2 * account + klass


def payloads(data: bytes) -> Iterator[tuple[memoryview, int]]:
    """Each whole record, and where it ends; stops at the first that is not whole."""
    view, at = memoryview(data), len(MAGIC)
    while at + HEAD.size <= len(data):
        crc, length = HEAD.unpack_from(data, at)
        start, end = at + HEAD.size, at + HEAD.size + length
        if not length or end > len(data) or zlib.crc32(view[start:end], length) != crc:
            return
        yield view[start:end], end
        at = end


def fold(data: bytes) -> Estate | None:
    """What a segment adds up to; None if it never began."""
    if data[: len(MAGIC)] != MAGIC:
        return None
    records = payloads(data)
    first, end = next(records, (memoryview(b"\0"), 0))
    if first[0] != SNAPSHOT:
        return None
    estate = _begun(msgspec.msgpack.decode(first[1:], type=Snapshot))
    dims: dict[int, UsageLine] = {}
    for payload, after in records:
        _apply(estate, dims, payload)
        end = after
    estate.end = end
    estate.torn = any(data[end : end + HEAD.size])
    return estate


def _begun(snapshot: Snapshot) -> Estate:
    estate = Estate(snapshot.session, snapshot.boot, snapshot.seq, snapshot.acked)
    estate.holdings = {line[0]: Totals(line[1], line[2], line[3], line[4]) for line in snapshot.holdings}
    estate.open = dict(snapshot.open)
    estate.outstanding = dict(snapshot.outstanding)
    estate.closed = any(_message(body).close is not None for _, body in snapshot.outstanding)
    for line in snapshot.usage:
        counts = estate.usage[line.bucket, identity(line)] = Counts(line)
        _count(counts, line.requests, (line.prompt, line.cached, line.output, line.nano_usd))
        counts.bins = dict(line.bins)
    return estate


def _apply(estate: Estate, dims: dict[int, UsageLine], payload: memoryview) -> None:
    kind = payload[0]
    if kind == OPEN:
        _, number, count = struct.unpack_from(OPEN_FIELDS, payload)
        values = struct.unpack_from(f"<{2 * count}q", payload, struct.calcsize(OPEN_FIELDS))
        estate.open[number] = tuple(zip(values[::2], values[1::2], strict=True))
    elif kind == SETTLE:
        _settled(estate, dims, payload)
    elif kind == SEAL:
        _, seq = SEAL_FIELDS.unpack_from(payload)
        _sealed(estate, seq, bytes(payload[SEAL_FIELDS.size :]))
    elif kind == ACK:
        _acked(estate, payload)
    elif kind == DIM:
        _, number = DIM_FIELDS.unpack_from(payload)
        dims[number] = msgspec.msgpack.decode(payload[DIM_FIELDS.size :], type=UsageLine)


def _settled(estate: Estate, dims: dict[int, UsageLine], payload: memoryview) -> None:
    _, number, count, at_ms, dim, *spent = struct.unpack_from(SETTLE_FIELDS, payload)
    values = struct.unpack_from(f"<{3 * count}q", payload, struct.calcsize(SETTLE_FIELDS))
    for key, charge, unbacked in zip(values[::3], values[1::3], values[2::3], strict=True):
        totals = estate.holdings.setdefault(key, Totals())
        totals.charged += charge
        totals.unbacked += unbacked
        totals.told = False
    estate.open.pop(number, None)
    if dim:
        line, bucket = dims[dim], at_ms - at_ms % BUCKET_MS
        counts = estate.usage.setdefault((bucket, identity(line)), Counts(line))
        _count(counts, 1, (spent[0], spent[1], spent[2], spent[3]))
        index = str(cost_bin(spent[3]))
        counts.bins[index] = counts.bins.get(index, 0) + 1


def _count(counts: Counts, requests: int, spent: tuple[int, int, int, int]) -> None:
    counts.requests += requests
    counts.prompt += spent[0]
    counts.cached += spent[1]
    counts.output += spent[2]
    counts.nano_usd += spent[3]


def _message(body: bytes) -> SyncRequest:
    return msgspec.json.decode(body, type=SyncRequest)


def _sealed(estate: Estate, seq: int, body: bytes) -> None:
    """A message tells all usage so far, a successor's only the lines that it names."""
    message = _message(body)
    for holding in message.holdings:
        key = key_of(holding.account, holding.klass)
        estate.holdings[key] = Totals(holding.granted, holding.returned, holding.charged, holding.unbacked, told=True)
        if holding.final:
            del estate.holdings[key]
    if message.replay:
        for line in message.usage:
            estate.usage.pop((line.bucket, identity(line)), None)
    else:
        estate.usage.clear()
    estate.seq = max(estate.seq, seq)
    estate.outstanding[seq] = body
    estate.closed = message.close is not None


def _acked(estate: Estate, payload: memoryview) -> None:
    _, seq, count = struct.unpack_from(ACK_FIELDS, payload)
    values = struct.unpack_from(f"<{2 * count}q", payload, struct.calcsize(ACK_FIELDS))
    for key, granted in zip(values[::2], values[1::2], strict=True):
        totals = estate.holdings.setdefault(key, Totals(told=True))
        totals.granted = max(totals.granted, granted)
    estate.acked = max(estate.acked, seq)
    estate.outstanding = {number: body for number, body in estate.outstanding.items() if number > seq}


def identity(line: UsageLine) -> Identity:
    """The dimension of a usage line."""
    return (
        line.namespace, line.caller, line.feature, line.model, line.pool, line.variant, line.route, line.cache,
        line.attempt, line.basis, line.card,
    )  # fmt: skip


def last_words(estate: Estate, boot: str, sent_at: int) -> list[SyncRequest]:
    """The messages that close a session: what the ledger was not told of it, then what nobody can tell.

    ``complete`` only if this is still the same boot of the machine: what was written last may be missing otherwise.
    """
    holdings, usage = _holdings(estate), _lines(estate)
    unknown = tuple(Unknown(account=k // 2, klass=k % 2, amount=v) for k, v in sorted(estate.unknown().items()))
    parts = max(1, -(-len(holdings) // MAX_LINES), -(-len(usage) // MAX_LINES))
    return [
        SyncRequest(
            session=estate.session,
            seq=estate.seq + 1 + index,
            sent_at=sent_at,
            replay=True,
            holdings=tuple(holdings[index * MAX_LINES : (index + 1) * MAX_LINES]),
            usage=tuple(usage[index * MAX_LINES : (index + 1) * MAX_LINES]),
            close=Close(complete=estate.boot == boot != "", unknown=unknown) if index == parts - 1 else None,
        )
        for index in range(parts)
    ]


def _holdings(estate: Estate) -> list[Holding]:
    return [
        Holding(
            account=key // 2,
            klass=key % 2,
            granted=totals.granted,
            returned=totals.returned,
            charged=totals.charged,
            unbacked=totals.unbacked,
        )
        for key, totals in sorted(estate.holdings.items())
        if not totals.told
    ]


def _lines(estate: Estate) -> list[UsageLine]:
    return [
        msgspec.structs.replace(
            counts.line,
            bucket=bucket,
            requests=counts.requests,
            prompt=counts.prompt,
            cached=counts.cached,
            output=counts.output,
            nano_usd=counts.nano_usd,
            bins=counts.bins,
        )
        for (bucket, _), counts in estate.usage.items()
    ]
