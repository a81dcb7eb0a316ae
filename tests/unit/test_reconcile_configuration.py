"""No object that a user may write keeps the routers, or the ledger, from what all the others need."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.reconcile.budgets import wanted_budgets
from fairlead_operator.reconcile.configuration import (
    COLD_START,
    CONCURRENCY,
    CONTEXT,
    Picture,
    compile_all,
    unpriced,
)
from fairlead_operator.render.router_config import PolicyInput, ReleaseInput, compile_config
from fairlead_operator.settings import read_settings
from fairlead_router.contract import PutBudgets, RouterConfig
from fairlead_router.policy import build_index
from tests.builders.resources import BudgetBuilder, PoolBuilder, make_budget, make_policy, make_pool

GOOD = make_budget("good")


def picture(pool: PoolBuilder, *budgets: BudgetBuilder, args: Sequence[str] = (), **annotations: str) -> Picture:
    """Of a pool whose engines run with ``args``."""
    notes = {
        CONTEXT: annotations.get("context", ""),
        COLD_START: annotations.get("cold_start", ""),
        CONCURRENCY: annotations.get("concurrency", ""),
    }
    template = {"spec": {"containers": [{"name": "engine", "args": ["/models/chat", *args]}]}}
    deployment = {"metadata": {"annotations": notes}, "spec": {"template": template}}
    children = {("Deployment", "ai-platform", "chat-l40s"): deployment}
    policy, parsed = make_policy("chat").parsed(), [one.parsed() for one in budgets]
    snapshot = Snapshot(
        pools={"ai-platform/chat": pool.parsed()},
        policies={policy.key: policy},
        budgets={one.key: one for one in parsed},
        namespaces={"ai-platform": {}, "team-a": {}},
        children=children,
    )
    return compile_all(snapshot, read_settings({}))


def compiled(made: Picture) -> RouterConfig:
    """The configuration, as routers take it."""
    policies = [PolicyInput(policy, made.callers[key]) for key, policy in made.snapshot.policies.items()]
    config = compile_config(list(made.inputs.values()), policies, made.countable, ReleaseInput()).config
    build_index(config)
    return config


def chat() -> PoolBuilder:
    return make_pool("chat").variant("l40s")


def rate(**fields: Any) -> dict[str, Any]:
    usual = dict.fromkeys(("promptPerMillionTokens", "cachedPromptPerMillionTokens", "outputPerMillionTokens"), "0.1")
    return {"version": 3, "source": "Seed", **usual, **fields}


@pytest.mark.parametrize("text", ["²", "9" * 30, "9" * 5000, "-1", "1e9", "１２", " 7"])
def test_an_annotation_that_somebody_wrote_is_no_measurement(text: str) -> None:
    (pool,) = compiled(picture(chat(), context=text, cold_start=text)).pools
    assert (pool.max_context_tokens, pool.cold_start_s) == (0, 120)


def test_what_the_leader_measured_is_taken_from_the_annotations() -> None:
    (pool,) = compiled(picture(chat(), context="8192", cold_start="91000")).pools
    assert (pool.max_context_tokens, pool.cold_start_s) == (8192, 91)


def test_routers_are_told_what_the_engines_run_with_not_what_the_spec_would_have() -> None:
    wanted = chat().engine(maxSequences=512, maxContextTokens=65_536)
    (kept,) = compiled(picture(wanted, args=["--max-num-seqs=64", "--max-model-len=32768"])).pools
    assert (kept.slots, kept.max_context_tokens) == (64, 32_768), "a revision was taken back, or is refused"
    (bare,) = compiled(picture(wanted, context="8192")).pools
    assert (bare.slots, bare.max_context_tokens) == (256, 8192), "vLLM's and the checkpoint's own"
    large = make_pool("chat").variant("l40s", nodeSelector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"})
    assert compiled(picture(large)).pools[0].slots == 1024
    (small,) = compiled(picture(large, args=["--max-num-batched-tokens=512"])).pools
    assert small.slots == 512, "no more requests than tokens"
    (first,) = compiled(picture(make_pool("chat").variant("h100").engine(maxSequences=512))).pools
    assert first.slots == 512, "it has no Deployment yet"
    (two,) = compiled(picture(wanted.variant("h100"), args=["--max-num-seqs=1024"])).pools
    assert two.slots == 512, "of the variants the smallest"


@pytest.mark.parametrize("text", ["x", "-1", "9" * 30, "0", "²"])
def test_an_engines_argument_that_is_no_number_counts_as_none(text: str) -> None:
    (pool,) = compiled(picture(chat(), args=[f"--max-num-seqs={text}", f"--max-model-len={text}"])).pools
    assert (pool.slots, pool.max_context_tokens) == (256, 0)


def test_what_a_replica_should_run_at_once_is_told_to_routers_of_pools_with_objectives() -> None:
    timed = chat().autoscaling(4, 1, objectives={"timeToFirstToken": "2s"})
    (pool,) = compiled(picture(timed, concurrency="150")).pools
    assert pool.variant_slots == (("l40s", 150),)
    for made in (picture(chat(), concurrency="150"), picture(timed, concurrency="0"), picture(timed, concurrency="x")):
        assert compiled(made).pools[0].variant_slots == ()


def test_a_fallback_without_a_price_counts_for_the_budgets_of_those_who_may_be_sent_to_it() -> None:
    policy = make_policy("chat").fallback("default", "spare").parsed()
    snapshot = Snapshot(
        pools={one.key: one for one in (chat().status(rate=rate()).parsed(), make_pool("spare").parsed())},
        policies={policy.key: policy},
        namespaces={"ai-platform": {}, "team-a": {}},
    )
    made = compile_all(snapshot, read_settings({}))
    assert unpriced(made, ("ai-platform",)) == ("ai-platform/spare",)
    assert unpriced(made, ("team-a",)) == ()


def test_a_budget_of_models_minds_only_the_pools_that_these_names_reach() -> None:
    policies = [make_policy("chat").parsed(), make_policy("extract").parsed()]
    snapshot = Snapshot(
        pools={one.key: one for one in (chat().parsed(), make_pool("extract").parsed())},
        policies={one.key: one for one in policies},
        namespaces={"ai-platform": {}},
    )
    made = compile_all(snapshot, read_settings({}))
    assert unpriced(made, ("ai-platform",), ("extract", "other")) == ("ai-platform/extract",)
    assert unpriced(made, ("ai-platform",), ("other",)) == ()
    assert unpriced(made, ("ai-platform",)) == ("ai-platform/chat", "ai-platform/extract")


@pytest.mark.parametrize(
    ("status", "reason", "desired", "expected"),
    [
        ("True", "Budget", 0, True),
        ("True", "Budget", 1, False),
        ("True", "MaxReplicas", 0, False),
        ("False", "Budget", 0, False),
    ],
)
def test_routers_are_told_of_a_pool_at_zero_that_its_budgets_do_not_pay_for(
    status: str, reason: str, desired: int, expected: bool
) -> None:
    limited = {"type": "ScalingLimited", "status": status, "reason": reason, "message": ""}
    limited["lastTransitionTime"] = "2026-11-20T10:40:00Z"
    (pool,) = compiled(picture(chat().status(desiredReplicas=desired, conditions=[limited]))).pools
    assert pool.unpaid is expected


@pytest.mark.parametrize("text", ["-1.0", "1.1234567", "007", "123456789012345678"])
def test_a_rate_that_somebody_wrote_into_a_status_leaves_the_pool_without_a_price(text: str) -> None:
    broken = chat().status(rate=rate(outputPerMillionTokens=text))
    assert compiled(picture(broken)).pools[0].card is None


def test_the_largest_rate_that_can_be_written_still_fits_the_message() -> None:
    (pool,) = compiled(picture(chat().status(rate=rate(outputPerMillionTokens="999999999999.999999")))).pools
    assert pool.card is not None


@pytest.mark.parametrize(
    "bad",
    [
        make_budget("huge").limit("999999999999"),
        make_budget("many").limit(999_999_999_999),
        make_budget("lost").spec(limit={**GOOD.obj()["spec"]["limit"], "timeZone": "Mars/Olympus"}),
    ],
)
def test_a_budget_that_cannot_be_counted_keeps_no_other_from_the_ledger_and_the_routers(bad: BudgetBuilder) -> None:
    made = picture(chat(), GOOD, bad)
    message = PutBudgets(version=(1, 1), budgets=wanted_budgets(made))
    assert [one.name for one in msgspec.json.decode(msgspec.json.encode(message), type=PutBudgets).budgets] == ["good"]
    assert [one.name for one in compiled(made).budgets] == ["good"]
    assert made.refused[bad.parsed().key]


def test_the_largest_budget_is_counted() -> None:
    made = picture(chat(), make_budget("large").limit(1_152_921_504))
    assert [one.budget.name for one in made.countable] == ["large"]
