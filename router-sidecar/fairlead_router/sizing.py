"""How large a request can get, and which route fits: upper bounds for money, calibrated estimates for routes. Pure.

A bound must hold for every prompt, so it counts bytes, or what the engine's context can hold at most. An estimate only
picks a route, so it follows what the engines reported. Nothing is ever admitted on an estimate.
"""

from typing import Final

from fairlead_router.answers import Refusal, bad_request
from fairlead_router.body import CODE, MEDIA, TEMPLATE_TOKENS, Body
from fairlead_router.contract import Card, PolicyConfig, RouteConfig, Unit, reserve_nano
from fairlead_router.structs import Frozen

START_LOW: Final[tuple[float, ...]] = (3.6, 2.5, 2.2, 3.0, 2.5)
"""Bytes per token that a careful estimate starts with, by content class: few prompts have fewer."""
START_HIGH: Final[tuple[float, ...]] = (6.0, 5.0, 6.0, 12.0, 5.0)
"""The same of the other estimate: few prompts have more."""
TAIL: Final = 0.05
"""The share of prompts that have more tokens than the careful estimate, and of those below the other one."""
LEARNED_FROM: Final = 1024
"""Bytes: in a shorter body the members around the prompt and the template's preamble weigh more than its text."""
MEDIA_TOKENS: Final = 1_500
"""What a part that is not text is estimated at: an image of a megapixel in the usual vision encoders."""
MEDIA_LEAST: Final = 64
_LOWEST, _HIGHEST = 1.0, 24.0

_STEP: Final = 0.03
"""Share of its value by which an observation moves a quantile: enough to follow a change within a hundred requests, and
the quantile then trembles by 2 %."""
_DOWN_OF_LOW, _UP_OF_LOW = 1.0 - _STEP * (1.0 - TAIL), 1.0 + _STEP * TAIL
_DOWN_OF_HIGH, _UP_OF_HIGH = 1.0 - _STEP * TAIL, 1.0 + _STEP * (1.0 - TAIL)


class Calibration:
    """Bytes of a body per prompt token of one pool, learned from the usage that its engines report.

    For each content class two quantiles are followed by stochastic approximation: an observation beyond a quantile
    moves it by a large part of a step, any other by a small part the other way, so that it comes to rest where the
    share beyond it is ``TAIL``.
    """

    __slots__ = ("_high", "_low")

    def __init__(self) -> None:
        self._low = list(START_LOW)
        self._high = list(START_HIGH)

    def observe(self, size: int, kind: int, prompt_tokens: int) -> None:
        """Take one settled request into account: the bytes of its body, and the tokens that the engine counted."""
        if prompt_tokens <= 0 or size < LEARNED_FROM or kind == MEDIA:
            return
        seen = size / prompt_tokens
        low, high = self._low, self._high
        now = low[kind]
        low[kind] = now * _UP_OF_LOW if seen > now else max(_LOWEST, now * _DOWN_OF_LOW)
        now = high[kind]
        high[kind] = now * _DOWN_OF_HIGH if seen < now else min(_HIGHEST, now * _UP_OF_HIGH)

    def estimate(self, size: int, kind: int) -> int:
        """Prompt tokens that a text of this size hardly exceeds."""
        return int(size / self._low[kind]) + 1

    def least(self, size: int, kind: int) -> int:
        """Prompt tokens that a text of this size hardly falls below."""
        return int(size / self._high[kind]) + 1


class Fit(Frozen, frozen=True):
    """A route for a request: its place in the policy, and the output cap to write. ``clamped``: less than asked.

    ``estimate`` are the prompt tokens that the route was picked for.
    """

    index: int
    route: RouteConfig
    cap: int
    clamped: bool
    estimate: int


def prompt_bound(body: Body, context: int) -> int | None:
    """Prompt tokens that the request cannot exceed on a pool whose engines take ``context`` tokens (0: unknown).

    A token has at least one byte of the rendered prompt: the body, what templates add, tools as the widest template
    prints them. What generates never runs with more than its context, so for each prompt that is a bound as well; a
    pooling task may cut a long text into several runs, so there it bounds only what is not text. ``None``: there is
    no bound, since the prompt is not text alone and the context is unknown.
    """
    if body.text_only:
        bound = body.size + TEMPLATE_TOKENS + body.extra_bytes
        if context and body.path.generates:
            most = context * body.prompts
            return min(bound, most)
        return bound
    return context * body.prompts if context else None


USD, TOKENS, REQUESTS = 0, 1, 2
"""Places of the units in amounts."""
UNIT_AT: Final[dict[Unit, int]] = {"USD": USD, "Tokens": TOKENS, "Requests": REQUESTS}
NO_AMOUNTS: Final = (0, 0, 1)
"""What is reserved for a request that costs nothing, or has no bound and meets only budgets that refuse nothing."""


def amounts_of(card: Card | None, body: Body, cap: int, context: int) -> tuple[int, int, int] | None:
    """Nano-USD, tokens and requests that it can cost at most; ``None``: it has no bound (see ``prompt_bound``)."""
    if body.path.free:
        return NO_AMOUNTS
    prompt = prompt_bound(body, context)
    if prompt is None:
        return None
    output = body.outputs * cap
    return (reserve_nano(card, prompt, output) if card is not None else 0), prompt + output, 1


def wanted_output(policy: PolicyConfig, body: Body) -> int | None:
    """The output cap before the route is known: what was asked, else the policy's default; never above its maximum."""
    if not body.path.generates:
        return 0
    ceiling = policy.max_output_tokens
    wanted = body.max_tokens
    if wanted is None:
        wanted = policy.default_output_tokens or ceiling or None
    return ceiling if wanted is not None and 0 < ceiling < wanted else wanted


def fit(policy: PolicyConfig, body: Body, calibration: Calibration, start: int = 0) -> Fit | Refusal:
    """The smallest route, from ``start`` on, that takes prompt and output; else the largest one with less output.

    A prompt that is too long for the largest route by the careful estimate only still goes there: an engine refuses
    what it cannot take, and costs nothing by it. Refused is what exceeds that route by the other estimate as well.
    """
    kind = body.kind
    estimate = calibration.estimate(body.longest, kind) if kind != MEDIA else _with_media(body, calibration)
    wanted = wanted_output(policy, body)
    needed = estimate + (1 if wanted is None else wanted)
    routes = policy.routes
    for index in range(start, len(routes)):
        route = routes[index]
        context = route.max_context_tokens
        if needed <= context:
            cap = context - estimate if wanted is None else wanted
            asked = body.max_tokens
            return Fit(index, route, cap, asked is not None and cap < asked, estimate)
    return _largest(policy, body, calibration, estimate, start)


def _with_media(body: Body, calibration: Calibration) -> int:
    return calibration.estimate(body.longest, CODE) + body.media * MEDIA_TOKENS


def _least(body: Body, calibration: Calibration) -> int:
    if body.kind != MEDIA:
        return calibration.least(body.longest, body.kind)
    return calibration.least(body.longest, CODE) + body.media * MEDIA_LEAST


def _largest(policy: PolicyConfig, body: Body, calibration: Calibration, estimate: int, start: int) -> Fit | Refusal:
    """The largest route of known size with as much output as it has room for, or the refusal that names it."""
    known = [index for index in range(start, len(policy.routes)) if policy.routes[index].max_context_tokens > 0]
    least, wanted = _least(body, calibration), wanted_output(policy, body)
    output = 1 if wanted is None else min(1, wanted)
    if known:
        route = policy.routes[known[-1]]
        # An engine cuts what it is asked to cut, and pooling tasks may run a long text in pieces.
        whole = 0 if body.cut or not body.path.generates else least
        for prompt in (estimate, whole):
            room = route.max_context_tokens - prompt
            if room >= output:
                cap = room if wanted is None else min(wanted, room)
                return Fit(known[-1], route, cap, body.max_tokens is not None and cap < body.max_tokens, estimate)
    most = max((route.max_context_tokens for route in policy.routes), default=0)
    return too_long(body.model, body.path.prompt, least, wanted or output, most)


def too_long(model: str, member: str, prompt: int, output: int, most: int) -> Refusal:
    """The 400 for a request that no route takes; ``prompt`` tokens are an estimate."""
    total = prompt + output
    return bad_request(
        f"This request has about {prompt:,} prompt + {output:,} output = {total:,} tokens; model {model} takes at most "
        f"{most:,}. Remove {max(1, total - most):,}.",
        member,
        "context_length_exceeded",
    )
