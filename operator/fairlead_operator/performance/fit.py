"""A step's time from what a running engine shows, round by round, beginning with a seed and forgetting slowly.

In a round the mean time between two tokens t of a sequence is the mean step's, which with b decoding sequences, K
context tokens and P prompt tokens a second is base + per_context_token·K + per_token·(b + P·t). The coefficients, as
multiples of the seed's, minimise the relative squared errors of all rounds, weighted by age, plus their distance from
the seed: what the load never varied stays as the seed says. A round farther from what was expected than most counts
less, so a stray one moves little; when most are far, the engine has become another, and the fit begins anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from fairlead_operator.performance.step import StepTime

HALF_LIFE: Final = 1200.0
"""Seconds after which a round counts half."""
ANOTHER: Final = 0.25
"""Median error beyond which the engine is not the one that was fitted, and all is begun anew."""
SETTLED: Final = 36
"""Rounds that the median needs to say so."""
SPREAD: Final = 0.1
"""Relative error that a round is taken to have by itself: that of a mean over 5 s, and of the linear form."""
SEED_SPREAD: Final = 0.5
"""The same of the seed's coefficients."""
BOUNDS: Final = (0.2, 5.0)
"""Of a coefficient, in the seed's."""
STRAY: Final = 2.0
"""A round this many times farther off than the median begins to count less."""
LEAST_USUAL: Final = 0.02
USUAL_PACE: Final = 1.1
"""By what the running median of the errors moves with each round."""
ROUNDING: Final = 1e-9
LEAST_ROUNDS: Final = 12
"""Before these, a given seed holds; the first round's own guess is not decided by."""
ERROR_ROUNDS: Final = 60
"""Over how many rounds, about, the errors are averaged."""
LONGEST: Final = 10.0
SHORTEST: Final = 1e-6
"""Seconds between two tokens beyond which something else than steps was measured."""
MOST: Final = 1e9
"""Sequences or tokens beyond which a number is an error."""
FIRST_SHARES: Final = (0.8, 0.1, 0.1)
"""Of the first round's time, where there is no seed: a decoding engine mostly reads weights."""
WITHIN: Final = 2.0
"""How far a round's time is believed, times or divided by, when prompt tokens are shared out among its steps."""

_Vector = tuple[float, float, float]
_UNIT: Final[tuple[_Vector, _Vector, _Vector]] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_ZERO: Final[_Vector] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Round:
    """What one replica showed between two scrapes: means, and prompt tokens computed a second.

    ``inter_token`` is in seconds; ``context_tokens`` are those of all decoding sequences together.
    """

    inter_token: float
    sequences: float
    context_tokens: float
    prompt_tokens_per_second: float

    @property
    def idle(self) -> bool:
        """Whether nothing was decoded, so that the round says nothing."""
        return self.sequences == 0 or self.inter_token == 0

    @property
    def usable(self) -> bool:
        """Whether sequences decoded and every number can be true."""
        numbers = (self.inter_token, self.sequences, self.context_tokens, self.prompt_tokens_per_second)
        return (
            all(0 <= number <= MOST for number in numbers)
            and SHORTEST <= self.inter_token <= LONGEST
            and self.sequences > 0
        )

    def step_tokens(self, step: float) -> float:
        """Tokens computed in a step of so many seconds."""
        return self.sequences + self.prompt_tokens_per_second * step


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one engine's /metrics: the sum and count of ``vllm:inter_token_latency_seconds``, prompt tokens computed.

    The last is ``vllm:prompt_tokens_by_source_total`` of source local_compute, or ``vllm:prompt_tokens_total`` where no
    prefix is cached. ``running`` and ``kv_tokens`` (use times size) are gauges.
    """

    inter_token_sum: float
    inter_token_count: float
    prompt_tokens: float
    running: float
    kv_tokens: float


def round_between(before: Sample, after: Sample, seconds: float) -> Round | None:
    """The round between two samples; ``None`` if no token came after another, or a counter began anew.

    Sequences are tokens a second times the seconds between two: the mean over the round, which gauges are not.
    """
    tokens = after.inter_token_count - before.inter_token_count
    summed = after.inter_token_sum - before.inter_token_sum
    prompts = after.prompt_tokens - before.prompt_tokens
    if not (seconds > 0 and tokens > 0 and summed > 0 and prompts >= 0):
        return None
    running = before.running + after.running
    each = (before.kv_tokens + after.kv_tokens) / running if running > 0 else 0.0
    sequences = summed / seconds
    return Round(summed / tokens, sequences, each * sequences, prompts / seconds)


@dataclass(frozen=True, slots=True)
class Memory:
    """All that is kept of the rounds. ``seed`` is ``None`` until it is given or a first round makes one.

    ``moments`` are the weighted products of the regressors in the order 00 01 02 11 12 22, ``targets`` those with the
    time. Errors are relative means: of the fit, and of the seed, each before it saw the round; ``usual`` is the fit's
    median.
    """

    seed: StepTime | None
    given: bool
    moments: tuple[float, ...] = (0.0,) * 6
    targets: _Vector = _ZERO
    coefficients: _Vector = (1.0, 1.0, 1.0)
    rounds: int = 0
    ignored: int = 0
    seconds: float = 0.0
    usual: float = SEED_SPREAD
    error: float = 0.0
    seed_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Fit:
    """The step's time to go by, ``None`` while nothing is known; its relative error once measured; why."""

    step: StepTime | None
    error: float | None
    reason: str


def start(seed: StepTime | None) -> Memory:
    """Before the first round. Without a seed the first usable round makes one."""
    return Memory(seed=seed, given=seed is not None)


def observe(memory: Memory, rounds: Sequence[Round], seconds: float) -> Memory:
    """The memory after so many seconds in which the replicas, all of one engine, showed these rounds."""
    memory = _aged(memory, max(0.0, seconds))
    for one in rounds:
        if one.usable:
            memory = _learned(memory, one)
        elif not one.idle:
            memory = replace(memory, ignored=memory.ignored + 1)
    return memory


def fitted(memory: Memory) -> Fit:
    """What the rounds say: the fit, unless a given seed foretells them better."""
    if memory.seed is None:
        return Fit(None, None, f"nothing known: no seed, and no round with decoding sequences{_ignored(memory)}")
    if memory.rounds < LEAST_ROUNDS:
        reason = f"{_source(memory)}; {memory.rounds} of {LEAST_ROUNDS} rounds seen{_ignored(memory)}"
        return Fit(memory.seed if memory.given else None, None, reason)
    if memory.given and memory.error >= memory.seed_error:
        reason = f"seed, error {memory.seed_error:.0%}; the fit has {memory.error:.0%}{_ignored(memory)}"
        return Fit(memory.seed, memory.seed_error, reason)
    over = f"{memory.seconds / 60:.0f} m" if memory.seconds >= 60 else f"{memory.seconds:.0f} s"  # noqa: PLR2004
    reason = (
        f"fitted over {over}, error {memory.error:.0%} ({_source(memory)} {memory.seed_error:.0%}){_ignored(memory)}"
    )
    return Fit(_step(memory.seed, memory.coefficients), memory.error, reason)


def _source(memory: Memory) -> str:
    return "seed" if memory.given else "first round"


def _ignored(memory: Memory) -> str:
    return f"; {memory.ignored} rounds ignored, as they cannot be true" if memory.ignored else ""


def _aged(memory: Memory, seconds: float) -> Memory:
    kept = 0.5 ** (seconds / HALF_LIFE)
    return replace(
        memory,
        moments=tuple(kept * one for one in memory.moments),
        targets=_scaled(memory.targets, kept),
        seconds=memory.seconds + seconds if memory.rounds else memory.seconds,
    )


def _learned(memory: Memory, one: Round) -> Memory:
    """The memory after a usable round."""
    if memory.rounds >= SETTLED and memory.usual > ANOTHER:
        memory = replace(start(memory.seed if memory.given else None), ignored=memory.ignored)
    seed = memory.seed or _first_seed(one)
    terms = _terms(seed, one, one.inter_token)
    foretold = _dot(terms, memory.coefficients)
    terms = _terms(seed, one, min(WITHIN * foretold, max(foretold / WITHIN, one.inter_token)))
    expected = _dot(terms, memory.coefficients)
    # Relative to what was expected: relative to the round's own time, one far too short would outweigh all others.
    regressors, target = _scaled(terms, 1 / expected), one.inter_token / expected
    error = abs(target - 1)
    weight = min(1.0, STRAY * memory.usual / max(error, LEAST_USUAL)) ** 2
    a, b, c = regressors
    products = (a * a, a * b, a * c, b * b, b * c, c * c)
    moments = tuple(old + weight * new for old, new in zip(memory.moments, products, strict=True))
    targets = _plus(memory.targets, _scaled(regressors, weight * target))
    share = 1 / min(memory.rounds + 1, ERROR_ROUNDS)
    return replace(
        memory,
        seed=seed,
        moments=moments,
        targets=targets,
        coefficients=_solved(moments, targets),
        rounds=memory.rounds + 1,
        usual=max(LEAST_USUAL, min(1.0, memory.usual * (USUAL_PACE if error > memory.usual else 1 / USUAL_PACE))),
        error=memory.error + share * (_error(expected, one) - memory.error),
        seed_error=memory.seed_error + share * (_error(sum(terms), one) - memory.seed_error),
    )


def _terms(seed: StepTime, one: Round, step: float) -> _Vector:
    """The seed's three parts of the time of the round's mean step, which takes so many seconds."""
    return seed.base, seed.per_context_token * one.context_tokens, seed.per_token * one.step_tokens(step)


def _error(expected: float, one: Round) -> float:
    """Relative to the round's time; 1 at most, so that a stray one does not hide all others."""
    return min(1.0, abs(expected / one.inter_token - 1))


def _first_seed(one: Round) -> StepTime:
    base, context, tokens = _scaled(FIRST_SHARES, one.inter_token)
    return StepTime(base, context / max(1.0, one.context_tokens), tokens / one.step_tokens(one.inter_token))


def _solved(moments: Sequence[float], targets: _Vector) -> _Vector:
    """The least squares within the bounds: each coefficient free or at a bound, whichever of the 27 cases is least."""
    pull = (SPREAD / SEED_SPREAD) ** 2
    m00, m01, m02, m11, m12, m22 = moments
    matrix = ((m00 + pull, m01, m02), (m01, m11 + pull, m12), (m02, m12, m22 + pull))
    aims = _plus(targets, (pull, pull, pull))
    free = _with(matrix, aims, (None, None, None))
    if _inside(free):
        return free
    cases = (_with(matrix, aims, held) for held in product((None, *BOUNDS), repeat=3))
    return min((case for case in cases if _inside(case)), key=lambda case: _loss(matrix, aims, case))


def _with(matrix: tuple[_Vector, _Vector, _Vector], aims: _Vector, held: Sequence[float | None]) -> _Vector:
    """The least squares with these coefficients held, the others free: Gauss's elimination, positive definite."""
    rows = [[*matrix[i], aims[i]] if held[i] is None else [*_UNIT[i], held[i] or 0.0] for i in range(3)]
    for i in range(3):
        for j in range(3):
            if j != i:
                factor = rows[j][i] / rows[i][i]
                rows[j] = [one - factor * other for one, other in zip(rows[j], rows[i], strict=True)]
    return rows[0][3] / rows[0][0], rows[1][3] / rows[1][1], rows[2][3] / rows[2][2]


def _loss(matrix: tuple[_Vector, _Vector, _Vector], aims: _Vector, at: _Vector) -> float:
    return _dot(at, (_dot(matrix[0], at), _dot(matrix[1], at), _dot(matrix[2], at))) - 2 * _dot(aims, at)


def _inside(at: _Vector) -> bool:
    low, high = BOUNDS
    return all(low * (1 - ROUNDING) <= one <= high * (1 + ROUNDING) for one in at)


def _step(seed: StepTime, coefficients: _Vector) -> StepTime:
    base, context, tokens = coefficients
    return StepTime(seed.base * base, seed.per_context_token * context, seed.per_token * tokens)


def _scaled(vector: _Vector, factor: float) -> _Vector:
    return vector[0] * factor, vector[1] * factor, vector[2] * factor


def _plus(one: _Vector, other: _Vector) -> _Vector:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _dot(one: _Vector, other: _Vector) -> float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]
