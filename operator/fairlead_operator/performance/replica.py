"""One replica of an engine, step by step, by the rules of vLLM v1's scheduler.

A step computes one token for each decoding sequence and, with what is left of its token budget, prompt tokens in the
order of arrival; a prompt may be spread over steps. A waiting request enters if a sequence is free and its whole prompt
fits in the KV cache; one that does not fit stays first in line. When the cache cannot hold the next step, the newest
sequence is thrown out: it waits first in line and computes its prompt and what it had generated again.

The work of a step does not grow with the number of sequences: the sum of their contexts is kept, and each lies in a
heap under the number of the step that finishes it. Steps in which nothing but decoding happens are taken at once; their
time grows linearly with the context. A few functions are longer than elsewhere, and the code plainer: a day of a fleet
is twenty million steps. It is compiled for that, and runs uncompiled as well.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from fairlead_operator.performance.step import Engine

BLOCK_TOKENS: Final = 512
"""Tokens of a prompt that one id of its prefix stands for."""
NO_BLOCKS: Final[Sequence[int]] = ()


class Request:
    """One request, and what became of it. Times are in seconds.

    ``released`` is when its latency begins: the arrival, unless it was ``held``. ``blocks`` are the ids of the blocks
    its prompt begins with, ``cached`` tokens of it need not be computed whatever these say. ``first`` and ``last`` are
    when its first and last token came, ``generated`` is the output that it had when it last began to wait or to decode.
    """

    __slots__ = (
        "active", "arrival", "blocks", "cached", "first", "generated", "held", "key", "last", "left", "number",
        "output", "prompt", "released", "reserved", "slot",
    )  # fmt: skip

    def __init__(
        self, number: int, arrival: float, prompt: int, output: int, blocks: Sequence[int] = NO_BLOCKS
    ) -> None:
        self.number = number
        self.arrival = arrival
        self.released = arrival
        self.prompt = prompt
        self.output = output
        self.blocks = blocks
        self.cached = 0
        self.held = False
        self.first = 0.0
        self.last = 0.0
        self.generated = 0
        self.left = prompt
        self.reserved = 0
        self.active = False
        self.slot = 0
        self.key = -1

    @property
    def ttft(self) -> float:
        """From the release to the first token."""
        return self.first - self.released

    @property
    def tpot(self) -> float:
        """Mean time per token after the first; 0 if there is none."""
        return (self.last - self.first) / (self.output - 1) if self.output > 1 else 0.0


class PrefixCache:
    """Blocks of prompts that lie in the KV cache: pinned by running requests, or idle until their room is needed.

    ``saved`` are the tokens that running requests do not need room for, as they share blocks.
    """

    __slots__ = ("idle", "pins", "saved")

    def __init__(self) -> None:
        self.pins: dict[int, int] = {}
        self.idle: dict[int, None] = {}
        self.saved = 0

    def computed(self, request: Request) -> int:
        """Tokens of the prompt that need not be computed; its last one is, as its output is the first token."""
        blocks = request.blocks
        hits = 0
        for at in range(min(len(blocks), (request.prompt - 1) // BLOCK_TOKENS)):
            if blocks[at] not in self.pins and blocks[at] not in self.idle:
                break
            hits += 1
        return hits * BLOCK_TOKENS

    def shared(self, blocks: Sequence[int]) -> int:
        """Tokens of these blocks that running requests have pinned."""
        return BLOCK_TOKENS * sum(1 for block in blocks if block in self.pins)

    def pin(self, blocks: Sequence[int]) -> None:
        """Keep the blocks while a request runs."""
        for block in blocks:
            pins = self.pins.get(block, 0)
            self.pins[block] = pins + 1
            if pins:
                self.saved += BLOCK_TOKENS
            else:
                self.idle.pop(block, None)

    def unpin(self, blocks: Sequence[int]) -> None:
        """Let them go; the last of a prompt is the first to be dropped, as its use needs the ones before."""
        for at in range(len(blocks) - 1, -1, -1):
            block = blocks[at]
            pins = self.pins[block] - 1
            if pins:
                self.pins[block] = pins
                self.saved -= BLOCK_TOKENS
            else:
                del self.pins[block]
                self.idle[block] = None

    def trim(self, room: int) -> None:
        """Drop the blocks idle for longest until the rest fits in so many tokens."""
        surplus = len(self.idle) - max(0, room) // BLOCK_TOKENS
        if surplus > 0:
            for block in list(self.idle)[:surplus]:
                del self.idle[block]


class Replica:
    """A replica from ``now`` on. Drive it by ``advance`` and ``push`` in the order of time.

    ``end`` is when its state changes next (infinite while it is idle), ``clock`` when it last did. ``outstanding`` are
    the prompt and output tokens of all requests that it has not finished. ``started`` and ``finished`` collect
    requests at their first and last token; whoever drives it empties them. ``jumping`` off takes every step singly.
    """

    __slots__ = (
        "_admitted", "_base", "_cache", "_completing", "_context", "_decoding", "_finishing", "_free", "_jumping",
        "_partial", "_per_context", "_per_token", "_planned", "_reserved", "_sequences", "_slots", "_steps",
        "_token_budget", "clock", "end", "finished", "kv_tokens", "outstanding", "preemptions", "started", "waiting",
    )  # fmt: skip

    def __init__(self, engine: Engine, now: float = 0.0, *, jumping: bool = True) -> None:
        self._base = engine.step.base
        self._per_context = engine.step.per_context_token
        self._per_token = engine.step.per_token
        self.kv_tokens = engine.kv_tokens
        self._token_budget = engine.token_budget
        self._sequences = min(engine.max_sequences, engine.token_budget)
        self._jumping = jumping
        self.clock = now
        self.end = math.inf
        self.outstanding = 0
        self.preemptions = 0
        self.waiting: deque[Request] = deque()
        self.started: list[Request] = []
        self.finished: list[Request] = []
        self._steps = 0
        self._planned = 0
        self._decoding = 0
        self._context = 0
        self._reserved = 0
        self._cache = PrefixCache()
        self._partial: Request | None = None
        self._completing: list[Request] = []
        self._admitted: list[Request] = []
        self._finishing: list[int] = []
        self._slots: list[Request | None] = [None] * self._sequences
        self._free = list(range(self._sequences))

    @property
    def running(self) -> int:
        """Requests that have entered and not finished."""
        return self._sequences - len(self._free)

    def fits(self, request: Request) -> bool:
        """Whether it can be served at all: the KV cache holds its prompt and output."""
        return request.prompt + request.output <= self.kv_tokens

    def kv_tokens_used(self, now: float) -> int:
        """Tokens in the KV cache at a time from ``clock`` to ``end``, less what is kept for later use."""
        grown = self._decoding * self._steps_before(now) if self._planned > 1 else 0
        return self._context + grown + self._reserved - self._cache.saved

    def tokens_to_compute(self) -> int:
        """Prompt tokens of waiting and entered requests that no step has computed or is computing."""
        partial = self._partial
        return sum(request.left for request in self.waiting) + (0 if partial is None else partial.left)

    def unfinished(self) -> list[Request]:
        """Requests that wait or have entered."""
        return [*self.waiting, *(request for request in self._slots if request is not None)]

    def push(self, request: Request, now: float) -> None:
        """Take a request that fits. ``advance(now)`` comes before."""
        self.outstanding += request.prompt + request.output
        waited = len(self.waiting) > 0
        self.waiting.append(request)
        if self.end == math.inf:
            # Planned when time goes on, so that requests of the same moment enter the same step.
            self.clock = now
            self.end = now
        elif self._planned > 1 and not waited:
            self._planned = self._steps_before(now) + 1
            self.end = self.clock + self._time_of(self._planned)

    def advance(self, until: float) -> None:
        """Do everything that ends before then."""
        while self.end < until:
            self._complete()
            self._plan()

    def _time_of(self, steps: int) -> float:
        """Of so many decoding steps from ``clock`` on."""
        first = self._base + self._per_context * self._context + self._per_token * self._decoding
        return steps * first + self._per_context * self._decoding * (steps * (steps - 1) // 2)

    def _steps_before(self, now: float) -> int:
        """How many of the planned decoding steps end before: the root of a quadratic, put right for rounding."""
        elapsed = now - self.clock
        half = self._per_context * self._decoding / 2
        rest = self._base + self._per_context * self._context + self._per_token * self._decoding - half
        steps = int(2 * elapsed / (rest + math.sqrt(rest * rest + 4 * half * elapsed)))
        while steps > 0 and self._time_of(steps) >= elapsed:
            steps -= 1
        while steps < self._planned - 1 and self._time_of(steps + 1) < elapsed:
            steps += 1
        return min(steps, self._planned - 1)

    def _plan(self) -> None:
        """Choose what the steps from ``clock`` on compute, until something else than decoding happens."""
        self._preempt()
        budget = self._token_budget - self._decoding
        partial = self._partial
        if partial is not None:
            budget -= self._compute(partial, budget)
        while self.waiting and budget > 0 and self._free and self._enter(self.waiting[0]):
            budget -= self._compute(self.waiting.popleft(), budget)
        prompt_tokens = self._token_budget - self._decoding - budget
        if prompt_tokens > 0:
            self._planned = 1
            self.end = self.clock + (
                self._base + self._per_context * self._context + self._per_token * (self._decoding + prompt_tokens)
            )
        elif self._decoding > 0:
            self._planned = self._quiet_steps() if self._jumping else 1
            self.end = self.clock + self._time_of(self._planned)
        else:
            self._planned = 0
            self.end = math.inf
        if self._cache.idle:
            self._cache.trim(self.kv_tokens - self._context - self._reserved + self._cache.saved)

    def _quiet_steps(self) -> int:
        """Steps until a sequence finishes, or the KV cache cannot hold another."""
        room = self.kv_tokens - self._context - self._reserved + self._cache.saved
        return min(self._finishing[0] // self._sequences - self._steps, room // self._decoding + 1)

    def _compute(self, request: Request, budget: int) -> int:
        """Let the planned step compute as much of a prompt as its budget allows; that much."""
        tokens = min(budget, request.left)
        request.left -= tokens
        if request.left == 0:
            self._completing.append(request)
            self._partial = None
        else:
            self._partial = request
        return tokens

    def _enter(self, request: Request) -> bool:
        """Give a waiting request a sequence and the room of its prompt, if that fits."""
        needed = request.prompt + request.generated
        blocks = request.blocks
        if self._context + self._reserved - self._cache.saved + needed - self._cache.shared(blocks) > self.kv_tokens:
            return False
        request.reserved = needed
        request.left = needed - min(request.cached, request.prompt - 1)
        if blocks:
            request.left = min(request.left, needed - self._cache.computed(request))
            self._cache.pin(blocks)
        self._reserved += needed
        request.active = True
        request.slot = self._free.pop()
        self._slots[request.slot] = request
        if len(self._admitted) > 4 * self._sequences:
            self._admitted = [one for one in self._admitted if one.active]
        self._admitted.append(request)
        return True

    def _complete(self) -> None:
        """End the planned steps: sequences whose last token it was leave, prompts that are computed decode."""
        self._steps += self._planned
        self._context += self._planned * self._decoding
        self.clock = self.end
        finishing = self._finishing
        limit = (self._steps + 1) * self._sequences
        while finishing and finishing[0] < limit:
            key = heapq.heappop(finishing)
            request = self._slots[key % self._sequences]
            if request is not None and request.key == key:
                self._decoding -= 1
                self._context -= request.prompt + request.output
                self._finish(request)
        if self._completing:
            for request in self._completing:
                self._begin(request)
            self._completing.clear()

    def _begin(self, request: Request) -> None:
        """The step that computed the last of a prompt gave a token; from now on it decodes, if more are to come."""
        if request.generated == 0:
            request.first = self.clock
            self.started.append(request)
        self._reserved -= request.reserved
        request.generated += 1
        if request.generated == request.output:
            self._finish(request)
            return
        self._decoding += 1
        self._context += request.prompt + request.generated
        request.key = (self._steps + request.output - request.generated) * self._sequences + request.slot
        heapq.heappush(self._finishing, request.key)

    def _finish(self, request: Request) -> None:
        request.last = self.clock
        request.generated = request.output
        self.outstanding -= request.prompt + request.output
        self.finished.append(request)
        self._leave(request)

    def _leave(self, request: Request) -> None:
        request.active = False
        request.key = -1
        self._slots[request.slot] = None
        self._free.append(request.slot)
        if request.blocks:
            self._cache.unpin(request.blocks)

    def _preempt(self) -> None:
        """Throw out the newest until the rest has room; one alone always has, as it fits. Stale keys stay behind.

        The last to go has no room to come back at once, and is now the first in line: so nothing enters in this step.
        """
        while self._context + self._reserved - self._cache.saved > self.kv_tokens:
            request = self._admitted.pop()
            if not request.active:
                continue
            if request is self._partial:
                self._partial = None
                self._reserved -= request.reserved
            else:
                request.generated = request.output - (request.key // self._sequences - self._steps)
                self._decoding -= 1
                self._context -= request.prompt + request.generated
            request.left = request.prompt + request.generated
            self._leave(request)
            self.waiting.appendleft(request)
            self.preemptions += 1
