"""ModelPool's conditions, figures and Events, in the words that people read."""

import json
from dataclasses import replace
from typing import Any

import pytest

from fairlead_operator.api.v1alpha1 import ModelPoolStatus
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.placement import NoRoom
from fairlead_operator.decide.pricing import VariantPrice
from fairlead_operator.decide.problems import Problem
from fairlead_operator.decide.rates import PoolCard, Rates
from fairlead_operator.decide.replicas import Inputs, Spending, decide
from fairlead_operator.decide.rollout import Action, Failure, Newest, Pin, Step
from fairlead_operator.decide.rollout import Decision as RolloutDecision
from fairlead_operator.render.deployment import TemplatePlan, first_revision, plan_template
from fairlead_operator.render.pod_template import Images, RenderSettings
from fairlead_operator.status.events import events_of_modelpool, events_of_pods, replica_ready, scaled, warnings_of
from fairlead_operator.status.modelpool import PoolView, modelpool_status
from tests.builders.decisions import GONE, NOW, bounds, inputs, load, option, pod
from tests.builders.resources import PoolBuilder, make_pool
from tests.golden_files import assert_golden

PRICE = VariantPrice("h100", 2_950_000_000, 2_950_000_000, "contract-4711")
IMAGES = Images("fairlead-router:0.1.0", "vllm/vllm-openai:v0.32.0")
CARD = PoolCard(7, Rates(32_000, 3_200, 96_000), "Seed", NOW - 60_000)


def chat() -> PoolBuilder:
    return make_pool("chat-8b").variant("h100").autoscaling(8)


def view(given: Inputs | None = None, pods: tuple[PodFact, ...] | None = None, **fields: Any) -> PoolView:
    situation = given or inputs()
    usual: dict[str, Any] = {
        "pool": chat().parsed(),
        "decision": decide(situation),
        "load": situation.load,
        "pods": (pod(),) if pods is None else pods,
        "prices": {"h100": PRICE},
        "card": CARD,
        "cold_start_ms": 91_000,
    }
    return PoolView(**(usual | fields))


def condition(made: PoolView, kind: str, old: dict[str, Any] | None = None) -> tuple[str, str, str]:
    status = modelpool_status(made, old or {}, NOW)
    found = next(item for item in status["conditions"] if item["type"] == kind)
    return found["status"], found["reason"], found["message"]


def deployment(existing: int, updated: int, *, overdue: bool = False) -> dict[str, Any]:
    reasons = [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}] if overdue else []
    return {
        "metadata": {"labels": {"fairlead.dev/variant": "h100"}},
        "spec": {"replicas": 3},
        "status": {"replicas": existing, "updatedReplicas": updated, "conditions": reasons},
    }


def test_a_serving_pools_status_is_as_recorded_and_fits_the_schema() -> None:
    grown = inputs(load=load(running=4, held=8))
    pool = chat().parsed()
    first = first_revision(pool.spec)
    plan = plan_template(pool, pool.spec.variants[0], IMAGES, RenderSettings(), decision=first)
    figures: dict[str, Any] = {
        "cost_per_thousand": 98_000_000,
        "ttft_ms": 1310,
        "tpot_ms": 38,
        "attainment_percent": 99,
    }
    status = modelpool_status(view(grown, plans={"h100": plan}, revisions=first, **figures), {}, NOW)
    ModelPoolStatus.model_validate(status)
    assert_golden("status/modelpool.json", json.dumps(status, indent=2) + "\n")


def test_conditions_keep_their_time_until_their_status_flips() -> None:
    first = modelpool_status(view(), {}, NOW)
    later = modelpool_status(view(pods=()), first, NOW + 60_000)
    times = {item["type"]: item["lastTransitionTime"] for item in later["conditions"]}
    assert times["Available"] == "2026-11-20T11:01:00Z"
    assert times["Accepted"] == "2026-11-20T11:00:00Z"


def test_at_zero_the_pool_is_available() -> None:
    zero = inputs(bounds=bounds(minimum=0), options=(option(current=0),))
    assert condition(view(zero, pods=()), "Available") == (
        "True",
        "ScaledToZero",
        "At zero. The next request starts a replica, usually ready after 1m31s, and is held until then.",
    )


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({}, "Starting", "0 of 1 replica is ready. 1 is starting, the oldest for 1h. A start usually takes 1m31s."),
        (
            {"waiting": {"reason": "CrashLoopBackOff"}, "ended": {"exitCode": 1, "message": "no such model"}},
            "ReplicasMissing",
            "0 of 1 replica is ready. Pod x container engine ended 3 times (exit code 1: no such model).",
        ),
        (
            {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}},
            "ReplicasMissing",
            "0 of 1 replica is ready. Pod x cannot get its image vllm:1: manifest unknown.",
        ),
        (
            {"unscheduled": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."},
            "ReplicasMissing",
            (
                "0 of 1 replica is ready. Pod x has no node: none of 3 nodes takes it: "
                "3 have too little nvidia.com/gpu free."
            ),
        ),
    ],
)
def test_a_pool_without_a_ready_replica_says_why(fields: dict[str, Any], reason: str, message: str) -> None:
    made = view(pods=(pod("x", ready=False, **fields),))
    assert condition(made, "Available") == ("False", reason, message)
    assert condition(made, "Ready")[:2] == ("False", reason)


def test_a_refused_spec_says_what_still_runs() -> None:
    problem = Problem("InvalidArgument", "spec.engine.extraArgs[0] `--uds=x` is set by Fairlead.")
    made = view(problems=(problem,))
    assert condition(made, "Accepted") == (
        "False",
        "InvalidArgument",
        "spec.engine.extraArgs[0] `--uds=x` is set by Fairlead. What runs keeps serving.",
    )
    assert condition(made, "Ready")[1] == "InvalidArgument"


def test_a_warning_stops_nothing_and_is_told_as_an_event() -> None:
    warning = Problem("UnknownQuantization", "fp5 is unknown", warning=True)
    assert condition(view(problems=(warning,)), "Accepted")[0] == "True"
    assert warnings_of([warning])[0].type == "Warning"


def test_a_revision_that_is_not_pinned_is_told() -> None:
    loose = chat().spec(model={"uri": "hf://acme/chat-8b"}).parsed()
    assert condition(view(pool=loose), "Accepted")[:2] == ("True", "RevisionNotPinned")


def test_signals_that_are_missing_are_named() -> None:
    made = view(inputs(options=(option(current=4),), load=load(missing=(GONE,))))
    assert condition(made, "ScalingActive") == (
        "False",
        "SignalsMissing",
        (
            "No signals from router ai-platform/chat-8b-h100-2mwq8 since 10:59:13Z (47s; 15s allowed). It keeps "
            "4 replicas and does not scale down. See kubectl logs -n ai-platform chat-8b-h100-2mwq8 -c router."
        ),
    )
    assert "queueDepth" not in modelpool_status(made, {}, NOW)["service"]


def test_the_bound_that_binds_is_named() -> None:
    made = view(inputs(bounds=bounds(maximum=2), load=load(running=4, held=30)))
    assert condition(made, "ScalingLimited") == (
        "True",
        "MaxReplicas",
        "Wants 6 replicas, autoscaling.maxReplicas allows 2. 30 requests wait. Raise it to serve them.",
    )


def test_pods_without_a_node_limit_the_scaling() -> None:
    made = view(pods=(pod(), pod("x", ready=False, unscheduled="no gpu")))
    assert condition(made, "ScalingLimited") == (
        "True",
        "NoCapacity",
        "Wants 1 replica, has 1: Pod x has no node: no gpu. Add such a node, or lower the number of replicas.",
    )


def test_a_price_that_is_missing_is_said_with_its_consequence() -> None:
    bare = VariantPrice("h100", None, None, "", "Variant h100 has no price: no entry matches.")
    made = view(prices={"h100": bare}, card=None)
    assert condition(made, "PriceKnown") == (
        "False",
        "NoPrice",
        (
            "Variant h100 has no price: no entry matches. USD budgets refuse it. "
            "Add it to prices.accelerators in the chart's values."
        ),
    )
    status = modelpool_status(made, {}, NOW)
    assert "costPerHour" not in status
    assert "rate" not in status
    assert condition(view(card=None), "PriceKnown")[1] == "NoPrice"


def test_a_rollout_is_told_from_start_to_end() -> None:
    rolling = view(deployments={"h100": deployment(4, 1)})
    assert condition(rolling, "Progressing") == (
        "True",
        "RollingOut",
        "Variant h100: 1 of 3 pods run the new template, 1 more at a time.",
    )
    before, during = modelpool_status(view(), {}, NOW), modelpool_status(rolling, {}, NOW)
    assert [event.reason for event in events_of_modelpool(before, during)] == ["RolloutStarted"]
    assert [event.reason for event in events_of_modelpool(during, before)] == ["RolloutFinished"]


def test_a_rollout_that_finds_no_node_says_how_to_go_on() -> None:
    pods = (pod(), pod("x", ready=False, unscheduled="0/3 nodes are available."))
    stuck = view(pods=pods, deployments={"h100": deployment(4, 1, overdue=True)})
    assert condition(stuck, "Progressing") == (
        "False",
        "NoCapacityForSurge",
        (
            "Variant h100: no progress within startupTimeout (20m). Pod x has no node: 0/3 nodes are available. "
            "Set rollout.maxSurge to 0 and maxUnavailable to 1, or add a node."
        ),
    )


def test_a_first_start_that_takes_too_long_is_told() -> None:
    stuck = view(pods=(pod("x", ready=False),), deployments={"h100": deployment(1, 1, overdue=True)})
    assert condition(stuck, "Progressing")[1] == "StartupTimedOut"
    assert condition(stuck, "Available")[1] == "ReplicasMissing"


def test_a_pool_of_an_earlier_release_waits_for_its_restart() -> None:
    plan = TemplatePlan({}, {}, stale="Variant h100 keeps router image a (now b).")
    assert condition(view(plans={"h100": plan}), "UpToDate")[:2] == ("False", "RestartPending")


def test_a_fixed_number_is_nobodys_autoscaling() -> None:
    fixed = make_pool("chat-8b").variant("h100").replicas(0).parsed()
    made = view(inputs(bounds=bounds(0, 0), options=(option(current=0),)), pods=(), pool=fixed)
    assert condition(made, "ScalingActive")[1] == "ReplicasSet"
    assert condition(made, "Available")[2] == "At zero: spec.replicas is 0. Requests are refused until it is raised."


def test_decisions_are_kept_newest_first_and_told_once() -> None:
    up = inputs(load=load(running=4, held=8))
    status: dict[str, Any] = {}
    for _ in range(2):
        status = modelpool_status(view(up), status, NOW)
    assert [entry["toReplicas"] for entry in status["scaling"]] == [2]
    for count in range(2, 9):
        grown = inputs(options=(option(current=count),), load=load(running=6 * count + 1))
        status = modelpool_status(view(grown), status, NOW)
    assert [entry["toReplicas"] for entry in status["scaling"]] == [9, 8, 7, 6, 5]


def test_the_rates_time_stays_while_the_version_does() -> None:
    first = modelpool_status(view(), {}, NOW)
    read_back = PoolCard(7, CARD.rates, "Seed", 0)
    again = modelpool_status(view(card=read_back), first, NOW + 60_000)
    assert again["rate"] == first["rate"]


def test_a_scaling_event_has_the_money() -> None:
    options = (option("h100", 3), option("l40s", 0, price=1_550_000_000))
    event = scaled(decide(inputs(options=options, load=load(running=12, held=7))), options)
    assert event is not None
    assert (event.reason, event.message) == (
        "ScaledUp",
        "3 to 4 replicas (+1 l40s), 8.85 to 10.40 USD/h: 19 requests are above the 18 that 3 replicas may hold",
    )
    assert scaled(decide(inputs()), (option(),)) is None


def test_events_tell_turns_not_states() -> None:
    bare = VariantPrice("h100", None, None, "", "Variant h100 has no price.")
    fine = modelpool_status(view(), {}, NOW)
    refused = Problem("InvalidArgument", "no")
    broken = modelpool_status(view(prices={"h100": bare}, problems=(refused,)), fine, NOW)
    assert [event.reason for event in events_of_modelpool(fine, broken)] == ["InvalidArgument", "PriceUnknown"]
    assert events_of_modelpool(broken, broken) == ()


def test_pods_with_the_same_trouble_tell_it_once_and_always_the_same_way() -> None:
    pods = [pod(name, ready=False, unscheduled="no gpu") for name in ("y", "x", "z")]
    assert [event.message for event in events_of_pods(pods)] == ["Pod x has no node: no gpu."]
    assert events_of_pods(pods) == events_of_pods(reversed(pods))
    crashing = pod("w", ready=False, waiting={"reason": "CrashLoopBackOff"}, ended={"exitCode": 1})
    assert len(events_of_pods([*pods, crashing])) == 2
    assert events_of_pods([pod("x", ready=False, unscheduled="no gpu", deleting=True)]) == ()


def test_a_scaling_events_numbers_are_fields_of_its_log_line() -> None:
    event = scaled(decide(inputs(load=load(running=4, held=8))), (option(),))
    assert event is not None
    assert dict(event.fields) == {
        "from": 1,
        "to": 2,
        "wanted": 2,
        "set": "h100:2",
        "usd_h_from": "2.95",
        "usd_h_to": "5.90",
        "cause": "QueueDepth",
        "bound_by": None,
    }


def test_pods_that_end_cost_and_those_without_a_node_do_not() -> None:
    pods = (pod(), pod("x", deleting=True), pod("y", ready=False, unscheduled="no gpu"))
    assert modelpool_status(view(pods=pods), {}, NOW)["costPerHour"] == "5.90"


def test_a_pod_of_a_variant_without_a_price_leaves_the_cost_unknown() -> None:
    assert "costPerHour" not in modelpool_status(view(pods=(pod(variant="removed"),)), {}, NOW)


def test_while_open_cost_has_still_to_be_heard_the_card_of_before_counts_and_its_price_is_unknown() -> None:
    bare = VariantPrice("h100", None, None, "", "Variant h100 has no price.")
    status, reason, message = condition(view(prices={"h100": bare}, awaited=True), "PriceKnown")
    assert (status, reason) == ("Unknown", "NoPrice")
    assert message == "Variant h100 has no price. Requests are charged by card 7 until OpenCost has answered."
    assert condition(view(prices={"h100": bare}, awaited=True, card=None), "PriceKnown")[0] == "False"


def test_what_the_card_was_cut_from_is_told_with_the_prices_and_shown_as_one_word() -> None:
    measured = replace(CARD, source="Measured 750000/750000/750000 ppm of seeds, 0a1b2c3d")
    shown = view(card=measured, capacity="the seeds' proportions scaled")
    assert condition(shown, "PriceKnown")[2].endswith("; the seeds' proportions scaled.")
    assert modelpool_status(shown, {}, NOW)["rate"]["source"] == "Measured"


def test_a_card_that_the_ledger_has_not_taken_yet_blames_no_seeds() -> None:
    assert condition(view(card=None, seeded=True), "PriceKnown") == (
        "False",
        "LedgerUnreachable",
        "The ledger has not taken the pool's rate card yet. USD budgets refuse it until then.",
    )


@pytest.mark.parametrize(("ms", "text"), [(1310, "1310ms"), (10**15, "99999s")])
def test_what_a_router_claims_of_its_latency_always_fits_the_schema(ms: int, text: str) -> None:
    status = modelpool_status(view(ttft_ms=ms, tpot_ms=-5), {}, NOW)
    ModelPoolStatus.model_validate(status)
    assert status["service"]["timeToFirstToken"] == text
    assert "timePerOutputToken" not in status["service"]


def test_a_pods_trouble_and_readiness_are_events() -> None:
    (event,) = events_of_pods([pod(), pod("x", ready=False, unscheduled="no gpu")])
    assert (event.reason, event.message) == ("ReplicaTroubled", "Pod x has no node: no gpu.")
    assert replica_ready(pod("x"), 91_400).message == "x is ready after 1m31s"


# --- what limits and stops scaling ---


@pytest.mark.parametrize(
    ("spending", "message"),
    [
        (
            Spending(per_hour=3_000_000_000),
            (
                "Wants 2 replicas, the budgets with idleCost: Included leave money for 1. 8 requests wait. "
                "Raise their limits, or wait for the next window."
            ),
        ),
        (
            Spending(per_thousand=1, requests_per_hour=1),
            (
                "Wants 2 replicas, autoscaling.maxCostPerThousandRequests allows 1. 8 requests wait. "
                "Raise it, or add a cheaper variant."
            ),
        ),
    ],
)
def test_money_that_binds_is_a_condition_with_a_remedy(spending: Spending, message: str) -> None:
    poor = view(inputs(load=load(running=4, held=8), spending=spending))
    reason = "Budget" if spending.per_hour is not None else "CostPerRequest"
    assert condition(poor, "ScalingLimited") == ("True", reason, message)


def test_a_variant_without_room_is_a_condition_that_says_when_it_is_tried_again() -> None:
    full = view(full={"l40s": NoRoom(0, NOW + 60_000, "")})
    assert condition(full, "ScalingLimited") == (
        "True",
        "NoCapacity",
        (
            "Variant l40s has no room for more than 0 replicas. Other variants serve instead where there are any; "
            "it is tried again at 11:01:00Z."
        ),
    )


def test_a_second_writer_stops_scaling_and_is_named() -> None:
    status, reason, message = condition(view(second_writer="kubectl set it."), "ScalingActive")
    assert (status, reason, message) == ("False", "SecondWriter", "kubectl set it.")


def test_objectives_that_do_not_count_yet_are_said() -> None:
    status, reason, message = condition(view(latency="the capacity of variant h100 is being computed"), "ScalingActive")
    assert (status, reason) == ("True", "SignalsFresh")
    assert message.endswith("queueDepth does: the capacity of variant h100 is being computed.")


def test_replicas_that_change_their_variant_are_told_as_a_scale_up() -> None:
    options = (option("h100", 1), option("l40s", 0, 1_550_000_000))
    moved = replace(decide(inputs(options=options)), counts=(("h100", 0), ("l40s", 1)), moved=True)
    event = scaled(moved, options)
    assert event is not None
    assert event.reason == "ScaledUp"
    assert event.message.startswith("1 to 1 replicas (-1 h100, +1 l40s)")


# --- revisions ---

FAILED = Failure(13, "cafe", "h100", "CrashLoop", "Pod x container engine ended 3 times (exit code 1: ValueError: no).")


def revised(action: Action = "Keep", revision: int = 12, served: int = 12, **fields: Any) -> RolloutDecision:
    steps = {"h100": Step(action, revision, served, waits_for=fields.pop("waits_for", ""))}
    return RolloutDecision(Newest(13, "cafe"), steps, **fields)


def test_a_revision_that_failed_is_told_with_the_engines_words_and_what_to_do() -> None:
    back = view(revisions=revised(failure=FAILED), deployments={"h100": deployment(4, 3)})
    assert condition(back, "Progressing") == (
        "False",
        "RolledBack",
        (
            "Revision 13 of variant h100 never became ready. Pod x container engine ended 3 times (exit code 1: "
            "ValueError: no). Back to revision 12: variant h100, 3 of 3 pods. Change the spec, or try again with "
            "fairlead rollout restart chat-8b -n ai-platform."
        ),
    )
    assert condition(back, "UpToDate") == (
        "False", "RolledBack", "The spec asks for revision 13, revision 12 runs: see Progressing.",
    )  # fmt: skip
    done = view(revisions=revised(failure=FAILED), deployments={"h100": deployment(3, 3)})
    assert "Revision 12 runs." in condition(done, "Progressing")[2]
    alone = view(revisions=revised(failure=FAILED, missing=("h100",)), deployments={"h100": deployment(3, 3)})
    assert "Variant h100 has no earlier revision that served." in condition(alone, "Progressing")[2]
    told = events_of_modelpool(modelpool_status(view(), {}, NOW), modelpool_status(back, {}, NOW))
    assert [(event.type, event.reason) for event in told] == [("Warning", "RolledBack")]


def test_an_undo_is_told_while_it_holds() -> None:
    pinned = revised(pin=Pin(12, 13))
    held = view(revisions=pinned, deployments={"h100": deployment(3, 3)})
    assert condition(held, "Progressing") == (
        "False",
        "Undone",
        "Revision 12 runs in place of 13: fairlead rollout undo asked for it. The next change of the spec ends that.",
    )
    assert condition(held, "UpToDate")[:2] == ("False", "Undone")
    told = events_of_modelpool(modelpool_status(view(), {}, NOW), modelpool_status(held, {}, NOW))
    assert [(event.type, event.reason) for event in told] == [("Normal", "RolloutUndone")]


def test_a_rollout_is_not_called_complete_before_its_deployment_was_looked_at() -> None:
    present = deployment(3, 3)
    begins = view(revisions=revised("Render", 13), deployments={"h100": present})
    assert condition(begins, "Progressing")[2] == "Variant h100: 0 of 3 pods run the new template, 1 more at a time."
    unseen = {**present, "metadata": {**present["metadata"], "generation": 2}}
    assert (
        condition(view(revisions=revised(revision=13), deployments={"h100": unseen}), "Progressing")[1] == "RollingOut"
    )
    scaled_only = view(revisions=revised(), deployments={"h100": unseen})
    assert condition(scaled_only, "Progressing")[1] == "Complete"
    starts = {**present["status"], "conditions": [{"reason": "ReplicaSetUpdated"}]}
    late = view(revisions=revised(revision=13, served=13), deployments={"h100": {**present, "status": starts}})
    assert condition(late, "Progressing")[1] == "RollingOut"


def test_a_variant_that_waits_for_its_turn_is_named() -> None:
    waits = view(revisions=revised(waits_for="l40s"), deployments={"h100": deployment(3, 3)})
    assert condition(waits, "Progressing") == ("True", "RollingOut", "Variant h100 waits for l40s.")


def test_the_end_of_a_rollout_tells_how_long_it_took() -> None:
    rolling = modelpool_status(view(deployments={"h100": deployment(4, 1)}), {}, NOW)
    done = modelpool_status(view(revisions=revised()), rolling, NOW + 680_000)
    (event,) = events_of_modelpool(rolling, done)
    assert (event.reason, event.message) == ("RolloutFinished", "All pods run revision 12. It took 11m20s.")


def test_what_is_not_known_of_adapters_and_fit_is_said() -> None:
    adapters = [{"name": "sql", "readyReplicas": 1}]
    made = view(fit="Whether it fits is not known: x.", adapters=adapters, adapter_trouble="Adapter a is not loaded.")
    assert modelpool_status(made, {}, NOW)["adapters"] == adapters
    assert "adapters" not in modelpool_status(view(), {}, NOW)
    assert condition(made, "Accepted")[2].endswith("Whether it fits is not known: x.")
    assert condition(made, "Available")[2] == "1 of 1 replica is ready. Adapter a is not loaded."
    ModelPoolStatus.model_validate(modelpool_status(made, {}, NOW))


def test_pods_that_a_quota_refuses_are_told_as_what_limits_the_pool() -> None:
    name = "requests.nvidia.com/gpu"
    quota = f"pods x is forbidden: exceeded quota: gpu, requested: {name}=1, used: {name}=6, limited: {name}=6"
    refused = {"type": "ReplicaFailure", "status": "True", "message": quota}
    grown = inputs(options=(option(current=3),), bounds=bounds(minimum=3))
    short = view(grown, deployments={"h100": {**deployment(1, 1), "status": {"replicas": 1, "conditions": [refused]}}})
    assert condition(short, "ScalingLimited") == (
        "True", "NoCapacity", "Wants 3 replicas, has 1: ResourceQuota gpu allows 6 nvidia.com/gpu and 6 are used.",
    )  # fmt: skip
    assert "ResourceQuota gpu" in condition(short, "Available")[2]


def test_each_pod_costs_what_the_node_costs_that_it_runs_on() -> None:
    pods = (pod("a"), replace(pod("b"), node="spot-1"), replace(pod("c"), node=""))
    made = view(pods=pods, pod_prices={"ai-platform/a": 2_950_000_000, "ai-platform/b": 1_100_000_000})
    assert modelpool_status(made, {}, NOW)["costPerHour"] == "4.05"
    assert "costPerHour" not in modelpool_status(view(pods=pods, pod_prices={"ai-platform/b": None}), {}, NOW)
