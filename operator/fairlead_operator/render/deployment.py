"""A variant's Deployment, and which pod template it has: the kept one until the pool's spec changes.

Replacing the router's image, the default engine image or this renderer must not restart accelerators. So the template
that was rendered last is kept, as it was, in an annotation of the Deployment, with a hash of what of the spec it was
rendered from; it is rendered anew only when that hash changes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPool, ModelPoolSpec, Reason, Variant
from fairlead_operator.decide.facts import ENGINE, LABEL_POOL, LABEL_VARIANT, ROUTER
from fairlead_operator.decide.problems import Problem
from fairlead_operator.render.engine_args import engine_problems
from fairlead_operator.render.merge import template_problems
from fairlead_operator.render.objects import deployment_name, metadata, variant_labels
from fairlead_operator.render.pod_template import Images, RenderSettings, container, pod_template

ANNOTATION_SPEC = "fairlead.dev/spec-hash"
ANNOTATION_TEMPLATE = "fairlead.dev/template"
MAX_TEMPLATE_BYTES = 200 * 1024
"""All annotations of an object together may have 256 KiB."""
DEADLINE_AFTER_STARTUP_S = 60


@dataclass(frozen=True, slots=True)
class TemplatePlan:
    """The pod template to apply. ``changed``: it differs from the live one, so a rollout begins.

    ``stale``: what this release would render differently; such a pool waits for its next restart.
    """

    template: dict[str, Any]
    annotations: dict[str, str]
    changed: bool
    stale: str = ""

    @property
    def engine_image(self) -> str:
        """Image of the engine in this template."""
        return str(container(self.template, ENGINE).get("image", ""))


def validate_pool(pool: ModelPool) -> tuple[Problem, ...]:
    """Everything that keeps the pool's spec from being rendered, and warnings."""
    return (*engine_problems(pool.spec), *template_problems(pool.spec), *_size_problems(pool.spec))


def plan_template(
    pool: ModelPool,
    variant: Variant,
    images: Images,
    settings: RenderSettings,
    live_annotations: Mapping[str, str] | None = None,
    *,
    hold: bool = False,
) -> TemplatePlan:
    """The template to apply: the kept one while the spec's hash is the live one's, else a new one.

    ``live_annotations`` are the live Deployment's; ``hold`` keeps an existing template because another variant of the
    pool is being replaced, or because the spec was not accepted.
    """
    wanted = spec_hash(pool.spec, variant)
    live = live_annotations or {}
    kept = _kept_template(live)
    if kept is not None and (hold or live.get(ANNOTATION_SPEC) == wanted):
        annotations = {key: live[key] for key in (ANNOTATION_SPEC, ANNOTATION_TEMPLATE) if key in live}
        pending = live.get(ANNOTATION_SPEC) != wanted
        fresh = kept if pending else pod_template(pool, variant, images, settings)
        return TemplatePlan(kept, annotations, changed=False, stale=_stale_text(variant, kept, fresh))
    fresh = pod_template(pool, variant, images, settings)
    annotations = {ANNOTATION_SPEC: wanted, ANNOTATION_TEMPLATE: canonical(fresh)}
    return TemplatePlan(fresh, annotations, changed=kept is not None and kept != fresh)


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
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": rollout.startup_timeout.seconds + DEADLINE_AFTER_STARTUP_S,
            "selector": {"matchLabels": {key: labels[key] for key in (LABEL_POOL, LABEL_VARIANT)}},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable},
            },
            "template": plan.template,
        },
    }


def spec_hash(spec: ModelPoolSpec, variant: Variant) -> str:
    """Hash of what of the spec a variant's pods are made from.

    Defaults are left out, so that a field that a later release adds does not restart the pools of today.
    """
    parts = {
        "model": spec.model_of(variant),
        "access": spec.model,
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


def canonical(value: Any) -> str:
    """The same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, list) else value


def _kept_template(annotations: Mapping[str, str]) -> dict[str, Any] | None:
    """The kept template; one that somebody damaged counts as absent and is rendered again."""
    try:
        kept = json.loads(annotations.get(ANNOTATION_TEMPLATE, ""))
    except ValueError:
        return None
    return kept if isinstance(kept, dict) and "spec" in kept else None


def _stale_text(variant: Variant, kept: dict[str, Any], fresh: dict[str, Any]) -> str:
    if kept == fresh:
        return ""
    parts = [
        f"{name} image {old} (now {new})"
        for name in (ENGINE, ROUTER)
        if (old := container(kept, name).get("image")) != (new := container(fresh, name).get("image"))
    ]
    differs = ", ".join(parts) or "pods as an earlier release rendered them"
    return f"Variant {variant.name} keeps {differs}."


def _size_problems(spec: ModelPoolSpec) -> tuple[Problem, ...]:
    if spec.pod_template is None:
        return ()
    size = len(canonical(_plain(spec.pod_template)).encode())
    if size <= MAX_TEMPLATE_BYTES - 32 * 1024:
        return ()
    limit = MAX_TEMPLATE_BYTES - 32 * 1024
    text = f"spec.podTemplate has {size} bytes of {limit}. Move long annotations or files into a ConfigMap."
    return (Problem(Reason.INVALID_POD_TEMPLATE, text, "spec.podTemplate"),)
