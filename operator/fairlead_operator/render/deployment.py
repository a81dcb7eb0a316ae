"""A variant's Deployment, and which pod template it has: the kept one until the pool's spec changes.

Replacing the router's image, the default engine image or this renderer must not restart accelerators. So the template
that was rendered last is kept, as it was, in an annotation of the Deployment, with a hash of what of the spec it was
rendered from; decide/rollout.py says when another one takes its place.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPool, ModelPoolSpec, Reason, Variant
from fairlead_operator.api.v1alpha1.modelpool import ModelSource
from fairlead_operator.decide.facts import ENGINE, LABEL_POOL, LABEL_REVISION, LABEL_VARIANT, ROUTER
from fairlead_operator.decide.problems import Problem
from fairlead_operator.decide.rollout import Decision, Inputs, Step, decide
from fairlead_operator.render.engine_args import engine_problems
from fairlead_operator.render.merge import template_problems
from fairlead_operator.render.objects import deployment_name, metadata, variant_labels
from fairlead_operator.render.pod_template import (
    Images,
    RenderSettings,
    adapter_claims,
    container,
    engine_argument,
    pod_template,
)
from fairlead_operator.render.revisions import (
    ANNOTATION_SPEC,
    ANNOTATION_TEMPLATE,
    CHANGE_CAUSE,
    HISTORY,
    canonical,
    change_text,
    kept_template,
    notes_of,
)

MAX_TEMPLATE_BYTES = 200 * 1024
"""All annotations of an object together may have 256 KiB."""
DEADLINE_AFTER_STARTUP_S = 60
LEAST_STARTUP_S = 10


@dataclass(frozen=True, slots=True)
class TemplatePlan:
    """The pod template to apply, and what the Deployment says of it.

    ``stale``: what this release would render differently; such a pool waits for its next restart.
    """

    template: dict[str, Any]
    annotations: dict[str, str]
    stale: str = ""

    @property
    def engine_image(self) -> str:
        """Image of the engine in this template."""
        return str(container(self.template, ENGINE).get("image", ""))

    @property
    def checkpoint_revision(self) -> str:
        """Revision of the checkpoint that the engine loads; empty where none is named."""
        return engine_argument(self.template, "--revision")

    @property
    def change(self) -> str:
        """What this revision changed: ``revision 12 to 13: …``; empty for one of an earlier release."""
        return self.annotations.get(CHANGE_CAUSE, "")


def validate_pool(pool: ModelPool, image: str = "") -> tuple[Problem, ...]:
    """Everything that keeps the pool's spec from being rendered, and warnings.

    ``image`` is the release's engine image, which pools run that name none: its tag says which vLLM is asked.
    """
    spec = pool.spec
    return (
        *engine_problems(spec, pool.name, image),
        *_time_problems(spec),
        *template_problems(spec),
        *_size_problems(spec),
    )


def first_revision(spec: ModelPoolSpec) -> Decision:
    """The decision about a pool that does not run yet: every variant is rendered."""
    return decide(Inputs(wanted=spec_hashes(spec), live={}, pods=(), now_ms=0))


def plan_template(
    pool: ModelPool,
    variant: Variant,
    images: Images,
    settings: RenderSettings,
    *,
    decision: Decision,
    live_annotations: Mapping[str, str] | None = None,
) -> TemplatePlan:
    """What the decision's step for the variant comes to. ``live_annotations`` are the live Deployment's, if any."""
    step, live = decision.steps[variant.name], live_annotations or {}
    kept = kept_template(live)
    if step.kept is not None:
        template, spec, change = dict(step.kept.template), step.kept.spec_hash, step.kept.change
    elif step.action == "Keep" and kept is not None:
        template, spec, change = kept, live.get(ANNOTATION_SPEC, ""), live.get(CHANGE_CAUSE, "")
    else:
        template = pod_template(pool, variant, images, settings, str(step.revision))
        spec = spec_hash(pool.spec, variant)
        change = change_text(kept, template, _revision_of(kept), step.revision)
    annotations = {
        ANNOTATION_SPEC: spec,
        ANNOTATION_TEMPLATE: canonical(template),
        **notes_of(decision.newest, decision.failure, step.revision, step.served, change),
    }
    stale = _stale(pool, variant, images, settings, template) if _up_to_date(step, spec, pool, variant) else ""
    return TemplatePlan(template, annotations, stale)


def deployment(pool: ModelPool, variant: Variant, plan: TemplatePlan, replicas: int | None) -> dict[str, Any]:
    """The Deployment of a variant, to be applied as it is; without ``replicas`` their number is left to others."""
    rollout = pool.spec.rollout
    labels = variant_labels(pool.name, variant.name)
    meta = metadata(pool, deployment_name(pool.name, variant.name), labels)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**meta, "annotations": plan.annotations},
        "spec": {
            **({} if replicas is None else {"replicas": replicas}),
            "revisionHistoryLimit": HISTORY,
            "progressDeadlineSeconds": rollout.startup_timeout.seconds + DEADLINE_AFTER_STARTUP_S,
            "selector": {"matchLabels": {key: labels[key] for key in (LABEL_POOL, LABEL_VARIANT)}},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable},
            },
            "template": plan.template,
        },
    }


def spec_hashes(spec: ModelPoolSpec) -> dict[str, str]:
    """What the spec asks of each variant's pods, in the spec's order."""
    return {variant.name: spec_hash(spec, variant) for variant in spec.variants}


def spec_hash(spec: ModelPoolSpec, variant: Variant) -> str:
    """Hash of what of the spec a variant's pods are made from.

    Defaults are left out, so that a field that a later release adds does not restart the pools of today. Of adapters
    only the volumes count: they are loaded while the pods run.
    """
    parts = {
        "model": _without_adapters(spec.model_of(variant)),
        "access": _without_adapters(spec.model) | _adapter_parts(spec, variant),
        "engine": spec.engine_of(variant),
        "accelerator": variant.accelerator,
        "parallelism": variant.parallelism,
        "drainTimeout": spec.rollout.drain_timeout,
        "startupTimeout": spec.rollout.startup_timeout,
        "podTemplate": spec.pod_template,
        "nodeSelector": dict(variant.node_selector),
        "tolerations": list(variant.tolerations),
    }
    return hashlib.sha256(canonical(_plain(parts)).encode()).hexdigest()[:16]


def _without_adapters(source: ModelSource) -> dict[str, Any]:
    return {key: value for key, value in _plain(source).items() if key != "lora"}


def _adapter_parts(spec: ModelPoolSpec, variant: Variant) -> dict[str, Any]:
    lora = spec.model.lora
    if lora is None:
        return {}
    claims = list(adapter_claims(spec, variant))
    return {"lora": {"maxRank": lora.max_rank, "maxActive": lora.max_active, "claims": claims}}


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, list) else value


def _up_to_date(step: Step, spec: str, pool: ModelPool, variant: Variant) -> bool:
    """Whether the template that stays was made from the present spec."""
    return step.action == "Keep" and spec == spec_hash(pool.spec, variant)


def _stale(pool: ModelPool, variant: Variant, images: Images, settings: RenderSettings, kept: Mapping[str, Any]) -> str:
    """What this release would render differently from the same spec."""
    fresh = pod_template(pool, variant, images, settings, _label(kept))
    if kept == fresh:
        return ""
    parts = [
        f"{name} image {old} (now {new})"
        for name in (ENGINE, ROUTER)
        if (old := container(kept, name).get("image")) != (new := container(fresh, name).get("image"))
    ]
    differs = ", ".join(parts) or "pods as an earlier release rendered them"
    return f"Variant {variant.name} keeps {differs}."


def _label(template: Mapping[str, Any]) -> str:
    return str(((template.get("metadata") or {}).get("labels") or {}).get(LABEL_REVISION, ""))


def _revision_of(template: Mapping[str, Any] | None) -> int:
    """Templates of an earlier release carry no number: they are the first."""
    label = _label(template or {})
    return int(label) if label.isdecimal() else 1


def _time_problems(spec: ModelPoolSpec) -> tuple[Problem, ...]:
    where, longest = "spec.rollout.startupTimeout", spec.rollout.startup_timeout
    if longest.ms >= LEAST_STARTUP_S * 1000:
        return ()
    text = (
        f"{where} is {longest}, and no engine is ready in less than {LEAST_STARTUP_S}s: each pod would be ended while "
        "it starts. Set the longest start that is still good, such as 20m."
    )
    return (Problem(Reason.INVALID_ARGUMENT, text, where),)


def _size_problems(spec: ModelPoolSpec) -> tuple[Problem, ...]:
    if spec.pod_template is None:
        return ()
    size = len(canonical(_plain(spec.pod_template)).encode())
    if size <= MAX_TEMPLATE_BYTES - 32 * 1024:
        return ()
    limit = MAX_TEMPLATE_BYTES - 32 * 1024
    text = f"spec.podTemplate has {size} bytes of {limit}. Move long annotations or files into a ConfigMap."
    return (Problem(Reason.INVALID_POD_TEMPLATE, text, "spec.podTemplate"),)
