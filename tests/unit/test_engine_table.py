"""The engine table: versions, options, hardware, formats, rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.api.v1alpha1 import Variant
from fairlead_operator.decide.engine_table import fields, formats
from fairlead_operator.decide.engine_table.arguments import meant, named, options, part_fault, value_fault
from fairlead_operator.decide.engine_table.hardware import CAPABILITIES, Device, device_of
from fairlead_operator.decide.engine_table.rules import RULES
from fairlead_operator.decide.engine_table.setting import given as read
from fairlead_operator.decide.engine_table.versions import KNOWN, version_of
from fairlead_operator.performance.seeds import accelerators


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.32.0", "0.32"),
        ("localhost/vllm-cpu:0.32.0", "0.32"),
        ("registry.example:5000/mirror/vllm-openai:v0.33.1.post1-cu128@sha256:ab12", "0.33"),
        ("vllm:0.33", "0.33"),
        ("vllm/vllm-openai:latest", None),
        ("vllm/vllm-openai:nightly-0.32", None),
        ("vllm/vllm-openai@sha256:ab12", None),
        ("vllm/vllm-openai:v0.34.0", None),
        ("vllm/vllm-openai:v0.320.0", None),
        ("acme/llm-server:v0.32.0", None),
        ("", None),
    ],
)
def test_a_version_is_read_from_tags_of_vllms_images_only(image: str, version: str | None) -> None:
    assert version_of(image) == version


@given(st.text(max_size=80))
def test_any_text_is_an_image_of_a_known_version_or_of_none(image: str) -> None:
    assert version_of(image) in {*KNOWN, None}


@given(
    st.sampled_from(KNOWN), st.integers(0, 99), st.sampled_from(["", "v"]), st.sampled_from(["", "-cu128", ".post1"])
)
def test_every_patch_of_a_version_is_that_version(version: str, patch: int, prefix: str, suffix: str) -> None:
    assert version_of(f"registry.example/vllm-openai:{prefix}{version}.{patch}{suffix}") == version


def test_every_name_means_its_own_option() -> None:
    for version in KNOWN:
        assert [name for name in named(version) if meant(name, version) != (name,)] == []


@given(st.sampled_from(sorted(named("0.32"))), st.integers(3, 40))
def test_a_shortened_name_may_mean_the_whole_one(name: str, length: int) -> None:
    found = meant(name[:length], "0.32")
    assert found
    assert name[:length] in found or any(name in named("0.32")[one].names for one in found)


@given(st.from_regex(r"--[a-z0-9][a-z0-9.-]{0,30}(=.{0,30})?", fullmatch=True), st.sampled_from([*KNOWN, None]))
def test_any_argument_that_the_api_lets_in_is_read(text: str, version: str | None) -> None:
    one = read(text, "spec.engine.extraArgs[0]", version)
    assert text.startswith(one.name)
    assert (one.value is None) == ("=" not in text)
    if one.option is not None:
        assert isinstance(value_fault(one.option, one.value) + part_fault(one.option), str)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("--seed=1", ""),
        ("--seed=-1", ""),
        ("--seed=1.5", "takes a whole number"),
        ("--seed", "needs a value, after ="),
        ("--enforce-eager", ""),
        ("--enforce-eager=false", "takes no value"),
        ("--kv-cache-memory-bytes=16M", ""),
        ("--kv-cache-memory-bytes=16 M", "takes a whole number, such as 4096, 16k or 2G"),
        ("--watermark=0.05", ""),
        ("--watermark=a little", "takes a number"),
        ("--max-num-active-seqs=None", ""),
        ("--compilation-config={}", ""),
        ("--compilation-config={", "takes JSON"),
        ("--scheduling-policy=fair", "takes one of fcfs, priority"),
        ("--reasoning-parser=anything", ""),
        ("--middleware=a.b", ""),
    ],
)
def test_what_follows_an_option_is_of_its_type(text: str, fault: str) -> None:
    one = read(text, "", "0.32")
    assert one.option is not None
    assert value_fault(one.option, one.value) == fault


@pytest.mark.parametrize(
    ("text", "version", "state"),
    [
        ("--async-scheduling", "0.32", "on"),
        ("--no-async-scheduling", "0.32", "off"),
        ("--no-enable-chunked-prefill", "0.33", "off"),
        ("--disable-chunked-prefill", "0.33", "off"),
        ("--disable-custom-all-reduce", "0.33", "on"),
        ("--enable-custom-all-reduce", "0.33", "off"),
        ("--seed=3", "0.32", "3"),
    ],
)
def test_a_switch_is_on_or_off_however_it_is_spelled(text: str, version: str, state: str) -> None:
    assert read(text, "", version).state == state


def test_every_option_that_fields_and_fairlead_set_is_one_of_vllms() -> None:
    ours = {name for field in fields.FIELDS for name in (field.option, *field.others)} | set(fields.OWN)
    assert ours <= set(named("0.32"))
    assert ours <= set(named("0.33"))
    assert not set(fields.REMOVED) & set(named("0.32"))


def test_the_types_of_the_kv_cache_are_those_of_vllms_parser() -> None:
    (choices,) = [one.choices for one in options() if one.names == ("--kv-cache-dtype",) and one.versions == ("0.32",)]
    assert set(choices) == {one.name for one in formats.CACHE_TYPES.values() if "0.32" in one.versions}


def test_every_nvidia_accelerator_that_has_a_data_sheet_has_a_capability() -> None:
    assert set(accelerators()) - set(CAPABILITIES) == {"MI300X"}


def variant(resource: str = "nvidia.com/gpu", label: str = "") -> Variant:
    selector = {"nvidia.com/gpu.product": label} if label else {}
    return Variant.model_validate({"name": "v", "accelerator": {"resourceName": resource}, "nodeSelector": selector})


@pytest.mark.parametrize(
    ("resource", "label", "platform", "capability", "batches"),
    [
        ("nvidia.com/gpu", "NVIDIA-L40S", "cuda", 89, ((256, 2048),)),
        ("nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3", "cuda", 90, ((1024, 8192),)),
        ("nvidia.com/gpu", "NVIDIA-A100-SXM4-80GB", "cuda", 80, ((256, 2048),)),
        ("nvidia.com/gpu", "NVIDIA-B200", "cuda", 100, ((1024, 16384),)),
        ("nvidia.com/mig-1g.10gb", "NVIDIA-H100-80GB-HBM3", "cuda", 90, ((1024, 16384), (1024, 8192), (256, 2048))),
        ("nvidia.com/gpu", "", "cuda", None, ((1024, 16384), (1024, 8192), (256, 2048))),
        ("amd.com/gpu", "AMD_Instinct_MI300X_OAM", "rocm", None, ((1024, 16384),)),
        ("example.com/npu", "", "unknown", None, ((1024, 16384), (1024, 8192), (256, 2048))),
        ("cpu", "", "cpu", None, ((128, 2048),)),
    ],
)
def test_hardware_is_known_by_resource_and_label(
    resource: str, label: str, platform: str, capability: int | None, batches: tuple[tuple[int, int], ...]
) -> None:
    device = device_of(variant(resource, label))
    assert (device.platform, device.capability, device.default_batches) == (platform, capability, batches)


def test_a_format_is_refused_only_where_it_is_known_not_to_run() -> None:
    fp8 = formats.CACHE_TYPES["fp8"]
    assert formats.cannot_run(fp8, Device("cuda", "T4", 75)) == "needs compute capability 8.0 or more; T4 has 7.5"
    assert formats.cannot_run(fp8, Device("cuda", "L4", 89)) == ""
    assert formats.cannot_run(fp8, Device("cuda", "nvidia.com/gpu")) == ""
    assert formats.cannot_run(formats.CACHE_TYPES["nvfp4"], Device("cpu", "CPU")) == "does not run on a CPU"
    assert formats.cannot_run(formats.CACHE_TYPES["nvfp4"], Device("unknown", "example.com/npu")) == ""


@pytest.mark.parametrize(
    ("method", "checkpoint", "fault"),
    [
        ("awq", None, "the checkpoint is not quantised"),
        ("awq", "awq", ""),
        ("awq_marlin", "awq", ""),
        ("fp8", None, ""),
        ("fp8", "awq", "the checkpoint is quantised with awq"),
        ("fp8_per_channel", "fp8", "the checkpoint is quantised with fp8"),
        ("moe_wna16", "gptq", ""),
        ("of-a-plugin", "awq", ""),
        ("awq", "of-a-plugin", "the checkpoint is quantised with of-a-plugin"),
    ],
)
def test_a_method_loads_checkpoints_of_its_own_kind(method: str, checkpoint: str | None, fault: str) -> None:
    assert formats.checkpoint_fault(method, checkpoint) == fault


def test_native_is_never_below_what_is_needed() -> None:
    every: list[formats.Weights | formats.CacheType] = [*formats.WEIGHTS.values(), *formats.CACHE_TYPES.values()]
    assert [one.name for one in every if one.native is not None and one.native < one.capability] == []


def test_rules_are_about_known_versions_and_say_something() -> None:
    assert all(set(rule.versions) <= set(KNOWN) and rule.about and rule.evidence for rule in RULES)
    assert len({rule.about for rule in RULES}) == len(RULES)
