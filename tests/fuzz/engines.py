"""Engines that answer anything: a client gets its own answer, whole, or learns that there is none.

What an engine sent is read by the reference reader too: a client may get a complete 200 only if some engine sent one
for its request, with the same content. Bytes that belong to no answer carry a mark of their own, which no client may
see.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.fuzz import strict
from tests.fuzz.grammar import AUTH, HOST, JSON, LINE, Draft, scramble
from tests.fuzz.world import Talk, Wire, World, echo, read_json, sized, stream_answer, whole_answer

EVIL: Final = b"mark-ffffffff"
_MARK: Final = re.compile(rb"mark-[0-9a-f]{8}")
_VERSION: Final = re.compile(rb"\A(?:HTTP|RTSP|ICE)/[0-9.]+ ")
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_EVENTS: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
_PATIENCE_S: Final = 90.0

Say = Callable[[bytes, random.Random], bytes]


@dataclass(slots=True)
class Attempt:
    """What an engine sent to one request."""

    wire: Wire
    sent: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class Manners:
    """Answers in good or bad ways, and remembers which bytes answered which mark."""

    pick: random.Random
    attempts: dict[bytes, list[Attempt]] = field(default_factory=dict)

    def __call__(self, request: strict.Message, talk: Talk) -> None:
        """Answer, somehow."""
        members, pick = read_json(request.body), self.pick
        mark = echo(members or {}).encode()
        attempt = Attempt(talk.wire)
        self.attempts.setdefault(mark, []).append(attempt)
        good = stream_answer(mark.decode()) if (members or {}).get("stream") else whole_answer(mark.decode())
        how = pick.randrange(12)
        if how < 5:
            self._send(talk, attempt, good, cuts=True)
        elif how < 9:
            self._send(talk, attempt, pick.choice(_SAYS)(good, pick), cuts=False)
        else:
            pick.choice((self._cut, self._drip, self._late, self._silent, self._cut))(talk, attempt, good)

    def _send(self, talk: Talk, attempt: Attempt, data: bytes, *, cuts: bool) -> None:
        talk.done()
        attempt.sent += data
        pick = self.pick
        talk.say(data, tuple(pick.randrange(len(data)) for _ in range(pick.choice((0, 1, 4)))) if cuts else ())
        if not cuts and not pick.randrange(3):
            talk.wire.loop.call_later(0.01, talk.wire.finish)

    def _cut(self, talk: Talk, attempt: Attempt, good: bytes) -> None:
        """Close in the middle, politely or not."""
        data = good[: self.pick.randrange(len(good) + 1)]
        attempt.sent += data
        if data == good:
            talk.done()
        talk.say(data)
        end = self.pick.choice((talk.wire.finish, talk.wire.vanish, _reset(talk.wire)))
        talk.wire.loop.call_later(self.pick.choice((0.0, 0.1)), end)

    def _drip(self, talk: Talk, attempt: Attempt, good: bytes) -> None:
        """A few bytes at a time."""
        talk.done()
        attempt.sent += good
        step = self.pick.choice((1, 3, 40))
        for index, at in enumerate(range(0, len(good), step)):
            talk.wire.loop.call_later(index * 0.001, talk.wire.feed, good[at : at + step])

    def _late(self, talk: Talk, attempt: Attempt, good: bytes) -> None:
        """Another answer that nobody asked for, while nobody asks."""
        self._send(talk, attempt, good, cuts=True)
        spoken = len(talk.wire.sent)

        def unasked() -> None:
            if len(talk.wire.sent) == spoken:
                talk.wire.feed(self.pick.choice((whole_answer(EVIL.decode()), b"x", b"HTTP/1.1 408 X\r\n\r\n")))

        talk.wire.loop.call_later(0.001, unasked)

    def _silent(self, talk: Talk, attempt: Attempt, good: bytes) -> None:
        """Nothing, or nothing after a while: rarely, as it takes a long time."""
        if self.pick.randrange(20):
            self._cut(talk, attempt, good)
        else:
            attempt.sent += good[:70]
            talk.say(good[:70])


def manners(pick: random.Random) -> Manners:
    """An engine of any kind."""
    return Manners(pick)


def _reset(wire: Wire) -> Callable[[], None]:
    return lambda: wire.vanish(ConnectionResetError(104, "reset"))


def _body(good: bytes) -> bytes:
    """The body of an answer, without framing."""
    return strict.read_answers(good, [], closed=True).messages[0].body


def _lengths(good: bytes, pick: random.Random) -> bytes:
    body = _body(good)
    size = len(body)
    value = pick.choice(
        (
            b"%d\r\ncontent-length: %d" % (size, size),
            b"%d\r\ncontent-length: %d" % (size, size - 5),
            b"%d, %d" % (size, size),
            b"+%d" % size,
            b"-%d" % size,
            b"0x%x" % size,
            b"",
            b"%d " % size,
            b"%021d" % size,
            b"99999999999999999999999",
            b"%d\r\ntransfer-encoding: chunked" % size,
            b"%d\r\nTransfer-Encoding: identity" % size,
            b"%d;" % size,
        )
    )
    return _HEAD + b"content-length: " + value + b"\r\n\r\n" + body


def _codings(good: bytes, pick: random.Random) -> bytes:
    value = pick.choice(
        (
            b"gzip, chunked",
            b"chunked, chunked",
            b"xchunked",
            b"chunked, identity",
            b"identity",
            b"",
            b"chunked\x0b",
            b"Chunked",
            b"chunked\r\ntransfer-encoding: chunked",
            b"chunked\r\ncontent-length: 3",
            b"\tchunked",
            b"chunked;a=b",
        )
    )
    body = _body(good)
    return _HEAD + b"transfer-encoding: " + value + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def _chunks(good: bytes, pick: random.Random) -> bytes:
    body = _body(good)
    size = pick.choice(
        (
            b"%x;a=b",
            b"%x ",
            b" %x",
            b"0x%x",
            b"+%x",
            b"-%x",
            b"%X",
            b"0000%x",
            b"%x;\n",
            b"%x\t",
            b"%x;" + b"e" * 9000,
            b"%x;\rx",
            b"1%015x1",
            b"%x \n",
            b"\r\n%x",
            b"%x;\x00",
        )
    ) % len(body)
    end = pick.choice((b"\r\n", b"\n", b"", b"xx", b"\r", b"\r\r\n"))
    last = pick.choice(
        (
            b"0\r\n\r\n",
            b"0\r\nx: y\r\n\r\n",
            b"0\n\n",
            b"0\r\n",
            b"00\r\n\r\n",
            b"0;e\r\n\r\n",
            b"0\r\nhost: a\r\n b\r\n\r\n",
        )
    )
    return (
        pick.choice((_HEAD + b"transfer-encoding: chunked\r\n", _EVENTS)) + b"\r\n" + size + b"\r\n" + body + end + last
    )


def _after(good: bytes, pick: random.Random) -> bytes:
    """Something behind the answer."""
    evil = whole_answer(EVIL.decode())
    tail = pick.choice(
        (evil, stream_answer(EVIL.decode()), EVIL, b"\r\n" + evil, b"\r\n", b"\x00", b"0\r\n\r\n", evil[:40])
    )
    return good + tail


def _before(good: bytes, pick: random.Random) -> bytes:
    """Something in front of the answer."""
    return (
        pick.choice(
            (
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 3,
                b"HTTP/1.1 101 Switching\r\n\r\n",
                b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
                b"\r\n",
                b"\r\n\r\n",
                b"HTTP/1.1 100 X\r\ncontent-length: 3\r\n\r\n",
                b"HTTP/1.1 199 X\r\n\r\n",
                b" ",
                b"HTTP/1.1 102 X\r\ntransfer-encoding: chunked\r\n\r\n",
            )
        )
        + good
    )


def _statuses(good: bytes, pick: random.Random) -> bytes:
    status = pick.choice((204, 304, 205, 201, 206, 301, 400, 401, 404, 429, 500, 503, 599, 600, 999, 99, 1000, 200))
    body = pick.choice((_body(good), b'{"error":{"message":"no"}}', EVIL if status in {204, 304} else b""))
    return sized(
        status,
        body,
        pick.choice((b"", b"connection: close\r\n", b"connection: keep-alive\r\nkeep-alive: timeout=5\r\n")),
    )


def _lines(good: bytes, pick: random.Random) -> bytes:
    odd = pick.choice(
        (
            b"x: a\rb",
            b"x: a\nb: c",
            b"x: a\x00",
            b" x: a",
            b"x : a",
            b": a",
            b"xa",
            b"x: a\r\n b",
            b"x: " + b"v" * 70_000,
            b"content-length: 3",
            b"transfer-encoding: chunked",
            b"set-cookie: a\r\nset-cookie: b",
            b"x-fairlead-pool: evil",
            b"x\xe9: a",
            b"x: \xff",
            b"connection: close",
            b"upgrade: h2c\r\nconnection: upgrade",
            b"\r\n".join([b"x: y"] * 3000),
            b"x-request-id: evil",
            b"trailer: x",
            b"content-encoding: gzip",
        )
    )
    line, end, rest = good.partition(b"\r\n")
    return line + end + odd + b"\r\n" + rest


def _starts(good: bytes, pick: random.Random) -> bytes:
    line = pick.choice(
        (
            b"HTTP/1.0 200 OK",
            b"HTTP/1.1 200",
            b"HTTP/1.1  200 OK",
            b"HTTP/2 200",
            b"HTTP/0.9 200 OK",
            b"ICY 200 OK",
            b"http/1.1 200 OK",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 -200 OK",
            b"\x16\x03\x03",
            b"",
            b"<html>",
            b"HTTP/1.1 200 O\rK",
            b"HTTP/1.1 200 OK\r",
            b"RTSP/1.0 200 OK",
            b"GET / HTTP/1.1",
        )
    )
    return line + good[good.find(b"\r\n") :]


def _unframed(good: bytes, pick: random.Random) -> bytes:
    """A body that ends with the connection, which may not come."""
    return pick.choice((_HEAD, b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n")) + b"\r\n" + _body(good)


def _bytes(good: bytes, pick: random.Random) -> bytes:
    return scramble(pick, good)


def _ends(good: bytes, pick: random.Random) -> bytes:
    head, _, body = good.partition(b"\r\n\r\n")
    end = pick.choice((b"\n", b"\r", b"\r\r\n", b"\n\r"))
    return (head + b"\r\n\r\n").replace(b"\r\n", end, pick.choice((1, -1))) + body


_SAYS: Final[tuple[Say, ...]] = (
    _lengths,
    _codings,
    _chunks,
    _chunks,
    _after,
    _after,
    _before,
    _statuses,
    _lines,
    _starts,
    _unframed,
    _bytes,
    _bytes,
    _ends,
)


@dataclass(slots=True)
class Asker:
    """A client with good requests: their marks, in order."""

    wire: Wire
    marks: list[bytes] = field(default_factory=list)


def play(world: World, pick: random.Random, names: list[str]) -> list[str]:
    """Good clients ask; what was wrong, if anything."""
    askers = [_asked(world, pick, name) for name in names]
    # Replicas that failed are left alone for a while, and engines may be silent for as long as they are allowed to.
    for wait in (0.5, 12.0, _PATIENCE_S):
        if any(answered(asker) < len(asker.marks) and not asker.wire.over for asker in askers):
            world.pass_time(wait, 10)
    problems = [problem for asker in askers for problem in judged(world, asker)]
    for asker in askers:
        world.within(asker.wire.vanish)
    world.pass_time(0.5)
    for engine in world.engines:
        engine.requests.clear()
        engine.talks = [talk for talk in engine.talks if not talk.wire.over]
    problems += [f"{name} left over: {value}" for name, value in world.left_over().items()]
    return [*problems, *world.problems()]


def answered(asker: Asker) -> int:
    """How many answers came."""
    return len(strict.read_answers(bytes(asker.wire.sent), [], closed=asker.wire.over).messages)


def judged(world: World, asker: Asker) -> list[str]:
    """Whether each answer is what an engine said to this very request."""
    data = bytes(asker.wire.sent)
    got = strict.read_answers(data, [], closed=False)
    ways: Manners = world.engines[0].manners  # type: ignore[assignment]  # this world was made with these
    found = [f"the answers cannot be read: {got.why}"] if got.end == "bad" else []
    if not asker.wire.over and len(got.messages) < len(asker.marks):
        found.append(f"{len(asker.marks)} requests and {len(got.messages)} answers")
    for mark, answer in zip(asker.marks, got.messages, strict=False):
        said = ways.attempts.get(mark, [])
        problem = _mismatch(mark, answer, said)
        if problem:
            found.append(f"{problem}\n  engines {[bytes(attempt.sent) for attempt in said]}")
    if EVIL in data:
        found.append("a client got what was no answer")
    return [f"{problem}\n  got {data[:2000]!r}" for problem in found]


def _mismatch(mark: bytes, answer: strict.Message, said: list[Attempt]) -> str:
    marks = _MARK.findall(answer.body)
    if answer.status == 200 and not any(_same(marks, attempt) for attempt in said):
        return "a complete 200 that no engine sent"
    foreign = {found for found in marks if found != mark}
    heard = b"".join(bytes(attempt.sent) for attempt in said)
    return f"foreign {foreign}" if any(found not in heard for found in foreign) else ""


def _same(marks: list[bytes], attempt: Attempt) -> bool:
    """Whether an engine's bytes are an answer with these marks, as the reference reads it."""
    # Empty lines in front of an answer belong to nobody, and other versions frame it in the same way.
    sent = _VERSION.sub(b"HTTP/1.1 ", bytes(attempt.sent).lstrip(b"\r\n"))
    read = strict.read_answers(sent, [], closed=attempt.wire.finished)
    return bool(read.messages) and _MARK.findall(read.messages[0].body) == marks


def _asked(world: World, pick: random.Random, name: str) -> Asker:
    asker = Asker(world.connect())
    for number in range(pick.choice((1, 1, 2, 4))):
        members = {"model": "chat", "messages": [{"role": "user", "content": f"{name}-{number}-{pick.random()}"}]}
        body = json.dumps({**members, "max_tokens": 8, **({"stream": True} if pick.randrange(2) else {})}).encode()
        asker.marks.append(echo(members).encode())
        data = Draft(LINE, [HOST, AUTH, JSON, b"content-length: %d" % len(body)], body).data()
        world.within(lambda data=data: asker.wire.feed(data))  # type: ignore[misc]  # bound now
        if pick.randrange(3):
            world.loop.advance(0.05)
    world.pass_time(0.5)
    return asker
