"""How large a request can get, and which route fits: upper bounds for money, calibrated estimates for routes. Pure.

A bound must hold for every prompt, so it counts bytes; an estimate only picks a route, so it follows what the engines
reported. Nothing is ever admitted on an estimate.
"""

from typing import Final

import msgspec

from fairlead_router.answers import Refusal, bad_request
from fairlead_router.body import Body
from fairlead_router.contract import Card, PolicyConfig, RouteConfig, Unit, reserve_nano

TEMPLATE_TOKENS: Final = 256
"""Room for what a chat template adds that is not in the body: the preamble and the opening of the answer."""
START_BYTES_PER_TOKEN: Final = 4.0
CAUTION: Final = 0.9
"""Share of the measured bytes per token that an estimate relies on."""
_WEIGHT: Final = 0.05
_LEAST_BYTES, _MOST_BYTES = 1.0, 16.0


class Calibration:
    """Bytes of a body per prompt token of one pool, learned from the usage that its engines report."""

    __slots__ = ("bytes_per_token",)

    def __init__(self) -> None:
        self.bytes_per_token = START_BYTES_PER_TOKEN

    def observe(self, size: int, prompt_tokens: int) -> None:
        """Take one settled request into account."""
        if prompt_tokens <= 0:
            return
        seen = min(_MOST_BYTES, max(_LEAST_BYTES, size / prompt_tokens))
        self.bytes_per_token += _WEIGHT * (seen - self.bytes_per_token)

    def estimate(self, size: int) -> int:
        """Prompt tokens that a body of this size probably has, on the careful side."""
        return int(size / (self.bytes_per_token * CAUTION)) + 1


class Fit(msgspec.Struct, frozen=True):
    """A route for a request: its place in the policy, and the output cap to write. ``clamped``: less than asked."""

    index: int
    route: RouteConfig
    cap: int
    clamped: bool


def prompt_bound(body: Body) -> int:
    """Prompt tokens that the request cannot exceed: a token has at least one byte, and tools are printed indented."""
    return body.size + TEMPLATE_TOKENS + body.tools_size


def reserve_amount(unit: Unit, card: Card | None, body: Body, cap: int) -> int:
    """What the request can cost at most, in the unit of a budget."""
    if unit == "Requests":
        return 1
    prompt, output = prompt_bound(body), body.outputs * cap
    if unit == "Tokens":
        return prompt + output
    return reserve_nano(card, prompt, output) if card is not None else 0


def wanted_output(policy: PolicyConfig, body: Body) -> int | None:
    """The output cap before the route is known: what was asked, else the policy's default; never above its maximum."""
    if not body.generates:
        return 0
    ceiling = policy.max_output_tokens or None
    wanted = body.max_tokens if body.max_tokens is not None else policy.default_output_tokens or ceiling
    if wanted is None or ceiling is None:
        return wanted
    return min(wanted, ceiling)


def fit(policy: PolicyConfig, body: Body, calibration: Calibration, start: int = 0) -> Fit | Refusal:
    """The smallest route, from ``start`` on, that takes prompt and output; else the largest one with less output."""
    estimate = calibration.estimate(body.size + body.tools_size)
    wanted = wanted_output(policy, body)
    least = 1 if body.generates else 0
    largest: tuple[int, RouteConfig] | None = None
    for index in range(start, len(policy.routes)):
        route = policy.routes[index]
        if estimate + (least if wanted is None else wanted) <= route.max_context_tokens:
            room = route.max_context_tokens - estimate
            return _fitted(index, route, room if wanted is None else wanted, body)
        if route.max_context_tokens > 0:
            largest = (index, route)
    if largest is not None and estimate + least <= largest[1].max_context_tokens:
        return _fitted(*largest, largest[1].max_context_tokens - estimate, body)
    most = max((route.max_context_tokens for route in policy.routes), default=0)
    return too_long(body.model, estimate, wanted or least, most)


def _fitted(index: int, route: RouteConfig, cap: int, body: Body) -> Fit:
    return Fit(index, route, cap, clamped=body.max_tokens is not None and cap < body.max_tokens)


def too_long(model: str, prompt: int, output: int, most: int) -> Refusal:
    """The 400 for a request that no route takes."""
    total = prompt + output
    return bad_request(
        f"This request has about {prompt:,} prompt + {output:,} output = {total:,} tokens; model {model} takes at most "
        f"{most:,}. Remove {max(1, total - most):,}.",
        "messages",
        "context_length_exceeded",
    )
