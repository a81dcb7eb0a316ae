"""The router bench's pure parts: what it reads of /proc, what it sends, and what it reports."""

import json
import os
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.router import bodies, memory, procfs, report, rows, run
from tests.bench.router.load import Caller, Record, quantile
from tests.bench.router.report import Goal, Sample, Spread
from tests.bench.router.stage import stream_fault

ENGINES = ("http://127.0.0.1:1", "http://127.0.0.1:2")


def sample(number: int, target: str, row: str = "rps1k", foreign: float = 0.0, **figures: float) -> Sample:
    return Sample(number, target, row, figures, foreign)


def rounds(target: str, row: str, figure: str, values: Iterable[float]) -> list[Sample]:
    return [sample(number, target, row, **{figure: value}) for number, value in enumerate(values, 1)]


# --- /proc ---


def test_a_program_name_with_blanks_and_parentheses_does_not_shift_the_fields() -> None:
    line = "77 (a) b (c)) S 12 77 77 0 -1 4194560 500 0 0 0 130 45 0 0 20 0 3 0 100 1000 200"
    assert procfs.parse_stat(line) == procfs.Stat(parent=12, ticks=175)


def test_busy_time_counts_neither_idle_nor_waiting_nor_what_the_host_took() -> None:
    assert procfs.busy_ticks("cpu  10 20 30 1000 2000 1 2 4000 0 0") == 63


def test_a_tree_is_the_process_and_all_below_it() -> None:
    assert procfs.descendants(2, {1: 0, 2: 1, 3: 2, 4: 3, 5: 1, 6: 2}) == [2, 3, 6, 4]


def test_this_process_has_used_time_and_memory() -> None:
    here = procfs.tree(os.getpid())
    assert procfs.cpu_s(here) > 0
    assert procfs.rss_mb(here) > 1


def test_a_process_that_is_gone_counts_nothing() -> None:
    assert (procfs.cpu_s([1 << 30]), procfs.rss_mb([1 << 30])) == (0, 0)


# --- Requests ---


@given(size=st.integers(400, 4000), number=st.integers(0, 1000), stream=st.booleans())
def test_a_body_has_exactly_its_size_and_is_a_request(size: int, number: int, *, stream: bool) -> None:
    content = bodies.body(size, number, stream=stream, tokens=7)
    found = json.loads(content)
    assert len(content) == size
    assert (found["max_tokens"], found.get("stream", False)) == (7, stream)


def test_a_body_that_has_no_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="100 bytes"):
        bodies.body(100, 0)


def test_requests_of_a_group_share_their_beginning_and_differ_behind() -> None:
    first, second = (json.loads(bodies.body(1024, number))["messages"] for number in (1, 9))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_the_digest_depends_on_each_content() -> None:
    one, two = b'[{"content":"ab"},{"content":"c"}]', b'[{"content":"ab"},{"content":"d"}]'
    assert bodies.digest(b'[{"content":""}]') == "cbf29ce484222325"
    assert bodies.digest(b'[{"content":"a"}]') == "af63dc4c8601ec8c"  # published vectors of FNV-1a
    assert bodies.digest(one) != bodies.digest(two)


def test_a_targets_header_replaces_the_usual_one_whatever_its_case() -> None:
    assert bodies.headers("authorization: Bearer x\nX-Engine: {B2}/v1\n", ENGINES) == {
        "Content-Type": "application/json",
        "authorization": "Bearer x",
        "X-Engine": "http://127.0.0.1:2/v1",
    }


def test_a_whole_request_tells_its_length() -> None:
    assert bodies.request({"A": "b"}, b"{}").endswith(b"A: b\r\nContent-Length: 2\r\n\r\n{}")


def test_the_memory_rows_configuration_keeps_ours_and_adds_a_key_for_each_caller() -> None:
    found = json.loads(memory.config('{"keys": [{"hash": "x"}], "pools": []}', 2))
    assert [key.get("name") for key in found["keys"]] == [None, "load-0", "load-1"]
    assert len({key["hash"] for key in found["keys"]}) == 3


# --- Answers ---


def stream(tokens: int, *, usage: int, done: bool = True) -> bytes:
    parts: list[dict[str, object]] = [
        {"choices": [{"delta": {"content": f" t{token:04d}"}}]} for token in range(tokens)
    ]
    parts.append({"choices": [], "usage": {"completion_tokens": usage}})
    return b"".join(b"data: %s\n\n" % json.dumps(part).encode() for part in parts) + b"data: [DONE]\n\n" * done


def test_a_whole_stream_has_no_fault() -> None:
    assert not stream_fault(stream(3, usage=3), 3)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (stream(3, usage=3, done=False), "does not end"),
        (stream(2, usage=3), "differ"),
        (stream(3, usage=2), "no usage"),
        (b"", "does not end"),
    ],
)
def test_a_fault_of_a_stream_is_named(answer: bytes, fault: str) -> None:
    assert fault in stream_fault(answer, 3)


class Wire:
    """A transport that remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def abort(self) -> None:
        self.aborted = True


def answered(parts: Iterable[bytes], *, stream: bool) -> tuple[Record, Wire, int]:
    """Feed an answer in parts to a caller: what it recorded, its wire, and how often it was done."""
    record, wire, done = Record(0.0, float("inf")), Wire(), list[Caller]()
    caller = Caller(record, done.append)
    caller.connection_made(wire)  # type: ignore[arg-type]
    caller.send(b"request", stream=stream)
    for part in parts:
        caller.data_received(part)
    return record, wire, len(done)


SSE = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunks(answer: bytes) -> bytes:
    return SSE + b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer), answer)


@given(cut=st.lists(st.integers(1, 300), max_size=6))
def test_a_stream_is_counted_however_it_is_cut(cut: list[int]) -> None:
    whole = chunks(stream(3, usage=3))
    edges = [0, *sorted(cut), len(whole)]
    parts = [whole[start:end] for start, end in pairwise(edges) if start < end]
    record, _, done = answered(parts, stream=True)
    assert (record.chunks, len(record.totals), dict(record.errors), done) == (4, 1, {}, 1)


def test_the_rest_of_the_first_token_does_not_make_it_later() -> None:
    caller = Caller(Record(0.0, float("inf")), lambda _: None)
    caller.connection_made(Wire())  # type: ignore[arg-type]
    caller.send(b"request", stream=True)
    start, end = chunks(stream(3, usage=3)).split(b" t0000")
    caller.data_received(start + b" t0000")
    first = caller._first_at
    caller.data_received(end[:4])
    assert caller._first_at == first > 0


def test_an_answer_of_known_length_ends_with_its_last_byte() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    assert answered([head + b"ab"], stream=False)[2] == 0
    record, wire, done = answered([head + b"ab", b"cd"], stream=False)
    assert (len(record.totals), done, wire.aborted) == (1, 1, False)


def test_a_status_other_than_200_is_an_error() -> None:
    record, wire, _ = answered([b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"], stream=False)
    assert (dict(record.errors), wire.aborted) == ({"status 503": 1}, True)


def test_a_stream_that_ends_without_done_is_an_error() -> None:
    record, _, _ = answered([chunks(stream(3, usage=3, done=False))], stream=True)
    assert dict(record.errors) == {"no [DONE]": 1}


def test_a_connection_that_closes_before_the_answer_is_an_error() -> None:
    record, done = Record(0.0, float("inf")), list[Caller]()
    caller = Caller(record, done.append)
    caller.connection_made(Wire())  # type: ignore[arg-type]
    caller.send(b"request", stream=False)
    caller.connection_lost(None)
    assert (dict(record.errors), len(done), caller.usable) == ({"connection closed": 1}, 1, False)


def test_what_was_sent_before_the_window_does_not_count() -> None:
    record = Record(float("inf"), float("inf"))
    caller = Caller(record, lambda _: None)
    caller.connection_made(Wire())  # type: ignore[arg-type]
    caller.send(b"request", stream=True)
    caller.data_received(chunks(stream(3, usage=3)))
    assert (record.totals, record.chunks) == ([], 0)


# --- Figures ---


def test_quantiles_are_milliseconds() -> None:
    values = [number / 1000 for number in range(100)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([], 0.5)) == (50, 99, 0)


def test_a_ratio_is_of_the_medians_and_spreads_within_the_rounds() -> None:
    assert report.ratio({1: 10, 2: 20, 3: 60}, {1: 10, 2: 5, 3: 20}) == Spread(2.0, 1.0, 4.0)


def test_there_is_no_ratio_to_nothing() -> None:
    assert report.ratio({1: 1.0}, {}) is None
    assert report.ratio({1: 1.0}, {1: 0.0}) is None
    assert report.ratio({1: 1.0}, {2: 1.0}) is None


def test_a_goal_compares_with_its_baseline() -> None:
    goal = Goal("rps1k", "requests_per_s", "at least", 2.0, "vllmr-rr")
    ours = rounds("fairlead", "rps1k", "requests_per_s", (40, 44, 42))
    theirs = rounds("vllmr-rr", "rps1k", "requests_per_s", (20, 22, 20))
    found = report.reached(goal, ours + theirs)
    assert found is not None
    assert (found["got"], found["met"]) == ([2.1, 2.0, 2.1], True)


@pytest.mark.parametrize(("value", "met"), [(60.0, True), (60.1, False)])
def test_a_goal_without_a_baseline_is_a_bound(value: float, *, met: bool) -> None:
    found = report.reached(Goal("idle", "rss_mb", "at most", 60), rounds("fairlead", "idle", "rss_mb", (value,)))
    assert found is not None
    assert found["met"] is met


def test_a_goal_that_was_not_measured_is_not_told() -> None:
    assert report.reached(report.GOALS[0], rounds("direct", "rps1k", "requests_per_s", (1,))) is None
    assert report.reached(report.GOALS[0], rounds("fairlead", "rps1k", "requests_per_s", (1,))) is None


def test_the_table_has_medians_and_extremes() -> None:
    found = report.table([*rounds("direct", "rps1k", "p50_ms", (1, 2, 4)), sample(1, "nginx", other=3.0)], "rps1k")
    assert [line.replace(" ", "") for line in found.splitlines()] == [
        "|rps1k|p50_ms|other|",
        "|------|-------------------|-----|",
        "|direct|2.00[1.00to4.00]|-|",
        "|nginx|-|3.00|",
    ]
    assert len({len(line) for line in found.splitlines()}) == 1


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12346"), (99.94, "99.9"), (0.123, "0.12"), (-15.0, "-15.0")])
def test_numbers_have_about_three_figures(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_last_line_has_goals_ratios_and_the_others_share() -> None:
    samples = [
        sample(number, target, foreign=foreign, requests_per_s=value, core_percent=95.0)
        for number, (foreign, values) in enumerate([(1.0, (10, 20)), (3.0, (10, 30))], 1)
        for target, value in zip(("vllmr-rr", "fairlead"), values, strict=True)
    ]
    found = json.loads(report.json_line(samples))
    assert found["ratios"] == {"fairlead": {"rps1k": {"requests_per_s": [2.5, 2.0, 3.0]}}}
    assert (found["rounds"], found["foreign_percent_of_a_core"]) == (2, 2.0)
    assert [(goal["row"], goal["met"]) for goal in found["goals"]] == [("rps1k", True)]
    assert "reached: rps1k requests_per_s 2.50 times vllmr-rr, wanted at least 2.0" in report.words(samples)


def test_every_goal_names_a_row_that_is_measured() -> None:
    assert {goal.row for goal in report.GOALS} <= {*rows.ROWS, "memory"}


# --- The command ---


def test_each_round_begins_with_another_target() -> None:
    orders = [run.order(["a", "b", "c"], number) for number in range(3)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert run.order(["a"], 2) == ["a"]


def test_a_quick_run_is_one_short_round() -> None:
    found = run.options(["--quick"])
    assert (found.rounds, found.seconds, found.targets) == (1, 2.0, list(run.QUICK))


def test_an_unknown_row_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.options(["--rows", "nonsense"])
    assert "rps1k" in capsys.readouterr().err


def test_memory_has_a_usual_number_of_requests() -> None:
    assert [run.options(arguments).memory for arguments in ([], ["--memory"], ["--memory", "5"])] == [0, 1_000_000, 5]
