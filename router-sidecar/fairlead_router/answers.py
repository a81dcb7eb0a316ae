"""What the router itself says to clients: errors in OpenAI's shape, headers, amounts of money as text.

Codes are stable and part of the interface; the texts are not. Everything here is pure.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

import msgspec

from fairlead_router.contract import NANO_PER_USD, Unit

Headers = tuple[tuple[str, str], ...]

NO_RETRY: Final[Headers] = (("x-should-retry", "false"),)
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_NANO_PER_MICRO: Final = 1_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the router answers itself. ``facts`` become ``error.fairlead``."""

    status: int
    code: str
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    headers: Headers = ()
    facts: tuple[tuple[str, str], ...] = ()


def bad_request(message: str, param: str | None = None, code: str = "bad_request") -> Refusal:
    """A 400 that no retry cures."""
    return Refusal(400, code, message, param=param, headers=NO_RETRY)


def unavailable(code: str, message: str, retry_after_s: int | None = None) -> Refusal:
    """A 503; with ``retry_after_s`` when waiting helps."""
    headers: Headers = (
        () if retry_after_s is None else (("retry-after", str(retry_after_s)), ("x-should-retry", "true"))
    )
    return Refusal(503, code, message, "service_unavailable_error", headers=headers)


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """The JSON of a refusal: OpenAI's four fields, and ours under ``fairlead``."""
    error = {
        "message": refusal.message,
        "type": refusal.kind,
        "param": refusal.param,
        "code": refusal.code,
        "fairlead": {**dict(refusal.facts), "request": request_id},
    }
    return msgspec.json.encode({"error": error})


def error_answer(refusal: Refusal, request_id: str, *, close: bool) -> bytes:
    """The whole response of a refusal."""
    headers = (("x-request-id", request_id), *refusal.headers)
    return answer(refusal.status, error_body(refusal, request_id), headers, close=close)


def answer(
    status: int, body: bytes, headers: Headers = (), *, close: bool = False, media: str = "application/json"
) -> bytes:
    """A whole response with a sized body."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", f"content-type: {media}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"content-length: {len(body)}")
    if close:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def reason_phrase(status: int) -> str:
    """The words that go with a status."""
    return _REASONS.get(status, "Unknown")


def usd(nano: int) -> str:
    """Nano-USD as a decimal with six places, rounded half to even."""
    micro, rest = divmod(nano, _NANO_PER_MICRO)
    half = _NANO_PER_MICRO // 2
    micro += rest > half or (rest == half and micro % 2 == 1)
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}"


def amount(value: int, unit: Unit) -> str:
    """An amount of a budget as people read it: USD with six places, everything else as a plain number."""
    return usd(value) if unit == "USD" else f"{value}"


def limit_text(value: int, unit: Unit) -> str:
    """A limit without the zeros that nobody wrote: ``12 USD``, ``0.0575 USD``, ``200 Requests``."""
    if unit != "USD":
        return f"{value} {unit}"
    text = usd(value).rstrip("0").rstrip(".")
    return f"{text} USD"


def remaining_text(value: int, unit: Unit) -> str:
    """What is left, rounded down so that it never promises more; cents are enough from one dollar on."""
    if unit != "USD":
        return f"{value}"
    if value >= NANO_PER_USD:
        cents = value // (NANO_PER_USD // 100)
        return f"{cents // 100}.{cents % 100:02d}"
    return usd(value - value % _NANO_PER_MICRO)


def instant(ms: int) -> str:
    """A time as RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
