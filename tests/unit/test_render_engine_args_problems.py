"""What of an engine's settings is refused, what is a warning, and in which words."""

import pytest

from fairlead_operator.decide.problems import Problem
from fairlead_operator.render.engine_args import engine_arguments, engine_problems, fetches_from_hub
from tests.bench.engine_args import good
from tests.bench.engine_args.bad import Bad, bad
from tests.bench.engine_args.pairs import rows
from tests.builders.resources import PoolBuilder, make_pool
from tests.golden_files import assert_golden

BAD = list(bad())


def problems(pool: PoolBuilder, image: str = "") -> tuple[Problem, ...]:
    found = pool.parsed()
    return engine_problems(found.spec, found.name, image)


@pytest.mark.parametrize("one", BAD, ids=lambda one: f"{one.title} ({one.version})")
def test_what_is_wrong_is_refused_with_its_place_and_reason(one: Bad) -> None:
    (problem,) = (found for found in engine_problems(one.pool.spec, one.pool.name) if one.words in found.message)
    assert not problem.warning
    assert problem.message.startswith(problem.path)
    assert problem.message.endswith((".", "?"))


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 60
    assert len({(one.title, one.version) for one in BAD}) == len(BAD)


def test_the_words_stay_as_they_are() -> None:
    said = [
        f"{one.title} ({one.version})\n"
        + "".join(f"  {found.message}\n" for found in engine_problems(one.pool.spec, one.pool.name))
        for one in BAD
    ]
    assert_golden("engine/problems.txt", "".join(said))


def test_an_unknown_argument_is_refused_where_the_version_is_known_and_else_a_warning() -> None:
    pool = make_pool("chat").engine(extraArgs=["--from-the-future=1"])
    (unknown,) = problems(pool)
    assert unknown.warning
    assert unknown.reason == "UnknownArgument"
    assert "passed on as it is" in unknown.message
    (known,) = problems(pool, "vllm/vllm-openai:v0.33.0")
    assert not known.warning
    assert "is no argument of vLLM 0.33, which ends with an error" in known.message


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("--max-modellen=8", "Set spec.engine.maxContextTokens."),
        ("--enforce-eagr", "Did you mean --enforce-eager?"),
        ("--served-modelname=x", "Remove it."),
        ("--new-arg=3", "Remove it."),
    ],
)
def test_the_hint_at_an_unknown_argument_names_nothing_that_would_be_refused(given: str, hint: str) -> None:
    (known,) = problems(make_pool("chat").engine(extraArgs=[given]), "vllm/vllm-openai:v0.32.0")
    assert known.message.endswith(f"which ends with an error. {hint}")


def test_an_argument_of_a_later_version_is_not_asked_to_be_removed() -> None:
    (unknown,) = problems(make_pool("chat").engine(extraArgs=["--brand-new=1"]), "vllm/vllm-openai:v0.40.0")
    assert unknown.message.endswith("it is passed on as it is. Make sure that the image's vLLM has it.")


def test_the_pools_image_wins_over_the_releases() -> None:
    pool = make_pool("chat").engine(extraArgs=["--watchdog-config={}"], image="vllm/vllm-openai:v0.33.0")
    assert problems(pool, "vllm/vllm-openai:v0.32.0") == ()


def test_an_unknown_cache_type_is_a_warning_where_plugins_may_add_it() -> None:
    def pool(version: str) -> PoolBuilder:
        return make_pool("chat").engine(quantization={"kvCache": "int5"}, image=f"vllm/vllm-openai:{version}")

    assert [found.warning for found in problems(pool("v0.32.1"))] == [False]
    assert [found.warning for found in problems(pool("v0.33.0"))] == [True]
    assert [found.warning for found in problems(pool("latest"))] == [True]


@pytest.mark.parametrize(
    "uri",
    [
        "hf://acme/chat-8b",
        "hf://gpt2",
        "pvc://models",
        "pvc://models/a/b.c/",
        "s3://bucket/8b",
        "gs://my_bucket/8b/",
        "oci://registry.example:5000/models/8b:v1",
        "oci://registry.example/8b@sha256:" + "a" * 64,
    ],
)
def test_addresses_of_every_source_pass(uri: str) -> None:
    assert problems(make_pool("chat").spec(model={"uri": uri})) == ()


@pytest.mark.parametrize("uri", ["pvc://models/8b", "s3://bucket/8b", "oci://registry.example/8b:v1"])
def test_a_revision_that_has_no_effect_is_a_warning(uri: str) -> None:
    (problem,) = problems(make_pool("chat").model(uri=uri))
    assert problem.warning
    assert problem.reason == "RevisionIgnored"
    assert problem.path == "spec.model.revision"


def test_an_engine_is_offline_where_nothing_comes_from_the_hub() -> None:
    def fetches(pool: PoolBuilder) -> bool:
        spec = pool.parsed().spec
        return fetches_from_hub(spec, spec.variants[0])

    local = make_pool("chat").spec(model={"uri": "pvc://models/8b"})
    draft = {"method": "draft_model", "tokens": 2, "model": "hf://acme/draft"}
    assert fetches(make_pool("chat"))
    assert not fetches(local)
    assert fetches(local.engine(speculativeDecoding=draft))
    assert fetches(local.model(lora={"adapters": [{"name": "sql", "uri": "pvc://models/sql"}]}))
    assert fetches(local.engine(extraArgs=["--tokenizer=acme/tokenizer"]))
    assert not fetches(local.engine(extraArgs=["--tokenizer=/models/models/tokenizer"]))


@pytest.mark.parametrize(
    ("sequences", "limit", "ranges"),
    [
        (64, 16, [[1, 16, 4], [17, 64, 0]]),
        (16, 16, None),
        (None, 16, [[1, 16, 4], [17, 256, 0]]),
        (None, 512, [[1, 512, 4], [513, 513, 0]]),
    ],
)
def test_drafting_ends_above_its_batch_size_whatever_the_hardware_runs(
    sequences: int | None, limit: int, ranges: list[list[int]] | None
) -> None:
    drafting = {"method": "ngram", "tokens": 4, "maxBatchSize": limit}
    sizes = {} if sequences is None else {"maxSequences": sequences}
    spec = make_pool("chat").engine(speculativeDecoding=drafting, **sizes).parsed().spec
    (text,) = (one for one in engine_arguments("chat", spec, spec.variants[0]) if one.startswith("--speculative"))
    shown = str(ranges).replace(" ", "")
    assert (f'"num_speculative_tokens_per_batch_size":{shown}' in text) == (ranges is not None)
    assert ("per_batch_size" in text) == (ranges is not None)


def test_a_draft_in_a_bucket_is_streamed() -> None:
    drafting = {"method": "draft_model", "tokens": 2, "model": "s3://bucket/draft"}
    spec = make_pool("chat").engine(speculativeDecoding=drafting).parsed().spec
    (text,) = (one for one in engine_arguments("chat", spec, spec.variants[0]) if one.startswith("--speculative"))
    assert '"draft_load_config":{"load_format":"runai_streamer"}' in text


def test_every_two_values_that_go_together_are_in_a_row() -> None:
    sizes = [3, 4, 2, 5]
    excluded = {((0, 1), (1, 2)), ((1, 3), (3, 4)), ((2, 1), (3, 2))}
    found = rows(sizes, lambda one, other: (one, other) not in excluded)
    together = {
        ((a, row[a]), (b, row[b])) for row in found for a in range(len(sizes)) for b in range(a + 1, len(sizes))
    }
    every = {
        ((a, x), (b, y))
        for a in range(len(sizes))
        for b in range(a + 1, len(sizes))
        for x in range(sizes[a])
        for y in range(sizes[b])
    }
    assert every - together == excluded
    assert len(found) < 40


def test_the_bench_sets_every_value_of_every_short_dimension() -> None:
    found = list(good.cases(small=True))
    short = [name for name in good.DIMENSIONS if name not in {"weights", "kvCache"}]
    shown = {(name, case.chosen.get(name)) for case in found for name in short}
    assert {(name, value) for name in short for value in good.DIMENSIONS[name]} <= shown
