"""Where the API server is and how to prove who we are: in the cluster, or from a kubeconfig."""

import ssl
from dataclasses import dataclass

import aiohttp
import kopf
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

    async def for_kopf(self) -> kopf.ConnectionInfo:
        """The same login for kopf, which lives in a loop of its own and so needs its own session."""
        authorization = await self.authorization()
        scheme, _, token = (authorization or "").partition(" ")
        return kopf.ConnectionInfo(
            server=self.server,
            ca_path=self.settings.ssl_ca_cert,
            certificate_path=self.settings.cert_file,
            private_key_path=self.settings.key_file,
            insecure=not self.settings.verify_ssl,
            scheme=scheme or None,
            token=token or None,
        )


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
    """The one session to the API server. Time-outs are set call by call."""

    async def authorize(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        authorization = await who.authorization()
        if authorization is not None:
            request.headers["Authorization"] = authorization
        return await handler(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=who.tls()),
        middlewares=(authorize,),
        headers={"User-Agent": "fairlead-operator"},
    )
