"""The time of one step of a vLLM engine, and what bounds a step.

A step computes one token for each decoding sequence and the prompt tokens that the budget admits. Its time is linear in
three counts: the weights are read once whatever runs, every sequence's keys and values are read once, and every token
is multiplied with the weights once.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTime:
    """Coefficients of a step's time in seconds, each finite and not negative; ValueError otherwise."""

    base: float
    per_context_token: float
    per_token: float

    def __post_init__(self) -> None:
        for name, value in (
            ("base", self.base),
            ("per_context_token", self.per_context_token),
            ("per_token", self.per_token),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} of a step's time is {value}: give seconds, finite and not negative")

    def step(self, sequences: float, prompt_tokens: float, context_tokens: float) -> float:
        """Seconds of a step with so many decoding sequences, prompt tokens, and context tokens of all sequences."""
        return self.base + self.per_context_token * context_tokens + self.per_token * (sequences + prompt_tokens)


@dataclass(frozen=True, slots=True)
class Engine:
    """One replica: its step's time, its KV pool in tokens, and vLLM's two bounds of a step."""

    step: StepTime
    kv_tokens: int
    token_budget: int = 2048
    max_sequences: int = 256

    def __post_init__(self) -> None:
        for name, value in (
            ("kv_tokens", self.kv_tokens),
            ("token_budget", self.token_budget),
            ("max_sequences", self.max_sequences),
        ):
            if value < 1:
                raise ValueError(f"{name} of an engine is {value}: give at least 1")


@dataclass(frozen=True, slots=True)
class Objectives:
    """What every request is promised, in seconds (None: nothing), and the share of requests that must get it."""

    ttft: float | None
    tpot: float | None
    attainment: float = 0.99

    def __post_init__(self) -> None:
        for name, value in (("ttft", self.ttft), ("tpot", self.tpot)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} of the objectives is {value}: give seconds above 0, or None")
        if not 0 < self.attainment <= 1:
            raise ValueError(f"attainment of the objectives is {self.attainment}: give a share above 0, at most 1")


Mix = tuple[tuple[int, int], ...]
"""Samples (prompt tokens, output tokens) of what a pool was asked lately."""
