"""The cluster's own token issuer: its name and its keys, which routers verify callers with."""

import json
import logging
from collections.abc import Awaitable, Callable

from fairlead_operator.clock import Clock
from fairlead_operator.errors import ApiError
from fairlead_operator.kube.api import Api
from fairlead_router.contract import Issuer

log = logging.getLogger(__name__)

REFRESH_S = 30.0
"""Routers refuse tokens of a new key until they are told of it, and take those of a removed one as long."""
RETRY_S = 5.0


async def fetch_issuer(api: Api) -> Issuer:
    """The issuer as the API server publishes it; the keys in one canonical text, so that equal sets are equal."""
    discovery = await api.request("GET", "/.well-known/openid-configuration", what="openid-configuration")
    keys = await api.request("GET", "/openid/v1/jwks", what="jwks")
    ordered = {**keys, "keys": sorted(keys.get("keys", []), key=lambda key: str(key.get("kid", "")))}
    return Issuer(issuer=str(discovery["issuer"]), jwks=json.dumps(ordered, sort_keys=True, separators=(",", ":")))


def key_source(api: Api) -> Callable[[], Awaitable[Issuer]]:
    """The same for a token verifier, which knows connection errors and not the API server's."""

    async def fetch() -> Issuer:
        try:
            return await fetch_issuer(api)
        except ApiError as error:
            raise ConnectionError(str(error)) from error

    return fetch


class Issuers:
    """The last known issuer. Empty until the API server has answered once; then callers cannot be verified yet."""

    def __init__(self, api: Api, changed: Callable[[], None], clock: Clock) -> None:
        self._api = api
        self._changed = changed
        self._clock = clock
        self.known: tuple[Issuer, ...] = ()

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self._clock.sleep(await self.refresh())

    async def refresh(self) -> float:
        """Ask once; answers the seconds until the next time."""
        try:
            found = (await fetch_issuer(self._api),)
        except (ApiError, KeyError) as error:
            log.warning("the cluster's token issuer is unknown: %s", error)
            return RETRY_S
        if found != self.known:
            self.known = found
            self._changed()
        return REFRESH_S
