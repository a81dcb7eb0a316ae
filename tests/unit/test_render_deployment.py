"""Deployments as they are applied, and which pod template they keep."""

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import validate

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.decide.facts import Trouble
from fairlead_operator.decide.rollout import Inputs, Live, Pin, decide
from fairlead_operator.render.deployment import (
    TemplatePlan,
    deployment,
    plan_template,
    spec_hash,
    spec_hashes,
    validate_pool,
)
from fairlead_operator.render.objects import variant_labels
from fairlead_operator.render.pod_template import Images, RenderSettings, container
from fairlead_operator.render.revisions import ANNOTATION_TEMPLATE, kept_of, live_of, pin_of
from fairlead_operator.render.services import pool_disruption_budget, pool_headless_service, pool_service
from tests.builders.decisions import pod
from tests.builders.resources import PoolBuilder, make_pool
from tests.golden_files import GOLDEN, assert_golden

IMAGES = Images("fairlead-router:0.1.0", "vllm/vllm-openai:v0.32.0")
SETTINGS = RenderSettings()
KUBERNETES = "1.34.0"


def cpu_demo() -> PoolBuilder:
    engine = {
        "name": "engine",
        "env": [{"name": "TORCHDYNAMO_DISABLE", "value": "1"}],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
    }
    return (
        make_pool("tiny", "demo")
        .spec(model={"uri": "pvc://models/tiny"})
        .engine(image="vllm-cpu:0.32.0", maxContextTokens=2048, maxSequences=4, extraArgs=["--enforce-eager"])
        .variant("cpu", accelerator={"resourceName": "cpu"})
        .autoscaling(2, 0, objectives={"queueDepth": 2})
        .rollout(drainTimeout="30s", startupTimeout="5m")
        .pod_template(spec={"containers": [engine]})
    )


def h100_fp8() -> PoolBuilder:
    gpu = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    return (
        make_pool("llama-8b", "team-a")
        .model(uri="hf://meta-llama/Llama-3.1-8B-Instruct", revision="0e9e39f", secretRef={"name": "hf-token"})
        .engine(
            maxContextTokens=16384,
            quantization={"weights": "fp8", "kvCache": "fp8"},
            speculativeDecoding={"method": "ngram", "tokens": 4, "maxBatchSize": 16},
        )
        .variant(
            "h100",
            nodeSelector=gpu,
            tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        )
        .autoscaling(3)
    )


def tp2_long() -> PoolBuilder:
    return (
        make_pool("chat-8b-long")
        .model(uri="hf://meta-llama/Llama-3.1-8B-Instruct", cache={"claimName": "models"})
        .engine(maxContextTokens=131072, maxSequences=16, maxBatchedTokens=16384)
        .variant("h100", parallelism={"tensor": 2})
        .autoscaling(6, 0)
        .rollout(maxSurge=0, maxUnavailable=1)
    )


def plan(pool: ModelPool, live: dict[str, str] | None = None, images: Images = IMAGES, **given: Any) -> TemplatePlan:
    """What follows for the first variant from a Deployment with these annotations."""
    variant = pool.spec.variants[0]
    found = {} if live is None else {variant.name: live_of({"metadata": {"annotations": live}})}
    inputs: dict[str, Any] = {"wanted": spec_hashes(pool.spec), "live": found, "pods": (), "now_ms": 0} | given
    return plan_template(pool, variant, images, SETTINGS, decision=decide(Inputs(**inputs)), live_annotations=live)


@pytest.mark.parametrize("build", [cpu_demo, h100_fp8, tp2_long])
def test_the_deployment_is_as_recorded_and_kubernetes_takes_it(build: Any) -> None:
    pool = build().parsed()
    body = deployment(pool, pool.spec.variants[0], plan(pool), replicas=2)
    assert validate_pool(pool) == ()
    validate(body, KUBERNETES, strict=True)
    shown = {**body, "metadata": {key: value for key, value in body["metadata"].items() if key != "annotations"}}
    assert_golden(f"render/{pool.name}.yaml", yaml.safe_dump(shown, sort_keys=False, width=120))


@pytest.mark.parametrize("render", [pool_service, pool_headless_service, pool_disruption_budget])
def test_what_stands_beside_the_deployments_is_valid_and_owned(render: Any) -> None:
    body = render(h100_fp8().parsed())
    validate(body, KUBERNETES, strict=True)
    assert body["metadata"]["ownerReferences"][0]["uid"] == "uid-team-a-llama-8b"


def test_an_image_volume_is_valid() -> None:
    pool = make_pool("chat").spec(model={"uri": "oci://registry.example/8b:v1"}).parsed()
    body = deployment(pool, pool.spec.variants[0], plan(pool), replicas=0)
    validate(body, KUBERNETES, strict=True)
    assert {"name": "model-image", "mountPath": "/models/image", "readOnly": True} in container(
        body["spec"]["template"], "engine"
    )["volumeMounts"]


def test_a_claim_that_holds_model_and_draft_is_mounted_once() -> None:
    drafting = {"method": "draft_model", "tokens": 2, "model": "pvc://weights/draft"}
    pool = make_pool("chat").spec(model={"uri": "pvc://weights/8b"}).engine(speculativeDecoding=drafting).parsed()
    mounts = container(plan(pool).template, "engine")["volumeMounts"]
    assert [mount["mountPath"] for mount in mounts].count("/models/weights") == 1


def test_the_grace_period_outlasts_the_drain() -> None:
    template = plan(make_pool("chat").rollout(drainTimeout="90s").parsed()).template
    assert template["spec"]["terminationGracePeriodSeconds"] == 120
    drain = container(template, "engine")["lifecycle"]["preStop"]["exec"]["command"][2]
    compile(drain, "preStop", "exec")
    assert "settimeout(90)" in drain


def test_the_startup_probe_waits_for_the_startup_timeout() -> None:
    template = plan(make_pool("chat").rollout(startupTimeout="20m").parsed()).template
    probe = container(template, "engine")["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1200


def test_a_new_release_keeps_the_template_and_says_so() -> None:
    pool = h100_fp8().parsed()
    first = plan(pool)
    second = plan(pool, first.annotations, Images("fairlead-router:0.2.0", "vllm/vllm-openai:v0.33.0"))
    assert second.template == first.template
    assert second.annotations == first.annotations
    assert second.stale == (
        "Variant h100 keeps engine image vllm/vllm-openai:v0.32.0 (now vllm/vllm-openai:v0.33.0), "
        "router image fairlead-router:0.1.0 (now fairlead-router:0.2.0)."
    )


@pytest.mark.parametrize("build", [cpu_demo, h100_fp8, tp2_long])
def test_the_pods_of_the_release_before_are_left_as_they_are(build: Any) -> None:
    """tests/golden/render/previous.json holds Deployments as the release before wrote them."""
    pool = build().parsed()
    before = json.loads((GOLDEN / "render/previous.json").read_text(encoding="utf-8"))[pool.name]
    notes = before["metadata"]["annotations"]
    assert notes["fairlead.dev/spec-hash"] == spec_hash(pool.spec, pool.spec.variants[0])
    kept = plan(pool, notes)
    assert kept.template == before["spec"]["template"]
    assert kept.stale.endswith("keeps pods as an earlier release rendered them.")
    assert kept.annotations["fairlead.dev/revision"] == "1"
    changed = plan(build().engine(maxSequences=3).parsed(), notes)
    assert changed.annotations["fairlead.dev/revision"] == "2"
    assert changed.change.startswith("revision 1 to 2: ")


def test_the_revision_before_is_kept_word_for_word_when_it_comes_back() -> None:
    first = plan(h100_fp8().parsed())
    served = {**first.annotations, "fairlead.dev/served-revision": "1"}
    second = plan(h100_fp8().engine(maxSequences=64).parsed(), served)
    assert second.change.endswith("; + --max-num-seqs=64")
    kept = kept_of({"metadata": {"annotations": served, "labels": variant_labels("llama-8b", "h100")}})
    assert kept is not None
    spec = h100_fp8().engine(maxSequences=64).parsed()
    died = replace(pod("x", ready=False), revision="2", restarts=3, trouble=Trouble("Exited", "engine", "exit code 0"))
    back = plan(spec, second.annotations, pods=(died,), kept=(kept,))
    assert back.template == first.template
    failure = live_of({"metadata": {"annotations": back.annotations}}).failure
    assert failure is not None
    assert (failure.revision, failure.reason) == (2, "Exited")


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"image": "vllm:2"}, {"image": "vllm:3"}, "engine image vllm:2 to vllm:3"),
        ({"maxSequences": 4}, {"maxSequences": 8}, "--max-num-seqs 4 to 8"),
        ({"maxSequences": 4}, {}, "- --max-num-seqs=4"),
        ({}, {"extraArgs": ["--enforce-eager"]}, "+ --enforce-eager"),
    ],
)
def test_a_change_is_told_in_the_engines_words(before: dict[str, Any], after: dict[str, Any], text: str) -> None:
    first = plan(make_pool("chat").engine(**before).parsed())
    second = plan(make_pool("chat").spec(engine=after).parsed(), first.annotations)
    assert second.change == f"revision 1 to 2: {text}"


def test_a_restart_is_told_as_one() -> None:
    first = plan(make_pool("chat").parsed())
    again = make_pool("chat").pod_template(metadata={"annotations": {"fairlead.dev/restarted-at": "now"}}).parsed()
    assert plan(again, first.annotations).change == "revision 1 to 2: restart"


def test_what_somebody_else_wrote_into_the_annotations_counts_as_absent() -> None:
    notes = {
        "fairlead.dev/revision": "٣", "fairlead.dev/served-revision": "-1", "fairlead.dev/newest-revision": "9",
        "fairlead.dev/failed-revision": '{"revision": "1"}', "fairlead.dev/template": '{"spec": []}',
    }  # fmt: skip
    assert live_of({"metadata": {"annotations": notes}}) == Live(1, "")
    assert kept_of({"metadata": {"annotations": notes}}) is None
    for text in ("", "12", "13 to x", "13 to 12 ", "1234567890 to 1"):
        assert pin_of({"fairlead.dev/undo": text}) is None
    assert pin_of({"fairlead.dev/undo": "13 to 12"}) == Pin(12, 13)


# --- adapters ---


def lora(*uris: str, **fields: Any) -> dict[str, Any]:
    adapters = [{"name": f"a{place}", "uri": uri} for place, uri in enumerate(uris)]
    return {"lora": {"adapters": adapters, **fields}}


def test_adapters_come_and_go_without_a_rollout_unless_they_need_a_volume() -> None:
    pool = make_pool("chat").model(**lora("hf://a/b"))
    same = [pool.model(**lora("hf://a/b", "hf://a/c")), pool.model(**lora("hf://x/y"))]
    beside = make_pool("chat").spec(model={"uri": "pvc://claim/8b", **lora("hf://a/b")})
    assert len({_hash(beside), _hash(beside.model(**lora("pvc://claim/a")))}) == 1
    other = [pool.model(**lora("pvc://claim/a")), pool.model(**lora("hf://a/b", maxRank=64)), make_pool("chat")]
    assert {_hash(one) for one in same} == {_hash(pool)}
    assert _hash(pool) not in {_hash(one) for one in other}


def _hash(pool: PoolBuilder) -> str:
    spec = pool.parsed().spec
    return spec_hash(spec, spec.variants[0])


def test_the_claims_of_adapters_are_mounted_once_and_the_engine_may_load_them() -> None:
    pool = make_pool("chat").spec(model={"uri": "pvc://weights/8b"})
    engine = container(
        plan(pool.model(**lora("pvc://b/x", "pvc://a/y", "pvc://weights/z")).parsed()).template, "engine"
    )
    assert [one["mountPath"] for one in engine["volumeMounts"][4:]] == ["/models/weights", "/models/a", "/models/b"]
    assert {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "True"} in engine["env"]
    names = {one["name"] for one in container(plan(pool.parsed()).template, "engine")["env"]}
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in names


def test_an_engine_that_needs_nothing_of_the_hub_does_not_ask_it() -> None:
    def offline(uri: str) -> bool:
        template = plan(make_pool("chat").spec(model={"uri": uri}).parsed()).template
        return {"name": "HF_HUB_OFFLINE", "value": "1"} in container(template, "engine")["env"]

    assert (offline("pvc://weights/8b"), offline("hf://acme/8b")) == (True, False)


def test_stranded_pods_do_not_keep_a_node_from_being_drained() -> None:
    spec = pool_disruption_budget(h100_fp8().parsed(), stranded=2)["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (3, "AlwaysAllow")


def test_a_changed_spec_takes_the_new_release_with_it() -> None:
    first = plan(h100_fp8().parsed())
    newer = Images("fairlead-router:0.2.0", IMAGES.engine)
    second = plan(h100_fp8().engine(maxSequences=64).parsed(), first.annotations, newer)
    assert second.template != first.template
    assert second.stale == ""
    assert container(second.template, "router")["image"] == "fairlead-router:0.2.0"


def test_scaling_and_surge_change_no_pod() -> None:
    one, other = h100_fp8().parsed(), h100_fp8().autoscaling(9).rollout(maxSurge=2).parsed()
    assert spec_hash(one.spec, one.spec.variants[0]) == spec_hash(other.spec, other.spec.variants[0])


def test_a_restart_annotation_renders_anew() -> None:
    first = plan(h100_fp8().parsed())
    restarted = h100_fp8().pod_template(metadata={"annotations": {"restarted": "now"}}).parsed()
    assert plan(restarted, first.annotations).template != first.template


def test_a_damaged_annotation_renders_anew() -> None:
    pool = h100_fp8().parsed()
    first = plan(pool)
    again = plan(pool, {**first.annotations, ANNOTATION_TEMPLATE: "{"})
    assert again.template == first.template
    assert json.loads(again.annotations[ANNOTATION_TEMPLATE]) == first.template


@pytest.mark.parametrize(("time", "fine"), [("0s", False), ("500ms", False), ("9999ms", False), ("10s", True)])
def test_a_start_that_no_engine_makes_in_time_is_refused(time: str, fine: bool) -> None:
    found = validate_pool(make_pool("chat").variant("h100").rollout(startupTimeout=time).parsed())
    assert [one.path for one in found] == ([] if fine else ["spec.rollout.startupTimeout"])
    assert fine or found[0].message == (
        f"spec.rollout.startupTimeout is {time}, and no engine is ready in less than 10s: each pod would be ended "
        "while it starts. Set the longest start that is still good, such as 20m."
    )
