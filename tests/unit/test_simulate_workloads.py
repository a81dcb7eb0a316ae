"""Workloads: drawn from rates so that a seed decides them, and read from files whose mistakes are named by line."""

import gzip
import math
import random
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.simulate.model import Workload
from fairlead_operator.simulate.workloads import (
    MAX_TOKENS,
    WorkloadError,
    between,
    histogram,
    paired,
    poisson,
    read_workload,
    repeated,
    scaled,
)


def chance(seed: int = 1) -> random.Random:
    return random.Random(seed)  # noqa: S311 - choices that can be repeated


def three() -> Workload:
    return Workload(array("d", [0.0, 5.0, 9.0]), array("i", [10, 20, 30]), array("i", [1, 2, 3]), 10.0)


def file(folder: Path, text: str, name: str = "requests.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- drawn


def test_as_many_requests_come_as_the_rates_say() -> None:
    arrivals = poisson([(0.0, 1000.0, 4.0), (1000.0, 2000.0, 0.0), (2000.0, 3000.0, 16.0)], chance())
    counts = [sum(start <= at < start + 1000.0 for at in arrivals) for start in (0.0, 1000.0, 2000.0)]
    assert counts[1] == 0
    assert abs(counts[0] - 4000) < 5 * math.sqrt(4000)
    assert abs(counts[2] - 16000) < 5 * math.sqrt(16000)


def test_the_gaps_between_requests_vary_as_much_as_their_mean() -> None:
    arrivals = poisson([(0.0, 20_000.0, 1.0)], chance())
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation / mean == pytest.approx(1.0, abs=0.05)


def test_a_seed_decides_the_requests() -> None:
    windows = [(0.0, 100.0, 3.0)]
    assert poisson(windows, chance(7)) == poisson(windows, chance(7))
    assert poisson(windows, chance(7)) != poisson(windows, chance(8))


@given(st.lists(st.tuples(st.floats(1.0, 600.0), st.floats(0.0, 50.0)), min_size=1, max_size=20), st.floats(0.1, 90.0))
def test_scaled_windows_have_the_mean_asked_for_and_keep_their_shape(
    spans: list[tuple[float, float]], mean: float
) -> None:
    at, windows = 0.0, []
    for seconds, rate in [*spans, (60.0, 1.0)]:
        windows.append((at, at + seconds, rate))
        at += seconds
    changed = scaled(windows, mean)
    assert sum((until - since) * rate for since, until, rate in changed) / at == pytest.approx(mean)
    factor = changed[-1][2]
    assert [rate for *_times, rate in changed] == pytest.approx([rate * factor for *_times, rate in windows])


def test_windows_without_requests_cannot_be_scaled() -> None:
    with pytest.raises(ValueError, match="no scale"):
        scaled([(0.0, 60.0, 0.0)], 5.0)


def test_lengths_are_drawn_in_pairs() -> None:
    drawn = paired([float(at) for at in range(500)], 500.0, [(1, 10), (2, 20)], chance())
    pairs = set(zip(drawn.prompt_tokens, drawn.output_tokens, strict=True))
    assert pairs == {(1, 10), (2, 20)}


def test_a_histogram_draws_within_its_bins_and_by_their_weights() -> None:
    draw = histogram([(10, 1.0), (20, 3.0)], chance())
    values = [draw() for _ in range(4000)]
    assert min(values) >= 10
    assert max(values) < 30
    assert sum(value >= 20 for value in values) / 4000 == pytest.approx(0.75, abs=0.04)


# --- changed


def test_a_part_of_a_workload_begins_at_its_own_zero() -> None:
    part = between(three(), 5.0, 9.0)
    assert (list(part.arrivals), list(part.prompt_tokens), part.duration) == ([0.0], [20], 4.0)


def test_a_repeated_workload_comes_again_after_its_duration() -> None:
    twice = repeated(three(), 2)
    assert list(twice.arrivals) == [0.0, 5.0, 9.0, 10.0, 15.0, 19.0]
    assert list(twice.output_tokens) == [1, 2, 3, 1, 2, 3]
    assert twice.duration == 20.0


# --- read


def test_a_csv_file_is_read_in_the_order_of_arrival(tmp_path: Path) -> None:
    path = file(tmp_path, "arrival_s,prompt_tokens,output_tokens\n12.5,30,3\n2.5,10,0\n")
    read = read_workload(path)
    assert list(read.arrivals) == [0.0, 10.0]
    assert list(read.prompt_tokens) == [10, 30]
    assert list(read.output_tokens) == [1, 3]
    assert (read.duration, read.prefixes) == (60.0, None)


def test_prefix_ids_are_kept(tmp_path: Path) -> None:
    path = file(tmp_path, "arrival_s,prompt_tokens,output_tokens,prefix_id\n0,1500,3,4 7\n1,600,3,\n")
    assert read_workload(path).prefixes == [(4, 7), ()]


def test_the_azure_columns_are_read(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,48,10\n2023-11-16 18:17:05.0,31,8\n"
    path = tmp_path / "azure.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    read = read_workload(path)
    assert list(read.arrivals) == pytest.approx([0.0, 1.02004], abs=1e-6)
    assert list(read.prompt_tokens) == [48, 31]


def test_mooncakes_lines_are_read(tmp_path: Path) -> None:
    text = '{"timestamp": 500, "input_length": 700, "output_length": 5, "hash_ids": [0, 9]}\n'
    text += '{"timestamp": 2000, "input_length": 10, "output_length": 6, "hash_ids": []}\n'
    read = read_workload(file(tmp_path, text, "mooncake.jsonl"))
    assert (list(read.arrivals), read.prefixes) == ([0.0, 1.5], [(0, 9), ()])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("when,tokens\n1,2\n", "line 2: no column arrival_s"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\nsoon,1,1\n", "line 3: arrival_s is 'soon'"),
        ("arrival_s,prompt_tokens,output_tokens\n-1,1,1\n", "line 2: arrival_s is '-1'"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,1,1\n", "line 2: arrival_s is 'nan'"),
        ("arrival_s,prompt_tokens,output_tokens\n0,many,1\n", "line 2: prompt_tokens is 'many'"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1\n", "line 2: output_tokens is None"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,-3\n", "line 2: output_tokens is '-3'"),
        (f"arrival_s,prompt_tokens,output_tokens\n0,1,{MAX_TOKENS + 1}\n", "output_tokens is"),
        ("arrival_s,prompt_tokens,output_tokens,prefix_id\n0,1,1,a b\n", "line 2: prefix_id is 'a b'"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        read_workload(file(tmp_path, text))


def test_a_line_that_is_no_json_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="line 1: no JSON object"):
        read_workload(file(tmp_path, "[1]\n", "x.jsonl"))


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_workload(tmp_path / "nothing.csv")
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n0,1,1\n")[:-12])
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_workload(broken)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.csv"
    path.write_bytes(b"arrival_s,prompt_tokens,output_tokens\n" + content)
    try:
        read = read_workload(path)
    except WorkloadError:
        return
    assert len(read.arrivals) == len(read.prompt_tokens) == len(read.output_tokens)
