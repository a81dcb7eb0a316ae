"""Where a checkpoint comes from: what its address must look like, and what has no effect."""

import re
from collections.abc import Iterator
from typing import Final

from fairlead_operator.api.v1alpha1 import EventReason, Reason
from fairlead_operator.decide.engine_table.fields import model_place
from fairlead_operator.decide.engine_table.setting import Setting
from fairlead_operator.decide.problems import Problem

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SHAPES: Final = {
    "hf": (re.compile(rf"{_PART}(/{_PART})?"), "hf://org/name; the revision has a field of its own"),
    "pvc": (
        re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/(?!\.\.?(/|$))[^/\s]+)*/?"),
        "pvc://claim/path, the path without . and ..",
    ),
    "s3": (re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/\S*)?"), "s3://bucket/path"),
    "gs": (re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/\S*)?"), "gs://bucket/path"),
    "oci": (
        re.compile(r"[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"),
        "oci://registry/repository:tag or @sha256:digest",
    ),
}
"""What follows the scheme, and how it is written."""


def source_problems(setting: Setting) -> Iterator[Problem]:
    """What of the addresses of a variant's checkpoint, draft and adapters cannot be loaded, or has no effect."""
    where, source = model_place(setting.variant), setting.source
    yield from _shape(f"{where}.uri", source.uri)
    drafting = setting.engine.speculative_decoding
    if drafting is not None and drafting.model is not None:
        yield from _shape(f"{setting.place('speculative_decoding')}.model", drafting.model)
    for adapter in setting.spec.model.lora.adapters if setting.spec.model.lora is not None else ():
        yield from _shape(f"spec.model.lora.adapters[{adapter.name}].uri", adapter.uri)
    if source.revision is not None and not source.uri.startswith("hf://"):
        text = (
            f"{where}.revision is {source.revision}, which has no effect on {source.uri}: only hf:// has revisions. "
            "Put the version into the path, or an image's digest behind @, and remove revision."
        )
        yield Problem(EventReason.REVISION_IGNORED, text, f"{where}.revision", warning=True)


def fetches_from_hub(setting: Setting) -> bool:
    """Whether the engine asks the hub for anything: its checkpoint, a draft, adapters, or what extraArgs name."""
    drafting = setting.engine.speculative_decoding
    uris = [setting.source.uri, (drafting and drafting.model) or ""]
    named = [setting.given(option) for option in ("--tokenizer", "--hf-config-path")]
    return (
        any(uri.startswith("hf://") for uri in uris)
        or setting.spec.model.lora is not None
        or any(value is not None and not value.startswith("/") for value in named)
    )


def _shape(where: str, uri: str) -> Iterator[Problem]:
    scheme, _, rest = uri.partition("://")
    if scheme in _SHAPES and not _SHAPES[scheme][0].fullmatch(rest):
        text = f"{where} is {uri}, which is no address of a checkpoint. Write {_SHAPES[scheme][1]}."
        yield Problem(Reason.INVALID_ARGUMENT, text, where)
