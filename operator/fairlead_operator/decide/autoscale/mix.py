"""Sizes of requests that stand for what a pool was asked lately: capacities are measured on them.

The sizes of a few seconds are no measure of the next hour. On the last 512 chats, ten seconds at fifty a second, the
capacity that comes out has a standard deviation of 4.8 % by chance alone; on four times as many 2.4 %.
"""

import math
from collections.abc import Sequence
from typing import Final

from fairlead_operator.performance.step import Mix

MAX_MIX: Final = 2048
REACH_S: Final = 1800.0
"""The sizes are of the last so many seconds; of longer where fewer requests finish."""


def mixed(mix: Mix, samples: Sequence[tuple[int, int]], seconds: float) -> Mix:
    """The mix with the sizes of a round of so many seconds: all while there is room, else its share, for the oldest."""
    most = max(MAX_MIX - len(mix), math.ceil(MAX_MIX * seconds / REACH_S))
    count = min(most, len(samples))
    chosen = (samples[place * len(samples) // count] for place in range(count))
    return (*mix, *chosen)[-MAX_MIX:]
