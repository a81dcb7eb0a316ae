"""Settings of the process: environment variables, overridden by flags."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead_router.access_log import read_share


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that main needs to know. ``ledger`` is a URL, or empty for none."""

    namespace: str
    pod: str
    operator: str
    ledger: str
    tokens: Path
    state: Path | None
    pool: str
    engine: str
    drain: str
    drain_timeout_s: float
    termination_log: Path | None
    """Where the kubelet reads how a drain went."""
    first_byte_s: float
    between_bytes_s: float
    listen: str
    port: int
    admin_port: int
    config: Path | None
    endpoints: Path | None
    local_lease: Path | None
    access_log: float
    """Share of the requests in the access log; 0 = off."""
    otlp_endpoint: str
    trace_share: float
    """Share of the traces begun here that are recorded."""
    tls_cert: Path | None
    tls_key: Path | None


class SettingError(ValueError):
    """A setting that cannot be used; the text names it."""


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from flags and environment."""
    given = _parser(environment).parse_args(arguments)
    ledger = "" if given.ledger == "off" else given.ledger
    return Settings(
        namespace=environment.get("FAIRLEAD_NAMESPACE", "local"),
        pod=environment.get("FAIRLEAD_POD_NAME", "router"),
        operator=given.operator,
        ledger=ledger,
        tokens=Path(environment.get("FAIRLEAD_TOKENS_DIR", "/var/run/fairlead/tokens")),
        state=Path(environment["FAIRLEAD_STATE_DIR"]) if environment.get("FAIRLEAD_STATE_DIR") else None,
        pool=environment.get("FAIRLEAD_POOL", ""),
        engine=environment.get("FAIRLEAD_ENGINE_SOCKET", "") if environment.get("FAIRLEAD_POOL") else "",
        drain=environment.get("FAIRLEAD_DRAIN_SOCKET", ""),
        drain_timeout_s=float(environment.get("FAIRLEAD_DRAIN_TIMEOUT", "600")),
        termination_log=_path(environment, "FAIRLEAD_TERMINATION_LOG"),
        first_byte_s=float(environment.get("FAIRLEAD_FIRST_BYTE_TIMEOUT", "600")),
        between_bytes_s=float(environment.get("FAIRLEAD_IDLE_TIMEOUT", "300")),
        listen=given.listen,
        port=given.port,
        admin_port=given.admin_port,
        config=given.config,
        endpoints=given.endpoints,
        local_lease=given.local_lease,
        access_log=_share(environment, "FAIRLEAD_ACCESS_LOG", "0"),
        otlp_endpoint=environment.get("FAIRLEAD_OTLP_ENDPOINT", ""),
        trace_share=_share(environment, "FAIRLEAD_TRACE_SHARE", "0.01"),
        tls_cert=_path(environment, "FAIRLEAD_TLS_CERT"),
        tls_key=_path(environment, "FAIRLEAD_TLS_KEY"),
    )


def _share(environment: Mapping[str, str], name: str, default: str) -> float:
    try:
        return read_share(environment.get(name) or default)
    except ValueError as error:
        raise SettingError(f"{name}: {error}") from error


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    return Path(environment[name]) if environment.get(name) else None


def from_process(arguments: Sequence[str]) -> Settings:
    """Settings of this process."""
    return read_settings(arguments, os.environ)


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    text = "Routes requests, meters them and holds them to budgets. More settings are FAIRLEAD_* variables."
    parser = argparse.ArgumentParser(prog="fairlead-router", description=text)
    text = "address of both ports (default: all)"
    parser.add_argument("--listen", default="0.0.0.0", help=text)  # noqa: S104 - a pod's own address
    parser.add_argument("--port", type=int, default=8000, help="requests (default 8000)")
    parser.add_argument("--admin-port", type=int, default=9090, help="metrics, readiness, signals (default 9090)")
    parser.add_argument("--operator", default=environment.get("FAIRLEAD_OPERATOR_URL", ""), help="URL of the operator")
    parser.add_argument(
        "--ledger", default=environment.get("FAIRLEAD_LEDGER_URL", ""), help="URL of the ledger, or: off"
    )
    parser.add_argument("--config", type=Path, help="configuration from a file instead of the operator")
    parser.add_argument("--endpoints", type=Path, help="endpoints from a file, with --config")
    parser.add_argument(
        "--local-lease", type=Path, help='amounts granted without a ledger: {"namespace/budget": amount}'
    )
    return parser
