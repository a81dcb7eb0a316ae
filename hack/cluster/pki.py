"""Throw-away certificates of one local cluster, made with openssl."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.layout import NODE_IP, NODE_NAME, ClusterError

DAYS = "3650"
SERVICE = "kubernetes.default.svc"
SERVER_NAMES = f"DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:{SERVICE},DNS:{SERVICE}.cluster.local"


@dataclass(frozen=True, slots=True)
class Identity:
    """One certificate: who it names, and what it is good for."""

    file: str
    subject: str
    usage: str = "clientAuth"
    names: str = ""


IDENTITIES = (
    Identity("apiserver", "/CN=kube-apiserver", "serverAuth", f"{SERVER_NAMES},IP:127.0.0.1,IP:10.96.0.1,IP:{NODE_IP}"),
    Identity(
        "kubelet",
        f"/O=system:nodes/CN=system:node:{NODE_NAME}",
        "serverAuth,clientAuth",
        f"DNS:{NODE_NAME},IP:{NODE_IP}",
    ),
    Identity("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
    Identity("admin", "/O=system:masters/CN=admin"),
    Identity("controller-manager", "/CN=system:kube-controller-manager"),
    Identity("scheduler", "/CN=system:kube-scheduler"),
    Identity("proxy", "/CN=system:kube-proxy"),
)


def make(folder: Path) -> None:
    """Make the authority, every certificate, and the pair that signs ServiceAccount tokens."""
    folder.mkdir(mode=0o700)
    _openssl(
        folder,
        *_request("ca", "/CN=fairlead-local"),
        *_extensions("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"),
    )
    with ThreadPoolExecutor(4) as pool:
        tokens = pool.submit(_token_keys, folder)
        list(pool.map(lambda identity: _sign(folder, identity), IDENTITIES))
        tokens.result()


def _sign(folder: Path, identity: Identity) -> None:
    extensions = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        f"extendedKeyUsage={identity.usage}",
        *([f"subjectAltName={identity.names}"] if identity.names else []),
    ]
    request = _request(identity.file, identity.subject)
    _openssl(folder, *request, "-CA", "ca.crt", "-CAkey", "ca.key", *_extensions(*extensions))


def _token_keys(folder: Path) -> None:
    _openssl(folder, "genrsa", "-out", "sa.key", "2048")
    _openssl(folder, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")


def _request(file: str, subject: str) -> list[str]:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{file}.key"]
    return ["req", "-x509", "-sha256", "-days", DAYS, "-subj", subject, "-out", f"{file}.crt", *key]


def _extensions(*lines: str) -> list[str]:
    return [word for line in lines for word in ("-addext", line)]


def _openssl(folder: Path, *arguments: str) -> None:
    run = subprocess.run(
        ["openssl", *arguments], cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=60
    )
    if run.returncode:
        detail = run.stderr.strip()[-500:]
        raise ClusterError(f"openssl {arguments[0]} ended with status {run.returncode} in {folder}: {detail}")
