"""Clients that send anything: each answer belongs to its request, and what can be read in two ways is never passed on.

The bytes of a connection are read by the reference reader too. What it takes, the router answers in the same order,
from the same bodies; from where the reference sees no request any more, the router takes nothing, answers at most once,
with an error, and closes.
"""

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from tests.fuzz import strict
from tests.fuzz.grammar import Author, Draft, scramble, wrong
from tests.fuzz.world import Talk, Wire, World, answer_to, echo, read_json

_MAX_TIME_S: Final = 200.0
_ANSWERED_S: Final = 8.0
"""Longer than engines take for the seven requests of a connection, one after the other, up to a second each."""
_LINGER_S: Final = 1.1
_BYTES_EACH: Final = 400


@dataclass(slots=True)
class Speaker:
    """A client: the bytes that it sends, what it sent so far, and how it behaves."""

    wire: Wire
    pieces: list[bytes]
    methods: list[bytes] = field(default_factory=list)
    sent: bytes = b""
    dropped: bool = False
    leaves: bool = False
    sulks: bool = False


def manners(pick: random.Random) -> "Manners":
    """A good engine, sometimes slow, in pieces of any size."""
    return Manners(pick)


@dataclass(slots=True)
class Manners:
    """Answers rightly, at once or later, whole or in pieces."""

    pick: random.Random

    def __call__(self, request: strict.Message, talk: Talk) -> None:
        """Answer."""
        data, pick = answer_to(request), self.pick
        cuts = tuple(pick.randrange(len(data)) for _ in range(pick.choice((0, 0, 1, 3))))
        if pick.randrange(5):
            talk.say(data, cuts)
        else:
            talk.wire.loop.call_later(pick.random(), talk.say, data, cuts)
        talk.done()


def write_stream(pick: random.Random, name: str) -> list[bytes]:
    """The requests of one connection, of which usually one is wrong."""
    author = Author(pick, name)
    drafts: list[Draft] = [author.request() for _ in range(pick.choice((1, 2, 3, 5, 7)))]
    at, how = pick.randrange(len(drafts)), pick.randrange(10)
    if how < 6:
        drafts[at] = wrong(pick, drafts[at])
    requests = [draft.data() for draft in drafts]
    if how in {5, 6, 7}:
        requests[at] = scramble(pick, requests[at])
    if not pick.randrange(12):
        requests[-1] = requests[-1][: pick.randrange(len(requests[-1]) + 1)]
    return requests


def cut(pick: random.Random, requests: list[bytes]) -> list[bytes]:
    """Pieces as they arrive: one request at a time, whole or in two, or all at once, or cut anywhere."""
    how, data = pick.randrange(12), b"".join(requests)
    if how < 2:
        return requests
    if how < 4:
        ends = sorted({0, len(requests), *(pick.randrange(len(requests)) for _ in requests)})
        return [b"".join(requests[start:end]) for start, end in pairwise(ends)]
    if how < 7:
        return [piece for request in requests for piece in _cut_at(request, [pick.randrange(len(request) + 1)])]
    if how == 7 and len(data) < _BYTES_EACH:
        return [data[at : at + 1] for at in range(len(data))]
    return _cut_at(data, [pick.randrange(len(data) + 1) for _ in range(pick.choice((0, 0, 1, 2, 6)))])


def _cut_at(data: bytes, places: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in pairwise(sorted([0, *places, len(data)])) if start < end]


def play(world: World, pick: random.Random, names: list[str]) -> list[str]:
    """Let some clients speak at once, then compare; what was wrong, if anything."""
    speakers = [Speaker(world.connect(), cut(pick, write_stream(pick, name))) for name in names]
    for speaker in speakers:
        speaker.leaves, speaker.sulks = not pick.randrange(8), not pick.randrange(10)
    told = talk(world, pick, speakers)
    for engine in world.engines:
        engine.requests.clear()
        engine.talks = [talk for talk in engine.talks if not talk.wire.over]
    problems = [problem for speaker in speakers for problem in judged(speaker)]
    return [*told, *problems, *world.problems()]


def talk(world: World, pick: random.Random, speakers: list[Speaker]) -> list[str]:
    """All speak in turns, then time passes until every connection is closed."""
    waiting = list(speakers)
    while waiting:
        speaker = pick.choice(waiting)
        if not speaker.pieces:
            waiting.remove(speaker)
            continue
        _say(world, pick, speaker)
    world.loop.settle()
    for speaker in speakers:
        if speaker.wire.blocked:
            speaker.dropped |= speaker.leaves
            world.within(speaker.wire.unblock)
    world.pass_time(_ANSWERED_S)
    problems = [f"{name} left over while clients wait: {value}" for name, value in _stuck(world).items()]
    _part(world, pick, speakers)
    return [*problems, *(f"{name} left over: {value}" for name, value in world.left_over().items())]


def _part(world: World, pick: random.Random, speakers: list[Speaker]) -> None:
    """Some leave, some wait until they are sent away; then the rest leaves."""
    for speaker in speakers:
        if speaker.leaves and not speaker.wire.over:
            speaker.dropped = True
            world.within(pick.choice((speaker.wire.vanish, speaker.wire.finish)))
    if not pick.randrange(30):
        world.pass_time(_MAX_TIME_S, 20)
    world.pass_time(_LINGER_S)
    for speaker in speakers:
        if not speaker.wire.over:
            speaker.dropped = True
            world.within(speaker.wire.vanish)
    world.loop.settle()


def _say(world: World, pick: random.Random, speaker: Speaker) -> None:
    piece = speaker.pieces.pop(0)
    if speaker.wire.over:
        return
    if speaker.sulks and not pick.randrange(3):
        speaker.wire.blocked = True
    speaker.sent += piece
    world.within(lambda: speaker.wire.feed(piece))
    if pick.randrange(4):
        world.loop.settle()
    if speaker.leaves and not pick.randrange(6):
        speaker.dropped = True
        world.within(pick.choice((speaker.wire.vanish, speaker.wire.finish)))


def _stuck(world: World) -> dict[str, int]:
    """Requests at engines although every engine has answered by now."""
    return {name: value for name, value in world.left_over().items() if name in {"running", "held", "reserved"}}


def judged(speaker: Speaker) -> list[str]:
    """Compare what came back with what the reference reads in what was sent."""
    asked = strict.read_requests(speaker.sent)
    methods = [message.start[0] for message in asked.messages] + [asked.rest.partition(b" ")[0]]
    got = strict.read_answers(bytes(speaker.wire.sent), methods, closed=speaker.wire.over)
    found = _wrong_answers(asked, got)
    if got.end == "bad" or (got.end == "short" and not speaker.dropped and not speaker.wire.over):
        found.append(f"the answers cannot be read: {got.end} {got.why} {got.rest[:200]!r}")
    if not found and not speaker.dropped:
        found += _missing(asked, got)
    return [
        f"{problem}\n  sent {speaker.sent[:4000]!r}\n  got {bytes(speaker.wire.sent)[:3000]!r}" for problem in found
    ]


def _wrong_answers(asked: strict.Reading, got: strict.Reading) -> list[str]:
    found = []
    for index, answer in enumerate(got.messages):
        if index < len(asked.messages):
            problem = _mismatch(asked.messages[index], answer)
            if problem:
                found.append(f"answer {index}: {problem}")
        elif index > len(asked.messages):
            found.append(f"answer {index} where the reference sees no request ({asked.why})")
        elif answer.status < 400 or not _closes(answer):
            found.append(f"answer {index} is {answer.status} to what is {asked.end}: {asked.why}")
    return found


def _mismatch(request: strict.Message, answer: strict.Message) -> str:
    """Why this is no answer to this request."""
    if answer.status >= 500:
        return f"{answer.status} from good engines: {answer.body[:300]!r}"
    if answer.status >= 400 or request.start[0] != b"POST":
        return ""
    if request.get(b"host") is None and request.start[2] != b"HTTP/1.0":
        return f"{answer.status} without Host"
    if request.get(b"authorization") is None:
        return f"{answer.status} to nobody"
    members = read_json(request.body)
    return "200 to a body that is no JSON object" if members is None else _foreign(members, answer)


def _foreign(members: dict[str, Any], answer: strict.Message) -> str:
    """Why this is not what a good engine says to this body."""
    mark, marks = echo(members).encode(), answer.body.count(b"mark-")
    if answer.status != 200 or not marks or answer.body.count(mark) != marks:
        return f"{answer.status} is not the answer to {mark!r}: {answer.body[:300]!r}"
    streams = members.get("stream") is True
    if answer.get(b"content-type") != (b"text/event-stream" if streams else b"application/json"):
        return f"content-type {answer.get(b'content-type')!r}"
    whole = not streams or answer.body.endswith(b"data: [DONE]\n\n")
    return "" if whole else "a stream without its end"


def _missing(asked: strict.Reading, got: strict.Reading) -> list[str]:
    """Requests without an answer, though the connection was not said to close."""
    if got.messages and _closes(got.messages[-1]):
        return []
    if len(got.messages) < len(asked.messages):
        return [f"{len(asked.messages)} requests and {len(got.messages)} answers"]
    return [f"what is no request was not refused: {asked.why}"] if asked.end == "bad" else []


def _closes(answer: strict.Message) -> bool:
    return (answer.get(b"connection") or b"").lower() == b"close"
