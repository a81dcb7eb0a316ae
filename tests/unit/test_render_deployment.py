"""Deployments as they are applied, and which pod template they keep."""

import json
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import validate

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.render.deployment import (
    ANNOTATION_TEMPLATE,
    TemplatePlan,
    deployment,
    plan_template,
    spec_hash,
    validate_pool,
)
from fairlead_operator.render.pod_template import Images, RenderSettings, container
from fairlead_operator.render.services import pool_disruption_budget, pool_headless_service, pool_service
from tests.builders.resources import PoolBuilder, make_pool
from tests.golden_files import assert_golden

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


def plan(pool: ModelPool, live: dict[str, str] | None = None, images: Images = IMAGES, **options: bool) -> TemplatePlan:
    return plan_template(pool, pool.spec.variants[0], images, SETTINGS, live, **options)


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
    assert not second.changed
    assert second.stale == (
        "Variant h100 keeps engine image vllm/vllm-openai:v0.32.0 (now vllm/vllm-openai:v0.33.0), "
        "router image fairlead-router:0.1.0 (now fairlead-router:0.2.0)."
    )


def test_a_changed_spec_takes_the_new_release_with_it() -> None:
    first = plan(h100_fp8().parsed())
    newer = Images("fairlead-router:0.2.0", IMAGES.engine)
    second = plan(h100_fp8().engine(maxSequences=64).parsed(), first.annotations, newer)
    assert second.changed
    assert second.stale == ""
    assert container(second.template, "router")["image"] == "fairlead-router:0.2.0"


def test_a_held_template_waits_for_its_turn() -> None:
    first = plan(h100_fp8().parsed())
    held = plan(h100_fp8().engine(maxSequences=64).parsed(), first.annotations, hold=True)
    assert (held.template, held.changed) == (first.template, False)


def test_scaling_and_surge_change_no_pod() -> None:
    one, other = h100_fp8().parsed(), h100_fp8().autoscaling(9).rollout(maxSurge=2).parsed()
    assert spec_hash(one.spec, one.spec.variants[0]) == spec_hash(other.spec, other.spec.variants[0])


def test_a_restart_annotation_renders_anew() -> None:
    first = plan(h100_fp8().parsed())
    restarted = h100_fp8().pod_template(metadata={"annotations": {"restarted": "now"}}).parsed()
    assert plan(restarted, first.annotations).changed


def test_a_damaged_annotation_renders_anew() -> None:
    pool = h100_fp8().parsed()
    first = plan(pool)
    again = plan(pool, {**first.annotations, ANNOTATION_TEMPLATE: "{"})
    assert again.template == first.template
    assert json.loads(again.annotations[ANNOTATION_TEMPLATE]) == first.template
