"""The fleet of the bench: pools of a few kinds, the nodes under them, and what each is asked over a day."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import msgspec

from fairlead_operator.performance.curve import curve
from fairlead_operator.performance.model_config import model_from_name
from fairlead_operator.performance.seeds import Unknown, engine_of, hardware_named
from fairlead_operator.performance.step import Engine, Objectives, StepTime
from tests.builders.resources import Builder, make_budget, make_policy, make_pool
from tests.cluster_tools import H100, L40S, gpu_node

GPU: Final = "nvidia.com/gpu.product"
GPUS_OF_A_NODE: Final = 8
NODES: Final = "fairlead.test/fleet=bench"
"""The label of all nodes."""
MAX_REPLICAS: Final = 5
PEAK_REPLICAS: Final = 3.6
"""What a pool is asked at its peak, in what one replica of the kind can do; at night a quarter of it."""
NIGHT: Final = 0.25
SLOWER: Final = 1.15
"""An engine's steps beside what its seed says, so that there is something to learn."""
SIZES: Final = (0.7, 1.4)
"""The mean sizes of a pool's requests, times its kind's."""
LOAD_TIME: Final = "20s"
TEAMS: Final = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """Pools that are alike: a model on accelerators, its objectives in seconds, and the mean tokens of a request."""

    model: str
    product: str
    accelerators: int
    ttft: float
    tpot: float
    prompt: int
    output: int


KINDS: Final = (
    Kind("meta-llama/Llama-3.1-8B-Instruct", H100, 1, 2.0, 0.05, 1000, 200),
    Kind("meta-llama/Llama-3.1-8B-Instruct", L40S, 1, 3.0, 0.08, 500, 150),
    Kind("Qwen/Qwen2.5-7B-Instruct", H100, 1, 1.0, 0.03, 2000, 60),
    Kind("Qwen/Qwen2.5-32B-Instruct", H100, 2, 3.0, 0.06, 1500, 300),
)


class Plan(msgspec.Struct, frozen=True):
    """One pool: its kind, by number, the mean tokens of its requests, and its day.

    ``peak`` is in requests/s; ``phase``, of a day, is where in it the pool begins.
    """

    name: str
    kind: int
    prompt: int
    output: int
    peak: float
    phase: float

    def rate(self, seconds: float, day_s: float) -> float:
        """Requests/s after so many seconds, where a day has ``day_s``."""
        sun = 0.5 - 0.5 * math.cos(2 * math.pi * (seconds / day_s + self.phase))
        return self.peak * (NIGHT + (1 - NIGHT) * sun)


@cache
def engine(kind: Kind) -> Engine:
    """A replica as it truly is: slower than what is assumed of it at first."""
    model, hardware = model_from_name(f"hf://{kind.model}"), hardware_named(kind.product)
    assert not isinstance(model, Unknown)
    assert not isinstance(hardware, Unknown)
    seed = engine_of(model, hardware, accelerators=kind.accelerators, max_sequences=256)
    assert not isinstance(seed, Unknown), seed.reason
    step = seed.engine.step
    slower = StepTime(step.base * SLOWER, step.per_context_token * SLOWER, step.per_token * SLOWER)
    return replace(seed.engine, step=slower)


@cache
def capacity(kind: Kind) -> float:
    """Requests/s of the kind's mean sizes that one replica takes within the objectives."""
    return curve(engine(kind), ((kind.prompt, kind.output),), Objectives(kind.ttft, kind.tpot)).capacity(0.99)


def plans(count: int, seed: int) -> list[Plan]:
    """So many pools of all kinds, of other sizes and at another time of their day each."""
    chance = random.Random(seed)  # noqa: S311 - a plan, not a secret
    return [_plan(number, chance) for number in range(count)]


def _plan(number: int, chance: random.Random) -> Plan:
    kind = KINDS[number % len(KINDS)]
    size = chance.uniform(*SIZES)
    prompt, output = round(kind.prompt * size), round(kind.output * size)
    return Plan(
        name=f"pool-{number:03}",
        kind=number % len(KINDS),
        prompt=prompt,
        output=output,
        peak=PEAK_REPLICAS * capacity(kind) / size,
        phase=chance.random(),
    )


def pool(plan: Plan) -> Builder:
    """The ModelPool of a plan."""
    kind = KINDS[plan.kind]
    objectives = {"timeToFirstToken": f"{kind.ttft:g}s", "timePerOutputToken": f"{kind.tpot * 1000:g}ms"}
    return (
        make_pool(plan.name)
        .model(uri=f"hf://{kind.model}")
        .variant("main", nodeSelector={GPU: kind.product}, parallelism={"tensor": kind.accelerators})
        .engine(maxContextTokens=8192, maxSequences=256)
        .autoscaling(MAX_REPLICAS, 1, objectives=objectives)
        .pod_template(metadata={"annotations": {"fairlead.test/load-time": LOAD_TIME}})
    )


def policy(plan: Plan) -> Builder:
    """The name that clients send for a pool."""
    return make_policy(plan.name).allow_all()


def budget(team: str) -> Builder:
    """A team's budget of its own namespace."""
    return make_budget(team, team)


def nodes(planned: Sequence[Plan]) -> list[dict[str, Any]]:
    """Enough for all pools at their largest, and one more of each product."""
    wanted: dict[str, int] = {}
    for plan in planned:
        kind = KINDS[plan.kind]
        wanted[kind.product] = wanted.get(kind.product, 0) + MAX_REPLICAS * kind.accelerators
    return [
        gpu_node(
            f"bench-{product.split('-')[1].lower()}-{number:03}", product, GPUS_OF_A_NODE, **dict([NODES.split("=")])
        )
        for product, accelerators in sorted(wanted.items())
        for number in range(-(-accelerators // GPUS_OF_A_NODE) + 1)
    ]
