"""How make e2e-lifecycle counts: a broken answer must show, and only those of a killed engine are excused."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from tests.e2e.lifecycle import tally
from tests.e2e.lifecycle.watch import TRIED, Retries, Sample, extra_replica_s

T = 1_795_172_400.0


def request(ended_s: float = 1.0, **fields: Any) -> tally.Request:
    usual: dict[str, Any] = {
        "path": "gateway",
        "stream": True,
        "began_s": T,
        "ended_s": T + ended_s,
        "first_s": T + 0.5,
        "status": 200,
        "tokens": 32,
        "role": "assistant",
        "finish": "length",
        "whole": True,
        "error": "",
    }
    return tally.Request(**(usual | fields))


def window(**fields: Any) -> tally.Window:
    return tally.Window(**{"name": "drill", "began_s": T, "ended_s": T + 10, "took_s": 8.0, **fields})


CUT = request(whole=False, tokens=7, finish="", error="ReadError: ")
REFUSED = request(whole=False, tokens=0, status=502, error="upstream_error")
NO_ANSWER = request(whole=False, tokens=0, status=0, error="ConnectError: ")


def test_whole_answers_are_counted_and_are_fine() -> None:
    row = tally.row([request(), request(stream=False)], window())
    assert (row.requests, row.failed, row.truncated, row.lost, row.fine) == (2, 0, 0, 0, True)


@pytest.mark.parametrize(
    ("bad", "failed", "truncated"), [(CUT, 0, 1), (REFUSED, 1, 0), (NO_ANSWER, 1, 0)], ids=["cut", "502", "no answer"]
)
def test_each_broken_answer_is_counted_and_told(bad: tally.Request, failed: int, truncated: int) -> None:
    row = tally.row([request(), bad], window())
    assert (row.failed, row.truncated, row.lost, row.fine) == (failed, truncated, 0, False)
    assert bad.error in row.examples[0]


def test_a_request_belongs_to_the_event_in_which_it_ended() -> None:
    late = request(11.0)
    assert tally.row([late], window()).requests == 0
    assert tally.row([late], window(began_s=T + 10, ended_s=T + 20)).requests == 1


@pytest.mark.parametrize(
    ("bad", "lost"),
    [
        (request(2.0, whole=False), 1),
        (request(2.0 + tally.AFTER_KILL_S, whole=False), 0),
        (request(1.4, whole=False), 0),
        (request(2.0, whole=False, began_s=T + 1.6), 0),
        (request(2.0, whole=False, status=502), 0),
    ],
    ids=["on it", "too late", "before", "begun after", "not begun"],
)
def test_only_a_stream_that_ran_on_the_killed_engine_is_lost_with_it(bad: tally.Request, lost: int) -> None:
    row = tally.row([bad], window(killed_s=T + 1.5))
    assert (row.lost, row.failed + row.truncated) == (lost, 1 - lost)


def test_the_first_new_token_is_the_first_that_speaks_in_the_new_role() -> None:
    requests = [request(), request(role="second", first_s=T + 7), request(role="second", first_s=T + 6)]
    assert tally.first_token_s(requests, "second", T) == 6
    assert tally.first_token_s(requests, "third", T) is None


def test_what_the_clients_print_is_read_and_a_cut_line_is_left_out() -> None:
    line = json.dumps(asdict(request()))
    assert tally.read([line + "\n", line[:50]]) == [request()]


def test_the_table_tells_what_broke_below_its_row() -> None:
    rows = [tally.row([CUT], window()), tally.row([request()], window(name="other"))]
    lines = tally.table(rows).splitlines()
    assert [line.split()[0] for line in lines] == ["EVENT", "drill", "gateway", "other"]
    assert "7 tokens" in lines[2]


def test_the_summary_is_not_ok_with_one_broken_answer() -> None:
    fine, bad = tally.row([request()], window()), tally.row([REFUSED], window(name="other"))
    assert tally.summary([fine], {})["ok"]
    told = tally.summary([fine, bad], {"rolloutSeconds": 3})
    assert (told["ok"], told["requests"], told["failed"], told["rolloutSeconds"]) == (False, 2, 1, 3)


def test_extra_replica_seconds_are_those_beyond_the_wanted_ones() -> None:
    samples = [Sample(T, 2, 2), Sample(T + 1, 3, 2), Sample(T + 3, 3, 2), Sample(T + 4, 1, 2), Sample(T + 9, 9, 2)]
    assert extra_replica_s(samples, T, T + 5) == 3
    assert extra_replica_s([], T, T + 5) == 0


def test_retries_survive_a_restart_of_a_router_and_its_end() -> None:
    retries = Retries()
    for router, value in (("a", 3), ("b", 1), ("a", 5), ("a", 1)):
        retries.note(router, value)
    assert retries.total == 7


def test_retries_are_read_from_what_a_router_exposes() -> None:
    lines = [
        f'fairlead_retries_total{{pool="a/b",result="{word}"}} {n}.0' for n, word in enumerate(("no_budget", "tried"))
    ]
    assert TRIED.findall("\n".join(lines)) == ["1.0"]
