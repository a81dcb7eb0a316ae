"""Every file that the parts of a cluster read, as text: what runs, with which flags and configuration.

JSON throughout, also where the parts speak of YAML: it is YAML, and needs no writer of our own.
"""

import base64
import json
import shlex
from pathlib import Path
from typing import Any

from hack.cluster.layout import API, HERE, NODE_IP, NODE_NAME, Kind, Layout

SERVICES, DNS_IP = "10.96.0.0/16", "10.96.0.10"
REAL_PODS, FAKE_PODS, ALL_PODS = "10.244.0.0/16", "10.245.0.0/16", "10.244.0.0/15"
ISSUER = "https://kubernetes.default.svc.cluster.local"
PAUSE_IMAGE = "localhost/pause:1"
GPU_LABEL, GPU_PRODUCT, GPUS = "nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3", "8"
# The uid and gid of every Fairlead image.
LEDGER_UID = 65532
# A client that is alone with its cluster has nobody to be fair to.
CLIENT_RATE = {"qps": 500, "burst": 1000}


def files(place: Layout, kind: Kind) -> dict[str, str]:
    """Return path below the state folder → content; certificates must be there already."""
    who = ["admin", "controller-manager", "scheduler", *(["kubelet", "proxy"] if kind == "node" else [])]
    kubeconfigs = {f"{name}.kubeconfig": kubeconfig(place.pki, name, API, place.name) for name in who}
    commands = {**plane_commands(place), **(node_commands(place) if kind == "node" else {})}
    scripts = {f"cmd/{part}": script(place.state, part, command) for part, command in commands.items()}
    return {**kubeconfigs, **scripts, **plane_files(place), **(node_files(place) if kind == "node" else {})}


def script(state: Path, part: str, command: list[str]) -> str:
    """Return the script that starts a part, at first and again after somebody ended it."""
    return f"echo $$ > {state}/pid/{part}\nexec >> {state}/log/{part}.log 2>&1\nexec {shlex.join([part, *command])}\n"


def kubeconfig(pki: Path, user: str, server: str, name: str) -> str:
    """Return a kubeconfig with the certificates inside it."""

    def inline(file: str) -> str:
        return base64.b64encode((pki / file).read_bytes()).decode()

    context = f"fairlead-{name}"
    client = {"client-certificate-data": inline(f"{user}.crt"), "client-key-data": inline(f"{user}.key")}
    return _json(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "clusters": [
                {"name": context, "cluster": {"server": server, "certificate-authority-data": inline("ca.crt")}}
            ],
            "users": [{"name": user, "user": client}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": user}}],
        }
    )


def plane_commands(place: Layout) -> dict[str, list[str]]:
    """Return part → arguments of the control plane and of KWOK."""
    state = place.state
    etcd, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return {
        "etcd": [
            *("--name=local", f"--data-dir={state}/etcd", "--log-level=warn"),
            # A local cluster does not outlive its machine.
            "--unsafe-no-fsync",
            *(f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=local={peer}"),
        ],
        "kube-apiserver": _apiserver(place.pki, etcd),
        "kube-controller-manager": [
            *_client_flags(place, "controller-manager"),
            *(f"--kubeconfig={state}/controller-manager.kubeconfig", "--leader-elect=false"),
            *("--use-service-account-credentials=true", f"--service-account-private-key-file={place.pki}/sa.key"),
            *(f"--root-ca-file={place.pki}/ca.crt", "--kube-api-qps=500", "--kube-api-burst=1000", "--v=1"),
        ],
        "kube-scheduler": [*_client_flags(place, "scheduler"), f"--config={state}/scheduler.json", "--v=1"],
        "kwok": [
            *(f"--kubeconfig={place.admin_kubeconfig}", f"--config={HERE}/kwok.yaml"),
            *("--manage-all-nodes=false", "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake"),
            *(f"--cidr={FAKE_PODS}", f"--node-ip={NODE_IP}", "--node-lease-duration-seconds=40"),
        ],
    }


def _apiserver(pki: Path, etcd: str) -> list[str]:
    return [
        *(f"--etcd-servers={etcd}", "--secure-port=6443", f"--advertise-address={NODE_IP}"),
        *(f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key"),
        *(f"--client-ca-file={pki}/ca.crt", f"--kubelet-certificate-authority={pki}/ca.crt"),
        *(f"--kubelet-client-certificate={pki}/kubelet-client.crt", f"--kubelet-client-key={pki}/kubelet-client.key"),
        "--kubelet-preferred-address-types=InternalIP",
        *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--anonymous-auth=false"),
        *(f"--service-account-issuer={ISSUER}", f"--service-account-key-file={pki}/sa.pub"),
        f"--service-account-signing-key-file={pki}/sa.key",
        *(f"--service-cluster-ip-range={SERVICES}", "--allow-privileged=true"),
        # Without the limits of requests in flight, a burst of a test is never answered 429.
        *("--enable-priority-and-fairness=false", "--max-requests-inflight=0", "--max-mutating-requests-inflight=0"),
        "--v=1",
    ]


def _client_flags(place: Layout, who: str) -> list[str]:
    own = f"{place.state}/{who}.kubeconfig"
    return [f"--authentication-kubeconfig={own}", f"--authorization-kubeconfig={own}", "--bind-address=127.0.0.1"]


def plane_files(place: Layout) -> dict[str, str]:
    """Return the configuration files of the control plane."""
    scheduler = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": f"{place.state}/scheduler.kubeconfig", **CLIENT_RATE},
        "leaderElection": {"leaderElect": False},
    }
    return {"scheduler.json": _json(scheduler)}


def node_commands(place: Layout) -> dict[str, list[str]]:
    """Return part → arguments of the real node."""
    state = place.state
    return {
        "containerd": [f"--config={state}/containerd.toml"],
        "kubelet": [
            *(f"--config={state}/kubelet.json", f"--kubeconfig={state}/kubelet.kubeconfig"),
            *(f"--hostname-override={NODE_NAME}", f"--node-ip={NODE_IP}", f"--root-dir={state}/kubelet"),
            *(f"--node-labels={GPU_LABEL}={GPU_PRODUCT}", "--v=1"),
        ],
        "kube-proxy": [f"--config={state}/proxy.json", "--v=1"],
        "coredns": ["-conf", f"{state}/Corefile"],
    }


def node_files(place: Layout) -> dict[str, str]:
    """Return the configuration files of the real node, and what is patched and applied once it is Ready."""
    return {
        "containerd.toml": _containerd(place),
        "cni/10-pods.conflist": _json(_pod_network(place.state)),
        "kubelet.json": _json(_kubelet(place)),
        "proxy.json": _json(_proxy(place.state)),
        "Corefile": CORE_FILE.format(kubeconfig=place.admin_kubeconfig, context=f"fairlead-{place.name}"),
        # Names outside the cluster have nobody to ask.
        "resolv.conf": "",
        "gpus.json": _json(gpu_patch()),
        "volume.json": _json(ledger_volume(place)),
    }


CORE_FILE = """.:53 {{
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig} {context}
        ttl 1
    }}
}}
"""


def _containerd(place: Layout) -> str:
    return f"""version = 2
root = "{place.state}/containerd"
state = "{place.state}/run"
[grpc]
  address = "{place.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Inside many containers root may not lower an oom_score_adj, and runc ends a sandbox over it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{place.state}/cni"
"""


def _pod_network(state: Path) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "dataDir": f"{state}/cni-data",
        "ranges": [[{"subnet": REAL_PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}


def _kubelet(place: Layout) -> dict[str, Any]:
    state, pki = place.state, place.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{place.cgroup}",
        "containerRuntimeEndpoint": f"unix://{place.containerd_socket}",
        "address": NODE_IP,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet.key",
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{state}/resolv.conf",
        "podLogsDir": f"{state}/pod-logs",
        # New contents of ConfigMaps and Secrets are in the pods within seconds, not a minute.
        "syncFrequency": "5s",
        # The machine is shared: its other users' memory and disk are no reason to evict pods or images.
        "evictionHard": {"memory.available": "1Mi"},
        "imageGCHighThresholdPercent": 100,
    }


def _proxy(state: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": ALL_PODS,
        "clientConnection": {"kubeconfig": f"{state}/proxy.kubeconfig"},
        # The size of the connection table belongs to the machine; a child namespace may not set it.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def gpu_patch() -> list[dict[str, Any]]:
    """Return the JSON patch that gives the real node GPUs the kubelet only counts.

    Both fields: capacity alone becomes allocatable only at the kubelet's next status update.
    """
    paths = ("capacity", "allocatable")
    return [{"op": "add", "path": f"/status/{path}/nvidia.com~1gpu", "value": GPUS} for path in paths]


def ledger_volume(place: Layout) -> dict[str, Any]:
    """Return the PersistentVolume that stands in for a storage class: a folder of the real node."""
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "fairlead-ledger"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "fairlead-local",
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(place.ledger_volume), "type": "Directory"},
            # The folder is on one node; a fake node would accept the pod and run nothing.
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
