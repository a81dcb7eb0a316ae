"""Typed fields as vLLM's arguments, and what of the engine's settings cannot run."""

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping

from fairlead_operator.api.v1alpha1 import EventReason, ModelPoolSpec, Reason, Variant
from fairlead_operator.decide.engine_table import sources
from fairlead_operator.decide.engine_table.arguments import Option, named, part_fault, value_fault
from fairlead_operator.decide.engine_table.fields import (
    FIELDS,
    MODELS_DIR,
    OTHER_FIELDS,
    OWN,
    OWN_GROUPS,
    REMOVED,
    Field,
    model_location,
)
from fairlead_operator.decide.engine_table.formats import CACHE_TYPES, REMOVED_WEIGHTS, WEIGHTS, cannot_run
from fairlead_operator.decide.engine_table.rules import RULES
from fairlead_operator.decide.engine_table.setting import Given, Setting, given, place, setting_of
from fairlead_operator.decide.engine_table.versions import KNOWN, shown
from fairlead_operator.decide.problems import Problem

__all__ = ["ENGINE_SOCKET", "MODELS_DIR", "engine_arguments", "engine_problems", "fetches_from_hub", "model_location"]

ENGINE_SOCKET = "/run/fairlead/engine.sock"
SHUTDOWN_SECONDS = 15
"""What vLLM may take after SIGTERM. The drain is over by then, and the kubelet kills after 30 s."""
ALIKE = 0.8
"""Likeness of two arguments, their dashes included, from which one is taken for the other misspelt."""


def engine_arguments(pool_name: str, spec: ModelPoolSpec, variant: Variant) -> tuple[str, ...]:
    """What follows ``vllm serve``: the model, Fairlead's own arguments, the typed fields, then extraArgs."""
    setting = setting_of(spec, variant, pool_name)
    own = (
        model_location(setting.source.uri),
        f"--uds={ENGINE_SOCKET}",
        f"--served-model-name={pool_name}",
        "--enable-prompt-tokens-details",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
    )
    typed = [text for field in FIELDS if (text := field.rendered(setting)) is not None]
    return (*own, *typed, *setting.engine.extra_args)


def engine_problems(spec: ModelPoolSpec, name: str = "", image: str = "") -> tuple[Problem, ...]:
    """What of the engine's settings cannot run, and what is merely unknown (warnings); each said once.

    ``name`` is the pool's, ``image`` the release's engine image, which pools have that name none.
    """
    found = [
        problem for variant in spec.variants for problem in _variant_problems(setting_of(spec, variant, name, image))
    ]
    return tuple(dict.fromkeys(found))


def fetches_from_hub(spec: ModelPoolSpec, variant: Variant) -> bool:
    """Whether a variant's engine asks the model hub for anything; one that does not can be told to stay offline."""
    return sources.fetches_from_hub(setting_of(spec, variant))


def _variant_problems(setting: Setting) -> Iterator[Problem]:
    yield from sources.source_problems(setting)
    yield from _argument_problems(setting)
    yield from _format_problems(setting)
    for rule in RULES:
        for conflict in rule.conflicts(setting):
            yield Problem(
                Reason.INVALID_ARGUMENT, f"{conflict.where} {conflict.text}", conflict.where.partition(" ")[0]
            )


def _argument_problems(setting: Setting) -> Iterator[Problem]:
    typed = {
        name: field
        for field in FIELDS
        if field.rendered(setting) is not None
        for name in _names(field, setting.version)
    }
    where, seen = place(setting.variant, "extra_args"), set[Option]()
    for index, text in enumerate(setting.engine.extra_args):
        one = given(text, f"{where}[{index}]", setting.version)
        said = _taken(one, typed, setting) or _unknown(one, setting.version) or _misused(one, seen)
        if said:
            warning = one.option is None and not one.options and setting.version is None and one.name not in REMOVED
            reason = EventReason.UNKNOWN_ARGUMENT if warning else Reason.INVALID_ARGUMENT
            yield Problem(reason, f"{one.where} `{text}` {said}", one.where, warning=warning)


def _names(field: Field, version: str | None) -> Iterable[str]:
    """Every option name that sets the same as a field."""
    known = named(version)
    for name in (field.option, *field.others):
        yield from known[name].names if name in known else (name,)


def _taken(one: Given, typed: Mapping[str, Field], setting: Setting) -> str:
    """Why an argument is not for extraArgs; of several that it may mean, for the first that is not."""
    for name in _meant(one):
        if reason := _own(name):
            return f"is set by Fairlead: {reason}. Remove it."
        if (field := typed.get(name)) is not None:
            return f"is already set by {field.place(setting)}: {field.shown(setting)}. Remove one."
        if path := _field_paths(setting.version).get(name):
            return f"has a field of its own. Set {path} and remove the argument."
    return ""


def _meant(one: Given) -> tuple[str, ...]:
    return (one.name, *(name for option in one.options for name in option.names))


def _own(name: str) -> str:
    group = next((why for start, why in OWN_GROUPS.items() if name.startswith(start)), "")
    return group or next((why for own, why in OWN.items() if name in _every_name(own)), "")


def _every_name(option: str) -> tuple[str, ...]:
    known = named(None)
    return known[option].names if option in known else (option,)


@functools.cache
def _field_paths(version: str | None) -> Mapping[str, str]:
    listed = {name: field.path for field in FIELDS if not field.free for name in _names(field, version)}
    return {**listed, **OTHER_FIELDS}


def _unknown(one: Given, version: str | None) -> str:
    if len(one.options) > 1:
        every = ", ".join(option.name for option in one.options[:4])
        return f"may mean {every}{' and others' if len(one.options) > len(one.options[:4]) else ''}. Write it in full."
    if one.options:
        return ""
    if one.name in REMOVED:
        return f"is no argument of {shown(version)} any more. {REMOVED[one.name]}"
    hint = _hint(one.name, version)
    if version is None:
        hint = hint or "Make sure that the image's vLLM has it."
        return f"is no argument of vLLM {' or '.join(KNOWN)}; it is passed on as it is. {hint}"
    return f"is no argument of {shown(version)}, which ends with an error. {hint or 'Remove it.'}"


def _hint(name: str, version: str | None) -> str:
    """What an argument that nobody knows was probably meant to be; empty if that is nothing that may be given."""
    close = difflib.get_close_matches(name, named(version), n=1, cutoff=ALIKE)
    option = close[0] if close else ""
    if path := _field_paths(version).get(option):
        return f"Set {path}."
    return f"Did you mean {option}?" if option and not _own(option) else ""


def _misused(one: Given, seen: set[Option]) -> str:
    option = one.option
    if option is None:
        return ""
    if one.part:
        return f"{fault}. Remove what follows the dot." if (fault := part_fault(option)) else ""
    if option in seen:
        return "is given twice, and vLLM takes the last one. Remove one."
    seen.add(option)
    fault = value_fault(option, one.value)
    return f"{fault}. Correct or remove it." if fault else ""


def _format_problems(setting: Setting) -> Iterator[Problem]:
    chosen = setting.engine.quantization
    if chosen is None:
        return
    where = setting.place("quantization")
    if chosen.weights is not None:
        yield from _weights_problems(setting, chosen.weights, f"{where}.weights")
    if chosen.kv_cache is not None:
        yield from _cache_problems(setting, chosen.kv_cache, f"{where}.kvCache")


def _weights_problems(setting: Setting, value: str, where: str) -> Iterator[Problem]:
    if value in REMOVED_WEIGHTS:
        text = (
            f"{where} is {value}, which is no method of {shown(setting.version)} any more. "
            "Leave it out to use what the checkpoint says."
        )
        yield Problem(Reason.UNSUPPORTED_QUANTIZATION, text, where)
    elif value not in WEIGHTS:
        yield _unlisted(setting, value, where)
    elif fault := cannot_run(WEIGHTS[value], setting.device):
        yield _cannot_run(
            setting, where, f"is {value}, which {fault}", "Leave it out, or use another build of the model."
        )


def _cache_problems(setting: Setting, value: str, where: str) -> Iterator[Problem]:
    found = CACHE_TYPES.get(value)
    if setting.version is not None and (found is None or setting.version not in found.versions) and _closed(setting):
        text = f"{where} is {value}, which is no type of {shown(setting.version)}. Leave it out, or use fp8."
        yield Problem(Reason.UNSUPPORTED_QUANTIZATION, text, where)
    elif found is None:
        yield _unlisted(setting, value, where)
    elif fault := cannot_run(found, setting.device):
        yield _cannot_run(setting, where, f"is {value}, which {fault}", "Leave it out to use what the checkpoint says.")


def _closed(setting: Setting) -> bool:
    """Whether the parser of this version takes no other values: later ones take those of plugins."""
    return bool(named(setting.version)["--kv-cache-dtype"].choices)


def _cannot_run(setting: Setting, where: str, fault: str, remedy: str) -> Problem:
    text = f"{where} {fault} (variant {setting.variant.name}). {remedy}"
    return Problem(Reason.UNSUPPORTED_QUANTIZATION, text, where)


def _unlisted(setting: Setting, value: str, where: str) -> Problem:
    text = (
        f"{where} is {value}, which is not in the list of {shown(setting.version)}; it is passed on as it is, for an "
        "engine with a plugin."
    )
    return Problem(EventReason.UNKNOWN_QUANTIZATION, text, where, warning=True)
