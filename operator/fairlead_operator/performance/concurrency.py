"""How many requests a replica should run at once: the most that meet the objectives beside each other.

A replica is simulated that always runs so many. The more there are, the longer each step takes, until their tokens come
too slowly, or the KV cache does not hold them. The router keeps back whoever would be one too many: an overload then
costs only what is too much, while without this bound it spoils all requests.
"""

import math
import random
from dataclasses import replace
from typing import Final

from fairlead_operator.performance.replica import Replica, Request
from fairlead_operator.performance.step import Engine, Mix, Objectives

COUNTED: Final = 2000
"""Requests of which a share is taken."""
ALLOWED: Final = 5.0
"""While a replica runs all that it may, about so many times as many may miss as the objectives allow. Fewer at once
would take less load, and most of the time there are fewer."""
TTFT_PART: Final = 0.5
"""Of the time to the first token that is left for the engine, after the wait for a slot."""
KV_PART: Final = 0.95
"""Of the KV cache that is used: routers send nothing to an engine whose cache is fuller."""


def concurrency(engine: Engine, mix: Mix, objectives: Objectives, seed: int = 1) -> int:
    """The highest number, from 1 to what the engine runs at most.

    Requests of the mix that do not fit in the KV cache are left out; with none left it is what the engine runs at most.
    """
    most = min(engine.max_sequences, engine.token_budget)
    fitting = tuple(one for one in mix if sum(one) <= engine.kv_tokens * KV_PART)
    if not fitting:
        return most
    enough = objectives.attainment**ALLOWED
    low, high = 1, most + 1
    while high - low > 1:
        middle = min((low + high) // 2, 4 * low)
        if _share(engine, fitting, objectives, middle, random.Random(seed)) >= enough:  # noqa: S311 - chance, not a secret
            low = middle
        else:
            high = middle
    return low


def _share(engine: Engine, mix: Mix, objectives: Objectives, running: int, chance: random.Random) -> float:
    """Of the requests of a replica that always runs so many. The first are as if in the midst of their output."""
    replica = Replica(replace(engine, kv_tokens=int(engine.kv_tokens * KV_PART)))
    skipped = 2 * running
    pushed = met = done = 0
    while done < skipped + COUNTED:
        for _ in range(running - replica.running - len(replica.waiting)):
            prompt, output = mix[int(chance.random() * len(mix))]
            left = 1 + int(chance.random() * output) if pushed < running else output
            replica.push(Request(pushed, replica.clock, prompt, left), replica.clock)
            pushed += 1
        replica.advance(math.nextafter(replica.end, math.inf))
        for request in replica.finished:
            done += 1
            met += done > skipped and _meets(request, objectives)
        replica.finished.clear()
        replica.started.clear()
    return met / (done - skipped)


def _meets(request: Request, objectives: Objectives) -> bool:
    in_time = objectives.ttft is None or request.ttft <= TTFT_PART * objectives.ttft
    return in_time and (objectives.tpot is None or request.tpot <= objectives.tpot)
