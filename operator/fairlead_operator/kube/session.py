"""Where the API server is and how to prove who we are: in the cluster, or from a kubeconfig."""

import ssl
from dataclasses import dataclass

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

CONNECTIONS = 64
"""Watches hold one connection each; the rest is for lists and writes."""


@dataclass(frozen=True, slots=True)
class Login:
    """An API server and the credentials for it. Tokens are asked for anew at each request: they rotate."""

    settings: Configuration

    @property
    def server(self) -> str:
        """Address of the API server without a slash at its end."""
        return str(self.settings.host).rstrip("/")

    async def authorization(self) -> str | None:
        """Value of the Authorization header, if a token is used and not a certificate."""
        value = await self.settings.get_api_key_with_prefix("BearerToken", alias="authorization")
        return None if value is None else str(value)

    def tls(self) -> ssl.SSLContext:
        """Certificate authority and client certificate, as the official client reads them."""
        context: ssl.SSLContext = RESTClientObject(self.settings).ssl_context
        return context


async def login(kubeconfig: str = "", context: str = "") -> Login:
    """Read the kubeconfig and one of its contexts (empty: the current one), or without one the pod's ServiceAccount."""
    settings = Configuration()
    if kubeconfig:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, context=context or None, client_configuration=settings
        )
    else:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    return Login(settings)


def open_session(who: Login) -> aiohttp.ClientSession:
    """A session to the API server for the loop that runs. Time-outs are set call by call.

    A watch that is given up waits for the server's goodbye in TLS, which may never come: closing the session ends it.
    """

    async def authorize(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        authorization = await who.authorization()
        if authorization is not None:
            request.headers["Authorization"] = authorization
        return await handler(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=who.tls(), enable_cleanup_closed=True),
        middlewares=(authorize,),
        headers={"User-Agent": "fairlead-operator"},
    )
