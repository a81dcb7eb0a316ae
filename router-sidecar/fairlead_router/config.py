"""The configuration: long-polled from the operator, checked whole before it is taken, kept on disk for a restart."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from fairlead_router.contract import CONTRACT_VERSION, ConfigAnswer, Endpoints, RouterConfig
from fairlead_router.policy import ConfigError, Index, build_index
from fairlead_router.upstream import Reply

log = logging.getLogger(__name__)

WAIT_S: Final = 30
_RETRY_S: Final = 2.0
_FILE: Final = "configuration.json"
_OK: Final = 200

Poll = Callable[[str], Awaitable[Reply]]
"""Asks the operator for a path."""


def validated(config: RouterConfig) -> Index:
    """The index of a configuration; raises ConfigError when it does not hold together."""
    if config.contract > CONTRACT_VERSION:
        raise ConfigError(
            f"it is of contract {config.contract}, this router knows {CONTRACT_VERSION}; update the router"
        )
    try:
        return build_index(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error


class Store:
    """The last good configuration on the pod's volume."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE

    def load(self) -> ConfigAnswer | None:
        """What was in use before; nothing if there is none that can be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=ConfigAnswer)
        except (OSError, msgspec.DecodeError):
            return None

    def save(self, answer: ConfigAnswer) -> None:
        """Replace the copy in one step."""
        draft = self._path.with_suffix(".new")
        try:
            draft.write_bytes(msgspec.json.encode(answer))
            draft.replace(self._path)
        except OSError as error:
            log.warning("the configuration was not kept: %s", error)


class Configuration:
    """Follows the operator. ``apply`` and ``place`` take a new policy part and new endpoints.

    ``rejected`` hears why a configuration was not taken: ``invalid`` or ``unreadable``.
    """

    def __init__(
        self,
        apply: Callable[[Index], None],
        place: Callable[[Endpoints], None],
        now: Callable[[], float],
        rejected: Callable[[str], None],
    ) -> None:
        self._apply = apply
        self._place = place
        self._now = now
        self._rejected = rejected
        self.version = ""
        self.endpoints_version = ""
        self.confirmed_at: float | None = None
        self.fault = ""
        """Why what the operator last said, if anything, is not in use; empty when it is."""
        self._known = ConfigAnswer(version="", endpoints_version="")

    def age_s(self) -> float:
        """Seconds since the operator last confirmed what is in use; 0 if it never did."""
        return 0.0 if self.confirmed_at is None else self._now() - self.confirmed_at

    def take(self, answer: ConfigAnswer) -> bool:
        """Take an answer whole or not at all; whether anything changed."""
        index = validated(answer.config) if answer.config is not None else None
        if index is not None and answer.version != self.version:
            self._apply(index)
            self.version = answer.version
        if answer.endpoints is not None:
            self._place(answer.endpoints)
            self.endpoints_version = answer.endpoints_version
        self._known = ConfigAnswer(
            version=self.version,
            endpoints_version=self.endpoints_version,
            config=answer.config or self._known.config,
            endpoints=answer.endpoints or self._known.endpoints,
            budgets_version=answer.budgets_version,
        )
        return answer.config is not None or answer.endpoints is not None

    async def follow(self, poll: Poll, store: Store | None) -> None:
        """Long-poll until cancelled."""
        while True:
            wait_s = 0 if self.fault else WAIT_S  # whether all is well again is to be known soon
            try:
                reply = await poll(f"/v1/config?have={self.version}&endpoints={self.endpoints_version}&wait={wait_s}")
                changed = self.take(_decoded(reply))
                self.confirmed_at, self.fault = self._now(), ""
                if changed and store is not None:
                    await asyncio.to_thread(store.save, self._known)
            except (OSError, TimeoutError, msgspec.DecodeError, ConfigError) as error:
                if isinstance(error, msgspec.DecodeError | ConfigError):
                    self._rejected("invalid" if isinstance(error, ConfigError) else "unreadable")
                self.fault = str(error)
                await asyncio.sleep(_RETRY_S)


def _decoded(reply: Reply) -> ConfigAnswer:
    if reply.status != _OK:
        raise OSError(f"the operator answered {reply.status}")
    return msgspec.json.decode(reply.body, type=ConfigAnswer)


def read_files(config: Path, endpoints: Path | None) -> ConfigAnswer:
    """A configuration from files, for a router without an operator."""
    found = Endpoints()
    if endpoints is not None:
        found = msgspec.json.decode(endpoints.read_bytes(), type=Endpoints)
    return ConfigAnswer(
        version=f"file-{config.stat().st_mtime_ns}",
        endpoints_version="file",
        config=msgspec.json.decode(config.read_bytes(), type=RouterConfig),
        endpoints=found,
    )
