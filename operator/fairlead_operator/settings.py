"""What the operator is told by its environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Unbudgeted = Literal["Admit", "Reject"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's settings; every field is one FAIRLEAD_ variable of the same name."""

    namespace: str
    pod_name: str
    platform_namespaces: tuple[str, ...]
    operator_url: str
    ledger_url: str
    gateway_url: str
    tokens_dir: Path
    prices_file: Path
    oidc_file: Path
    router_image: str
    engine_image: str
    hugging_face_endpoint: str
    unbudgeted_namespaces: Unbudgeted
    listen: tuple[str, int]
    log_level: str

    @property
    def instance(self) -> str:
        """Name of this process in the Lease and in Events."""
        return self.pod_name


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment.

    Raises:
        ValueError: a variable has a value that cannot be used.
    """
    env = os.environ if environment is None else environment
    namespace = env.get("FAIRLEAD_NAMESPACE", "fairlead")
    return Settings(
        namespace=namespace,
        pod_name=env.get("FAIRLEAD_POD_NAME") or f"{os.uname().nodename}-{os.getpid()}",
        platform_namespaces=_names(env.get("FAIRLEAD_PLATFORM_NAMESPACES", "")),
        operator_url=env.get("FAIRLEAD_OPERATOR_URL", f"http://fairlead-operator.{namespace}:8080"),
        ledger_url=env.get("FAIRLEAD_LEDGER_URL", f"http://fairlead-ledger.{namespace}:8080"),
        gateway_url=env.get("FAIRLEAD_GATEWAY_URL", f"http://fairlead-gateway.{namespace}"),
        tokens_dir=Path(env.get("FAIRLEAD_TOKENS_DIR", "/var/run/fairlead/tokens")),
        prices_file=Path(env.get("FAIRLEAD_PRICES_FILE", "/etc/fairlead/prices.yaml")),
        oidc_file=Path(env.get("FAIRLEAD_OIDC_FILE", "/etc/fairlead-oidc/oidc.yaml")),
        router_image=env.get("FAIRLEAD_ROUTER_IMAGE", "fairlead-router:latest"),
        engine_image=env.get("FAIRLEAD_ENGINE_IMAGE", "vllm/vllm-openai:v0.32.0"),
        hugging_face_endpoint=_address(env.get("FAIRLEAD_HUGGING_FACE_ENDPOINT", "")),
        unbudgeted_namespaces=_unbudgeted(env.get("FAIRLEAD_UNBUDGETED_NAMESPACES", "Admit")),
        listen=_listen(env.get("FAIRLEAD_LISTEN", "0.0.0.0:8080")),
        log_level=env.get("FAIRLEAD_LOG_LEVEL", "info").upper(),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(sorted({name for part in text.split(",") if (name := part.strip())}))


def _address(text: str) -> str:
    """An HTTP address without a slash at its end; empty for none."""
    if text and not text.startswith(("http://", "https://")):
        raise ValueError(
            f"FAIRLEAD_HUGGING_FACE_ENDPOINT is {text!r}: write http://... or https://..., or leave it empty"
        )
    return text.rstrip("/")


def _unbudgeted(text: str) -> Unbudgeted:
    match text:
        case "Admit" | "Reject":
            return text
        case _:
            raise ValueError(f"FAIRLEAD_UNBUDGETED_NAMESPACES is {text!r}: Admit and Reject exist")


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit():
        raise ValueError(f"FAIRLEAD_LISTEN is {text!r}: write address:port, such as 0.0.0.0:8080")
    return host, int(port)
