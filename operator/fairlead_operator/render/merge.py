"""podTemplate: what it may set, and how it is merged into the rendered pod.

The merge is Kubernetes' strategic merge for a PodSpec: maps are merged, ``null`` removes a key, lists of named things
are merged by their key, a volume is replaced whole (its sources exclude each other), all other lists are replaced.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPoolSpec, Reason
from fairlead_operator.api.v1alpha1.modelpool import PodTemplate
from fairlead_operator.decide.facts import ENGINE, LABEL_POOL, LABEL_REVISION, LABEL_VARIANT, ROUTER
from fairlead_operator.decide.problems import Problem
from fairlead_operator.render.objects import LABEL_MANAGED_BY

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
_REPLACED_WHOLE = frozenset({"volumes"})
_OWN_VOLUMES = frozenset({"run", "state", "fairlead-tokens"})
_OWN_LABELS = frozenset({LABEL_MANAGED_BY, LABEL_POOL, LABEL_REVISION, LABEL_VARIANT})

_POD_FIELDS = {
    "nodeSelector": "set spec.variants[].nodeSelector",
    "tolerations": "set spec.variants[].tolerations",
    "terminationGracePeriodSeconds": "set spec.rollout.drainTimeout; the grace period is 30s longer",
    "restartPolicy": "a Deployment's pods always restart",
    "enableServiceLinks": "vLLM reads VLLM_PORT, which a Service named vllm would set",
    "hostNetwork": "the router's ports would be the node's",
    "nodeName": "set spec.variants[].nodeSelector",
    "ephemeralContainers": "use kubectl debug",
    "shareProcessNamespace": "vLLM must be the first process of its container to get signals",
}
_ENGINE_FIELDS = {
    "args": "set the fields of spec.engine, or spec.engine.extraArgs",
    "command": "Fairlead removes the stale socket before it starts vLLM",
    "image": "set spec.engine.image",
    "ports": "the engine has no port; requests come through the router",
    "lifecycle": "Fairlead drains running requests with it",
    "livenessProbe": "Fairlead sets it",
    "readinessProbe": "Fairlead sets it",
    "startupProbe": "set spec.rollout.startupTimeout",
    "restartPolicy": "a Deployment's pods always restart",
}


def merged_template(template: Mapping[str, Any], overlay: PodTemplate | None) -> dict[str, Any]:
    """The rendered pod template with podTemplate merged in last."""
    result = copy.deepcopy(dict(template))
    if overlay is None:
        return result
    if overlay.metadata is not None:
        own = result["metadata"]
        own["labels"] = {**overlay.metadata.labels, **own.get("labels", {})}
        own["annotations"] = {**overlay.metadata.annotations, **own.get("annotations", {})}
    merged: dict[str, Any] = strategic_merge(result["spec"], _router_moved(overlay.spec or {}))
    return {**result, "spec": merged}


def strategic_merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """``patch`` merged into ``base``; neither is changed."""
    result = copy.deepcopy(dict(base))
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged_value(key, result.get(key), value)
    return result


def template_problems(spec: ModelPoolSpec) -> tuple[Problem, ...]:
    """What podTemplate sets that other fields own or that Fairlead relies on."""
    overlay = spec.pod_template
    if overlay is None:
        return ()
    labels = overlay.metadata.labels if overlay.metadata else {}
    taken = [_refused(f"metadata.labels[{key}]", "pods are found by it") for key in sorted(_OWN_LABELS & set(labels))]
    return (*taken, *_spec_problems(overlay.spec or {}, {one.accelerator.resource_name for one in spec.variants}))


def _merged_value(key: str, old: Any, new: Any) -> Any:
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        return strategic_merge(old, new)
    if isinstance(new, Mapping):
        return strategic_merge({}, new)
    if isinstance(new, list) and isinstance(old, list) and key in _MERGE_KEYS:
        return _merged_list(key, old, new)
    return copy.deepcopy(new)


def _merged_list(field: str, old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    key = _MERGE_KEYS[field]
    result = {item.get(key): copy.deepcopy(item) for item in old}
    for item in new:
        name = item.get(key)
        whole = field in _REPLACED_WHOLE or name not in result
        result[name] = strategic_merge({} if whole else result[name], item)
    return list(result.values())


def _router_moved(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The router is an init container to Kubernetes and a container to people: both places are understood."""
    containers = list(spec.get("containers") or ())
    router = [item for item in containers if item.get("name") == ROUTER]
    if not router:
        return dict(spec)
    rest = [item for item in containers if item.get("name") != ROUTER]
    return {**spec, "containers": rest, "initContainers": [*router, *(spec.get("initContainers") or ())]}


def _spec_problems(spec: Mapping[str, Any], resources: Iterable[str]) -> Iterable[Problem]:
    shape = _shape_problem(spec)
    if shape is not None:
        yield shape
        return
    for field in sorted(_POD_FIELDS.keys() & spec.keys()):
        yield _refused(f"spec.{field}", _POD_FIELDS[field])
    for volume in spec.get("volumes", ()):
        if volume.get("name") in _OWN_VOLUMES:
            yield _refused(f"spec.volumes[{volume['name']}]", "it is the router's")
    for place in ("initContainers", "containers"):
        for container in spec.get(place, ()):
            yield from _container_problems(f"spec.{place}[{container.get('name')}]", container, resources)


def _container_problems(path: str, container: Mapping[str, Any], resources: Iterable[str]) -> Iterable[Problem]:
    name = container.get("name")
    if name == ROUTER:
        for field in sorted(container.keys() - {"name", "resources"}):
            yield _refused(f"{path}.{field}", "podTemplate may set only resources of container router")
        return
    if name == ENGINE:
        for field in sorted(_ENGINE_FIELDS.keys() & container.keys()):
            yield _refused(f"{path}.{field}", _ENGINE_FIELDS[field])
        yield from _accelerator_problems(path, _mapping(container.get("resources")), resources)
    mounts = container.get("volumeMounts")
    for mount in mounts if isinstance(mounts, list) else ():
        if mount.get("name") in _OWN_VOLUMES:
            yield _refused(f"{path}.volumeMounts[{mount['name']}]", "the volume is the router's")


def _accelerator_problems(path: str, asked: Mapping[str, Any], resources: Iterable[str]) -> Iterable[Problem]:
    for kind in ("limits", "requests"):
        for resource in sorted((set(resources) & set(_mapping(asked.get(kind)))) - {"cpu"}):
            yield _refused(f"{path}.resources.{kind}[{resource}]", "set spec.variants[].parallelism")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _shape_problem(spec: Mapping[str, Any]) -> Problem | None:
    """Merging needs lists of named maps; the API server's dry run finds everything else."""
    for field in sorted(_MERGE_KEYS.keys() & spec.keys()):
        if not isinstance(spec[field], list):
            return _refused(f"spec.{field}", "it must be a list")
    for field, item in _listed(spec):
        key = _MERGE_KEYS[field]
        if not isinstance(item, Mapping) or not isinstance(item.get(key), str):
            return _refused(f"spec…{field}", f"every entry needs a {key} to be merged by")
    directives = sorted(key for key in _keys(spec) if key.startswith("$"))
    return _refused(f"spec…{directives[0]}", "directives are not supported; null removes a key") if directives else None


def _listed(value: Any) -> Iterable[tuple[str, Any]]:
    for key, child in _pairs(value):
        if key in _MERGE_KEYS and isinstance(child, list):
            yield from ((key, item) for item in child)
        yield from _listed(child)


def _keys(value: Any) -> Iterable[str]:
    for key, child in _pairs(value):
        yield key
        yield from _keys(child)


def _pairs(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), child) for key, child in value.items()]
    return [("", child) for child in value] if isinstance(value, list) else ()


def _refused(path: str, remedy: str) -> Problem:
    whole = f"spec.podTemplate.{path}"
    return Problem(Reason.INVALID_POD_TEMPLATE, f"{whole} cannot be set there: {remedy}. Remove it.", whole)
