"""The event loop that tests run on, and the engines of the router's tests."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from tests.fakes.engine import FakeEngine


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The router's tests run on the router's own loop: its transports differ from those of asyncio."""
    del config
    if item.path.name.startswith("test_router_"):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    await engine.stop()


@pytest.fixture
async def other() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    await engine.stop()
