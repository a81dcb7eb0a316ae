"""What real vLLM does with the engine settings of a ModelPool: quantised checkpoints, drafts, the prefix cache.

Every engine is started with the arguments that the operator renders, on a CPU. One serves all tests of what it can.
FAIRLEAD_FEATURES=all adds the slower ones.
"""

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import correlation
from typing import Any

import httpx
import pytest

from fairlead_operator.cli.drafts import draft_lines
from fairlead_operator.decide.engines import begin, learn
from fairlead_operator.decide.signals import Report
from fairlead_operator.decide.speculation import Counted, Setting, count, judge
from fairlead_operator.performance.fit import LEAST_ROUNDS, fitted
from fairlead_operator.render.engine_args import ENGINE_SOCKET, engine_arguments
from fairlead_router.contract import EngineSignals, Signals
from fairlead_router.drafting import Drafting, show_drafting
from fairlead_router.engine_load import read_engine
from fairlead_router.telemetry import Telemetry
from hack.vllm import environment
from tests.builders.resources import PoolBuilder, make_pool
from tests.e2e.engines import (
    EngineEndedError,
    assert_streams_end_with_their_usage,
    engine,
    errors_of,
    stream,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
everything = pytest.mark.skipif(os.environ.get("FAIRLEAD_FEATURES") != "all", reason="needs FAIRLEAD_FEATURES=all")

CLAIM = "pvc://models"
SMALL = ("--block-size=32", "--kv-cache-memory-bytes=32M")
PRECISE = ("--enforce-eager", "--dtype=float32", *SMALL)
HALF = ("--enforce-eager", "--dtype=bfloat16", *SMALL)
"""On CPUs with AMX no prompt of a few tokens may come first: the engine asks Linux for AMX only with a longer one."""
PROMPT = "The language reference of Python describes how objects, values and types are related to each other. " * 4
HITS, QUERIES = "prefix_cache_hits_total", "prefix_cache_queries_total"
HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
TOKENS = 250
"""Of an answer while an engine without a seed is learned."""
MOST_SPELLS = 6
ENOUGH_STEPS = 300
"""Of sequences, in the spells during which six run."""
NO_4_BITS = "cpu_gemm_wna16"
"""The kernel of 4-bit weights; vLLM's CPU build has it for AVX-512 only."""
NO_FP8 = "static_scaled_fp8_quant"
"""The kernel of FP8 with one scale for a tensor; vLLM's CPU build has none."""


@dataclass(frozen=True, slots=True)
class Starter:
    """Starts engines of pools whose models lie in a folder."""

    vllm: environment.Environment
    models: Path
    folder: Path

    @contextmanager
    def start(self, pool: PoolBuilder, name: str) -> Iterator[httpx.Client]:
        """The engine of the pool's first variant, as it is rendered but for the places of models and socket."""
        parsed = pool.model(uri=f"{CLAIM}/{name}").parsed()
        here = {ENGINE_SOCKET: f"{self.folder}/engine.sock", "/models/models": str(self.models)}
        arguments = list(engine_arguments(parsed.name, parsed.spec, parsed.spec.variants[0]))
        for inside, outside in here.items():
            arguments = [one.replace(inside, outside) for one in arguments]
        with engine(self.vllm, self.folder, arguments) as client:
            yield client


def chat(flags: tuple[str, ...] = PRECISE, **settings: Any) -> PoolBuilder:
    usual = {"maxContextTokens": 4096, "maxSequences": 8, "extraArgs": list(flags)}
    return make_pool("chat").variant("cpu", accelerator={"resourceName": "cpu"}).engine(**(usual | settings))


def told(client: httpx.Client) -> EngineSignals:
    """The engine's counters as a router reads them."""
    return read_engine(client.get("/metrics").content)


def counter(client: httpx.Client, name: str) -> float:
    found = re.findall(rf"^vllm:{name}(?:\{{.*\}})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return sum(float(value) for value in found)


def likelihoods(client: httpx.Client) -> list[float]:
    """How likely the model finds each token of the prompt; those of random models lie close together."""
    body = {"model": "chat", "prompt": PROMPT, "echo": True, "logprobs": 0, "max_tokens": 1}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: list[float] = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    return found[1:-1]


def answered(client: httpx.Client, tokens: int, prompt: str = PROMPT) -> dict[str, Any]:
    """The usage of an answer of so many tokens."""
    usage: dict[str, Any] = stream(client, "/v1/completions", prompt=prompt, max_tokens=tokens)[-1]["usage"]
    assert usage["completion_tokens"] == tokens
    return usage


@dataclass(frozen=True, slots=True)
class Shown:
    """What an engine showed while it answered the same prompt twice."""

    likelihoods: list[float]
    first: dict[str, Any]
    second: dict[str, Any]
    before: EngineSignals
    after: EngineSignals
    hits: float
    queries: float


@pytest.fixture(scope="module")
def own(
    vllm: environment.Environment, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """The model as it is, which drafts for itself."""
    drafts = {"method": "draft_model", "tokens": 3, "model": f"{CLAIM}/tiny"}
    starter = Starter(vllm, models, tmp_path_factory.mktemp("plain"))
    with starter.start(chat(speculativeDecoding=drafts), "tiny") as client:
        yield client


@pytest.fixture(scope="module")
def plain(own: httpx.Client) -> Shown:
    """What the model as it is showed."""
    answered(own, 2, "Warm.")
    before, hits, queries = told(own), counter(own, HITS), counter(own, QUERIES)
    return Shown(
        first=answered(own, 96),
        second=answered(own, 96),
        before=before,
        after=told(own),
        hits=counter(own, HITS) - hits,
        queries=counter(own, QUERIES) - queries,
        likelihoods=likelihoods(own),
    )


# --- drafts and the prefix cache ---


def test_a_stream_ends_with_the_tokens_it_used(own: httpx.Client) -> None:
    assert_streams_end_with_their_usage(own)


def test_a_draft_model_that_is_the_model_itself_has_about_everything_kept(plain: Shown, record_property: Any) -> None:
    drafts = plain.after.drafts_total - plain.before.drafts_total
    drafted = plain.after.draft_tokens_total - plain.before.draft_tokens_total
    kept = plain.after.accepted_total - plain.before.accepted_total
    record_property("acceptance", kept / drafted)
    record_property("tokens a step", 1 + kept / drafts)
    assert drafted == 3 * drafts > 0
    assert kept >= 0.98 * drafted
    assert sum(plain.after.accepted_by_position) == plain.after.accepted_total


@everything
def test_a_draft_model_that_knows_nothing_of_the_model_has_next_to_nothing_kept(
    vllm: environment.Environment, models: Path, tmp_path: Path, record_property: Any
) -> None:
    drafts = {"method": "draft_model", "tokens": 3, "model": f"{CLAIM}/small"}
    with Starter(vllm, models, tmp_path).start(chat(speculativeDecoding=drafts), "tiny") as client:
        answered(client, 96)
        found = told(client)
    record_property("acceptance", found.accepted_total / found.draft_tokens_total)
    assert found.draft_tokens_total == 3 * found.drafts_total > 200
    assert found.accepted_total < 0.2 * found.draft_tokens_total


def test_a_prompt_that_came_before_is_found_in_the_cache_and_told_as_cached(plain: Shown, record_property: Any) -> None:
    prompt, cached = plain.second["prompt_tokens"], plain.second["prompt_tokens_details"]["cached_tokens"]
    record_property("hit rate", plain.hits / plain.queries)
    assert not (plain.first["prompt_tokens_details"] or {}).get("cached_tokens")
    assert prompt - 64 <= cached < prompt
    assert plain.hits == cached
    assert plain.queries == 2 * prompt
    computed = plain.after.computed_total - plain.before.computed_total
    assert computed == 2 * prompt - cached


INT8 = chat(
    quantization={"weights": "compressed-tensors"},
    speculativeDecoding={"method": "ngram", "tokens": 4, "maxBatchSize": 2},
)


def reported(engine_told: EngineSignals, at_ms: int) -> dict[str, Report]:
    """What the operator has of the engine after a scrape."""
    signals = Signals(router="ns/chat-1", config_version="", endpoints_version="", engine=engine_told)
    return {"ns/chat-1": Report("ns/chat-1", at_ms, signals)}


def shown(telemetry: Telemetry) -> str:
    """The router's metrics as Prometheus reads them."""
    return b"".join(telemetry.render()).decode()


@pytest.fixture(scope="class")
def int8(
    vllm: environment.Environment, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    with Starter(vllm, models, tmp_path_factory.mktemp("int8")).start(INT8, "tiny-int8") as client:
        yield client


class TestInt8WithNgrams:
    """An 8-bit checkpoint that drafts n-grams for two sequences at most."""

    def test_the_checkpoint_is_served(self, int8: httpx.Client, plain: Shown, record_property: Any) -> None:
        alike = correlation(likelihoods(int8), plain.likelihoods)
        record_property("correlation", alike)
        assert alike > 0.95

    def test_a_stream_ends_with_the_tokens_it_used(self, int8: httpx.Client) -> None:
        assert_streams_end_with_their_usage(int8)

    def test_ngrams_are_drafted_and_kept_and_the_operator_says_what_they_bring(
        self, int8: httpx.Client, record_property: Any
    ) -> None:
        # Greedy, a random model soon repeats itself, which is what n-grams are found in.
        spec, drafting, readings = INT8.parsed().spec, Drafting(), [told(int8)]
        for place in range(LEAST_ROUNDS):
            answered(int8, TOKENS, f"{place} {PROMPT}")
            readings.append(told(int8))
        before, after = readings[0], readings[-1]
        for reading in readings:
            drafting.note(reading)
        # The time of the steps, not the clock's: what else this machine does must not age the counts.
        known = begin(spec, spec.variants[0], ())
        for place, reading in enumerate(readings):
            known = learn(known, reported(reading, 5_000 * place), 5_000 * place + 1)
        step = fitted(known.memory).step
        busy = (after.gaps_us_total - before.gaps_us_total) / 1e6
        counted = count(Counted(), [(before, after, busy)], busy)
        judged = judge(counted, Setting("ngram", tokens=4, max_batch=2, slots=8), step, known.cost, 1.0)
        lines = draft_lines(spec, {"cpu": judged})
        record_property("explained", "\n".join(lines))
        kept, drafted = (
            after.accepted_total - before.accepted_total,
            after.draft_tokens_total - before.draft_tokens_total,
        )
        telemetry = Telemetry()
        show_drafting(telemetry, drafting, "ns/chat")
        assert f'fairlead_draft_acceptance_ratio{{pool="ns/chat"}} {kept / drafted}' in shown(telemetry)
        assert 0 < kept <= drafted <= 4 * (after.drafts_total - before.drafts_total)
        assert len(after.accepted_by_position) == 4
        steps = after.gaps_total - before.gaps_total
        assert steps + kept == pytest.approx(LEAST_ROUNDS * (TOKENS - 1), abs=4 * LEAST_ROUNDS), (
            "each token but an answer's first came of a step, or was drafted; the last drafts can be too many"
        )
        assert judged.batch == pytest.approx(1)
        assert "times as fast as without at batch" in lines[2]

    def test_nothing_is_drafted_for_more_sequences_than_max_batch_size(
        self, int8: httpx.Client, record_property: Any
    ) -> None:
        steps = drafts = 0
        # On a busy machine the first of six may be nearly over when the sixth comes: then once more.
        for _ in range(MOST_SPELLS):
            with ThreadPoolExecutor(6) as pool:
                answers = [pool.submit(answered, int8, 400, f"{place} {PROMPT}") for place in range(6)]
                full = list(while_full(int8))
                assert [one.result()["completion_tokens"] for one in answers] == [400] * 6
            steps += full[-1].gaps_total - full[0].gaps_total if full else 0
            drafts += full[-1].drafts_total - full[0].drafts_total if full else 0
            if steps >= ENOUGH_STEPS:
                break
        record_property("steps of sequences, drafts", f"{steps}, {drafts}")
        assert steps >= ENOUGH_STEPS
        assert drafts == 0


def while_full(client: httpx.Client) -> Iterator[EngineSignals]:
    """Readings from when six sequences run until one of them has ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and told(client).running < 6:
        time.sleep(0.05)
    # The first reading may be of the step that the sixth joined, when two or fewer had drafts still.
    time.sleep(0.05)
    while time.monotonic() < deadline and (now := told(client)).running == 6:
        yield now
        time.sleep(0.05)


# --- quantised checkpoints ---


@pytest.mark.parametrize(
    ("name", "weights", "flags", "lacks"),
    [
        ("tiny-fp8", "compressed-tensors", PRECISE, ""),
        ("tiny-w4a16", "compressed-tensors", HALF, NO_4_BITS),
        ("tiny-awq", "awq", HALF, NO_4_BITS),
        ("tiny-fp8-tensor", "fp8", HALF, NO_FP8),
    ],
)
def test_a_quantised_checkpoint_is_served_like_the_model_it_was_made_of(  # noqa: PLR0917 - fixtures
    name: str,
    weights: str,
    flags: tuple[str, ...],
    lacks: str,
    plain: Shown,
    vllm: environment.Environment,
    models: Path,
    tmp_path: Path,
    record_property: Any,
) -> None:
    try:
        with Starter(vllm, models, tmp_path).start(chat(flags, quantization={"weights": weights}), name) as client:
            found = likelihoods(client)
            assert_streams_end_with_their_usage(client)
    except (EngineEndedError, AssertionError, httpx.HTTPError):
        said = errors_of(tmp_path)
        if lacks and any(lacks in one for one in said) and (lacks == NO_FP8 or not HAS_AVX512):
            pytest.xfail(f"vLLM's CPU build cannot run {name} on this processor: {next(o for o in said if lacks in o)}")
        raise
    alike = correlation(found, plain.likelihoods)
    record_property("correlation", alike)
    assert alike > 0.9
    assert lacks != NO_FP8, "the CPU build runs it now: take its error away from this test"
