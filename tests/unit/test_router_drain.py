"""The drain socket: what the preStop hook hears, what is told of a drain, and when a pod that stays takes requests."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fairlead_router import drain, engine_watch
from fairlead_router.contract import DrainReport
from fairlead_router.drain import Drain
from tests.builders.router import configuration, until, watching
from tests.fakes.engine import FakeEngine

WAITS_S = 0.3


@dataclass
class Pod:
    """A router beside an engine, as the hook and the kubelet see it."""

    path: str
    running: int = 0
    taking: bool = True
    told: list[DrainReport | None] = field(default_factory=list)

    def begin(self) -> None:
        self.taking = False

    def end(self) -> None:
        self.taking = True

    async def hook(self) -> bytes:
        """What the hook reads until the socket is closed."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        said = await reader.read()
        writer.close()
        return said


@pytest.fixture
async def pod(engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    """Its engine is ready; looks and patience are short."""
    for module, name, value in (
        (engine_watch, "LOOK_S", 0.01),
        (engine_watch, "HEALTH_S", 0.05),
        (drain, "_POLL_S", 0.005),
        (drain, "_ENGINE_POLL_S", 0.005),
    ):
        monkeypatch.setattr(module, name, value)
    socket = tmp_path / "engine.sock"
    await engine.start(str(socket))
    pod = Pod(str(tmp_path / "drain.sock"))
    async with watching(socket, configuration(platform_namespaces=("ai-platform",))) as at:
        watch = at.router.engine_watch
        await until(lambda: not watch.trouble(), "the warm-up")
        one = Drain(
            begin=pod.begin,
            end=pod.end,
            running=lambda: pod.running,
            dead=watch.dead,
            ready=watch.ready,
            timeout_s=WAITS_S,
            now=asyncio.get_running_loop().time,
            report=pod.told.append,
        )
        async with await one.listen(pod.path):
            yield pod


async def ended(pod: Pod) -> None:
    """The last request at the engine is over."""
    await until(lambda: not pod.taking, "the drain")
    pod.running = 0


async def test_the_hook_waits_for_what_runs_and_the_drain_is_told(pod: Pod) -> None:
    pod.running = 2
    said, _ = await asyncio.gather(pod.hook(), ended(pod))
    assert said == b"drained 2\n"
    assert [(one.requests, one.left) for one in pod.told if one] == [(2, 0)]
    assert not pod.taking


async def test_what_still_runs_when_the_time_is_over_is_told_as_left(pod: Pod) -> None:
    pod.running = 3
    assert await pod.hook() == b"drained 0\n"
    assert [(one.requests, one.left, one.timeout_s) for one in pod.told if one] == [(3, 3, WAITS_S)]


async def test_an_engine_too_busy_to_tell_its_health_is_not_taken_for_dead(pod: Pod, engine: FakeEngine) -> None:
    engine.health_held = asyncio.Event()
    pod.running = 1
    said, _ = await asyncio.gather(pod.hook(), ended(pod))
    assert said == b"drained 1\n"
    assert [(one.requests, one.left) for one in pod.told if one] == [(1, 0)]
    asked = len(engine.asked)
    await until(lambda: len(engine.asked) > asked, "another look")
    engine.health_held.set()
    asked = len(engine.asked)
    await until(lambda: len(engine.asked) > asked + 2, "looks that were answered")
    assert not pod.taking, "a pod that goes away takes nothing anew, however slow its engine was"
    assert None not in pod.told


async def test_of_an_engine_that_died_nothing_is_told_and_its_next_start_takes_requests(
    pod: Pod, engine: FakeEngine, tmp_path: Path
) -> None:
    pod.running = 1
    hook = asyncio.create_task(pod.hook())
    await until(lambda: not pod.taking, "the drain")
    await engine.stop()
    pod.running = 0
    await hook
    assert pod.told == []
    (tmp_path / "engine.sock").unlink(missing_ok=True)
    await engine.start(str(tmp_path / "engine.sock"))
    await until(lambda: pod.taking, "the pod that stays")
    assert pod.told == [None]
