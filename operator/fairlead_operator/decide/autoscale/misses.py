"""The price of a missed objective, so that the misses of a rolling day end at what the objectives allow.

Every finished request allows 1 - attainment of a miss. The price rises while more is spent than allowed, and falls
while allowance is left over: it is the dual variable of "attainment of a rolling day". A small reserve is kept, because
a step of the demand spends much at once.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

DAY_S: Final = 86_400.0
RESERVE: Final = 0.16
"""Share of a day's allowance that should be left, where replicas start within ``QUICK_S``."""
MOST_RESERVE: Final = 0.2
"""The same where they take ``SLOW_S`` or longer: a step of the demand spends more before they are ready."""
QUICK_S: Final = 120.0
SLOW_S: Final = 300.0
GAIN: Final = 1.5
"""Change of the price's logarithm for a day's allowance."""
DRIFT: Final = 12.0 / DAY_S
FIRST_PRICE: Final = 10.0
"""A miss costs so many times what serving a request costs, at first."""
LOWEST_PRICE: Final = 1.5
HIGHEST_PRICE: Final = 42.0
LEAST_AGE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Misses:
    """Requests that finished and missed, those of a day ago counting half; the logarithm of the price's base."""

    age_s: float = 0.0
    finished: float = 0.0
    missed: float = 0.0
    base: float = math.log(FIRST_PRICE)

    @property
    def attainment(self) -> float:
        """Share of the requests that met their objectives."""
        return 1 - self.missed / self.finished if self.finished else 1.0

    def left(self, attainment: float) -> float:
        """Requests that may still miss; negative = overdrawn."""
        return (1 - attainment) * self.finished - self.missed

    def price(self, attainment: float, kept: float = RESERVE) -> float:
        """What avoiding one miss may cost, in costs of serving one request, to keep such a reserve."""
        exponent = self.base + GAIN * (kept - self._balance(attainment))
        return math.exp(min(math.log(HIGHEST_PRICE), max(math.log(LOWEST_PRICE), exponent)))

    def _balance(self, attainment: float) -> float:
        """What is left, in allowances of a day at the mean rate so far.

        Of a young account too: measured by the little that is known, a few misses would move the price manifold, and
        what is dear in one hour and cheap in the next is bought at the wrong time.
        """
        age = max(LEAST_AGE_S, self.age_s)
        seconds = DAY_S / math.log(2) * (1 - 0.5 ** (age / DAY_S))
        allowance = (1 - attainment) * self.finished / seconds * DAY_S
        return self.left(attainment) / allowance if allowance > 0 else 0.0


def reserve(cold_start_s: float) -> float:
    """The share of a day's allowance that should be left where replicas take so long to start."""
    slow = max(0.0, cold_start_s - QUICK_S) / (SLOW_S - QUICK_S)
    return min(MOST_RESERVE, RESERVE + slow * (MOST_RESERVE - RESERVE))


def count(  # noqa: PLR0917 - what happened, and what is wanted
    misses: Misses, finished: int, missed: int, seconds: float, attainment: float, kept: float = RESERVE
) -> Misses:
    """The account after one round, where such a reserve should be kept."""
    faded = 0.5 ** (seconds / DAY_S)
    after = replace(
        misses,
        age_s=misses.age_s + seconds,
        finished=misses.finished * faded + finished,
        missed=misses.missed * faded + missed,
    )
    lacking = kept - after._balance(attainment)  # noqa: SLF001 - the same class
    # A price at its bound does not rise further: its base would take hours to come down again once misses are made up.
    most = max(misses.base, math.log(HIGHEST_PRICE) - GAIN * max(0.0, lacking))
    base = min(most, misses.base + DRIFT * seconds * lacking)
    return replace(after, base=max(math.log(LOWEST_PRICE), base))
