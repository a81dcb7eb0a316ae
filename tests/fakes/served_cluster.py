"""A fake API server in a thread of its own, for command lines that run their own event loop."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

from tests.fakes.api_server import FakeApiServer


class ServedCluster:
    """A fake API server in a thread of its own, and a kubeconfig for it."""

    def __init__(self, folder: Path) -> None:
        self.server = FakeApiServer()
        self.loop = asyncio.new_event_loop()
        self._up, self._stop = threading.Event(), asyncio.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),))
        self.thread.start()
        assert self._up.wait(10)
        cluster = {"name": "fake", "cluster": {"server": self.server.url}}
        contexts = [
            {"name": name, "context": {"cluster": "fake", "user": "me", **more}}
            for name, more in (("main", {"namespace": "support"}), ("bare", {}))
        ]
        config = {
            "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": contexts,
            "users": [{"name": "me", "user": {"token": "t"}}], "current-context": "main",
        }  # fmt: skip
        self.kubeconfig = folder / "config"
        self.kubeconfig.write_text(json.dumps(config), encoding="utf-8")

    async def _serve(self) -> None:
        async with self.server.running():
            self._up.set()
            await self._stop.wait()

    def put(self, plural: str, body: dict[str, Any]) -> None:
        asyncio.run_coroutine_threadsafe(self.server.put(plural, body), self.loop).result(10)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(10)
        self.loop.close()
