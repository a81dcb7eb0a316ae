"""A short run of ``make fuzz-router``, and that the references it compares with see what is wrong."""

import random

import pytest

from tests.fuzz import strict
from tests.fuzz.run import BATCH, SIDES, Tape, play_batch, run_batch

INPUTS = 20_000


@pytest.mark.parametrize("part", range(8))
def test_no_client_desynchronises_a_connection(part: int) -> None:
    batches = range(part, INPUTS // BATCH, 8)
    assert not [problem for batch in batches for problem in run_batch("clients", 2, batch)]


@pytest.mark.parametrize("part", range(2))
def test_no_engine_desynchronises_a_client(part: int) -> None:
    batches = range(part, INPUTS // 10 // BATCH, 2)
    assert not [problem for batch in batches for problem in run_batch("engines", 2, batch)]


@pytest.mark.parametrize("side", SIDES)
def test_a_seed_gives_the_same_choices_again(side: str) -> None:
    ends = set()
    for _ in range(2):
        pick = random.Random(5)  # noqa: S311 - choices that can be repeated
        play_batch(side, pick, 8, 5)
        ends.add(pick.random())
    assert len(ends) == 1


def test_choices_can_be_read_from_bytes() -> None:
    assert not play_batch("clients", Tape(bytes(range(256)) * 4), 4, 0)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "whole"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", "short"),
        (b"GET / HTTP/1.1\nhost: x\n\n", "bad"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n", "bad"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na", "bad"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "whole"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n", "bad"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r", "short"),
    ],
)
def test_the_reference_has_one_reading_or_none(data: bytes, end: str) -> None:
    assert strict.read_requests(data).end == end


def test_the_reference_knows_which_answers_have_no_body() -> None:
    data = (
        b"HTTP/1.1 100 X\r\n\r\nHTTP/1.1 404 X\r\ncontent-length: 3\r\n\r\nHTTP/1.1 200 X\r\ncontent-length: 1\r\n\r\na"
    )
    found = strict.read_answers(data, [b"HEAD", b"GET"], closed=False)
    assert [(message.status, message.body) for message in found.messages] == [(404, b""), (200, b"a")]
