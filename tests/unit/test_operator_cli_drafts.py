"""What ``fairlead explain pool`` says of drafts, from the operator's metrics."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from fairlead_operator.api.v1alpha1 import ModelPoolSpec
from fairlead_operator.cli.drafts import draft_lines, parse_drafts
from fairlead_operator.cli.explain import explain_pool
from fairlead_operator.decide.speculation import Advice, Judgement, Missing
from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.telemetry import Telemetry
from fairlead_router.telemetry import METRICS
from tests.builders.resources import PoolBuilder, make_pool

KEY = "ai-platform/chat-8b"
KEPT = Judgement(
    Advice.KEEP,
    tokens=4,
    max_batch=16,
    acceptance=0.62,
    length=3.48,
    batch=7.3,
    speed_up=2.41,
    speed_up_advised=2.41,
    pays_below=83.4,
    usd_per_million=0.714,
    usd_per_million_advised=0.714,
    usd_per_hour=0.0,
)


def chat(**changes: Any) -> PoolBuilder:
    drafts = {"method": "ngram", "tokens": 4, "maxBatchSize": 16} | changes
    return make_pool("chat-8b").variant("h100").engine(speculativeDecoding=drafts)


def spec(**changes: Any) -> ModelPoolSpec:
    return chat(**changes).parsed().spec


def said(judged: Judgement) -> list[str]:
    """The lines below the one that says what is set."""
    first, *rest = draft_lines(spec(), {"h100": judged})
    assert first == "  drafts   h100: ngram, 4 tokens at a time up to batch 16"
    return [line.strip() for line in rest]


def exposition(**judged: Judgement) -> str:
    telemetry = Telemetry(Snapshot, dict, lambda: True, lambda: 0)
    telemetry.drafting[KEY] = judged
    telemetry.drafting["ai-platform/other"] = {"h100": replace(KEPT, acceptance=0.01)}
    return generate_latest(telemetry.registry).decode()


def test_drafts_that_pay_say_what_is_kept_how_fast_they_make_it_and_what_it_costs() -> None:
    assert said(KEPT) == [
        "62% of the drafted tokens are kept, 3.48 tokens a step",
        (
            "2.41 times as fast as without at batch 7.3, estimated, 0.71 USD a million output tokens; "
            "slower above batch 83"
        ),
        "keep it: no other number of tokens is 3% faster",
    ]


GAINS: dict[str, Any] = {"speed_up_advised": 2.61, "usd_per_million_advised": 0.659, "usd_per_hour": 1.2}
MONEY = "2.61 times as fast, 0.66 USD a million output tokens, 1.20 USD/h less at the present load"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"advice": Advice.MORE, "tokens": 6},
            f"ADVICE   speculativeDecoding.tokens: 6: {MONEY} if the replicas follow",
        ),
        (
            {"advice": Advice.FEWER, "tokens": 2},
            f"ADVICE   speculativeDecoding.tokens: 2: {MONEY} if the replicas follow",
        ),
        ({"advice": Advice.OFF}, "ADVICE   remove speculativeDecoding: even a single sequence is slower with drafts"),
        ({"advice": Advice.LIMIT, "max_batch": 83}, "ADVICE   speculativeDecoding.maxBatchSize: 83, up to which"),
        ({"advice": Advice.LIMIT, "max_batch": 0}, "ADVICE   remove speculativeDecoding.maxBatchSize: drafts pay at"),
        ({"advice": Advice.MORE, "usd_per_hour": None}, "2.61 times as fast, cost unknown"),
        ({"advice": Advice.LIMIT, "speed_up_advised": 2.41}, "the same at the present batch"),
    ],
)
def test_an_advice_names_the_field_and_its_dollars(changes: dict[str, Any], text: str) -> None:
    assert text in said(replace(KEPT, **(GAINS | changes)))[-1]


def test_tokens_that_were_never_drafted_are_said_to_be_guessed() -> None:
    more = said(replace(KEPT, advice=Advice.MORE, tokens=6, **GAINS))[-1]
    assert more.endswith("; what is kept beyond 4 is guessed")


@pytest.mark.parametrize(
    ("below", "text"), [(math.inf, "; faster at every batch"), (0.0, "; slower at every batch"), (None, "tokens")]
)
def test_where_drafts_cease_to_pay_is_said_if_they_do(below: float | None, text: str) -> None:
    assert said(replace(KEPT, pays_below=below))[1].endswith(text)


@pytest.mark.parametrize(
    ("judged", "lines"),
    [
        (Judgement(Advice.UNKNOWN, Missing.COUNTERS), ["unknown: no engine has told yet what it drafted"]),
        (
            Judgement(Advice.UNKNOWN, Missing.DRAFTS, batch=31.0),
            ["unknown: fewer than 200 drafts in the last minutes; at batch 31.0 nothing is drafted"],
        ),
        (
            Judgement(Advice.UNKNOWN, Missing.DRAFTS, batch=3.0),
            ["unknown: fewer than 200 drafts in the last minutes"],
        ),
        (
            Judgement(Advice.UNKNOWN, Missing.STEP, acceptance=0.5, length=3.0),
            [
                "50% of the drafted tokens are kept, 3.00 tokens a step",
                "how much faster that is is unknown: no engine has shown yet how long its steps take",
            ],
        ),
    ],
)
def test_what_is_not_known_is_said_by_name(judged: Judgement, lines: list[str]) -> None:
    assert said(judged) == lines


def test_what_drafting_takes_may_be_unknown_alone() -> None:
    assert "what drafting takes cannot be told" in said(Judgement(Advice.UNKNOWN, Missing.COST, acceptance=0.5))[-1]


def test_a_variant_that_does_not_draft_has_no_line_and_one_nobody_was_asked_about_says_so() -> None:
    both = chat().variant("l40s", engine={"maxSequences": 8}).parsed().spec
    assert len(draft_lines(both, None)) == 4
    assert draft_lines(make_pool("chat-8b").parsed().spec, None) == []
    assert draft_lines(spec(), None)[1].endswith("is shown with --metrics")
    assert "no engine has told" in draft_lines(spec(), {})[1]


def test_the_operators_metrics_say_what_it_judged() -> None:
    lacking = Judgement(Advice.UNKNOWN, Missing.COUNTERS, tokens=4)
    never = replace(KEPT, advice=Advice.LIMIT, pays_below=math.inf, usd_per_hour=None)
    text = exposition(h100=KEPT, l40s=lacking, b200=never)
    assert parse_drafts(text, KEY) == {"h100": KEPT, "l40s": lacking, "b200": never}
    assert parse_drafts(text, "ai-platform/nobody") == {}


def test_the_how_to_shows_lines_and_metrics_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/draft-tokens.md").read_text(encoding="utf-8")
    limited = replace(KEPT, advice=Advice.LIMIT, max_batch=83)
    assert "\n".join(draft_lines(spec(), {"h100": limited})) in page
    shown = exposition(h100=KEPT) + " ".join(metric.name for metric in METRICS)
    named = set(re.findall(r"`(fairlead_[a-z_]+)`", page))
    assert len(named) > 8
    assert [name for name in named if name not in shown] == []


def test_a_pool_that_is_gone_has_no_series() -> None:
    telemetry = Telemetry(Snapshot, dict, lambda: True, lambda: 0)
    telemetry.drafting[KEY] = {"h100": KEPT}
    telemetry.forget_pool(KEY)
    assert KEY not in generate_latest(telemetry.registry).decode()


def test_the_lines_stand_among_those_of_the_pool() -> None:
    text = explain_pool(chat().parsed(), [], None, {"h100": KEPT})
    assert "  drafts   h100: ngram, 4 tokens at a time up to batch 16" in text


NUMBERS = st.sampled_from(["1", "-1e300", "NaN", "+Inf", "-Inf", "many", "0", "1e999"])
NAMES = st.sampled_from(["advised_tokens", "advised_max_batch_size", "acceptance_ratio", "speed_up_ratio", "other"])


@given(st.lists(st.tuples(NAMES, NUMBERS)), st.sampled_from([*Advice, "Else"]), st.sampled_from([*Missing, "Else"]))
def test_any_figures_may_come_from_the_metrics_port(figures: list[tuple[str, str]], advice: str, missing: str) -> None:
    labels = f'pool="{KEY}",variant="h100"'
    lines = [f"fairlead_pool_draft_{name}{{{labels}}} {number}\n" for name, number in figures]
    verdict = f'fairlead_pool_draft_advice{{{labels},advice="{advice}",missing="{missing}"}} 1.0\n'
    found = parse_drafts("".join(lines) + verdict, KEY)
    assert bool(found) == ("Else" not in {advice, missing})
    assert draft_lines(spec(), found)
