#!/usr/bin/env bash
# Pid 1 of one local cluster's namespaces. usage: init.sh STATE plane|node
# Ending this process ends every other process, mount, link and rule of the cluster.
# It is bash because pid 1 must reap: containerd's shims are adopted by it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
state=$1 kind=$2
export PATH=$state/bin:$PATH KUBECONFIG=$state/admin.kubeconfig

# Start a part; the script in cmd/ records the pid and the log, and is also how a part is started again.
start() { bash "$state/cmd/$1" & }

# Repeat a command until it succeeds, for at most 60 seconds.
await() {
  local deadline=$((SECONDS + 60))
  until "$@" > "$state/log/await.log" 2>&1; do
    if ((SECONDS >= deadline)); then
      echo "still not true after 60 s: $*" >&2
      tail -n 5 "$state/log/await.log" >&2
      return 1
    fi
    sleep 0.1
  done
}

# node0 is a bridge without ports that carries the node's address. The default route lets packets to service
# addresses exist at all, for kube-proxy's rules to rewrite. Pods of fake nodes (10.245/16) have no interface:
# whoever listens on 0.0.0.0 in here answers for all of them.
network() {
  ip link set lo up
  ip link add node0 type bridge
  ip address add 10.0.0.1/24 dev node0
  ip link set node0 up
  ip route add default dev node0
  ip route add local 10.245.0.0/16 dev lo
  echo 1 > /proc/sys/net/ipv4/ip_forward
}

plane() {
  start etcd
  start kube-apiserver
  await curl --silent --fail --max-time 5 --cacert "$state/pki/ca.crt" --cert "$state/pki/admin.crt" \
    --key "$state/pki/admin.key" https://10.0.0.1:6443/readyz
  start kube-controller-manager
  start kube-scheduler
  start kwok
}

network
# shellcheck source=SCRIPTDIR/node.sh
. "$here/node.sh"
if [ "$kind" = node ]; then
  private_folders
  fixed_sysctls
  pod_cgroup
  start containerd
fi
plane
[ "$kind" = plane ] || node
await kubectl --namespace default get serviceaccount default
touch "$state/ready"
while :; do
  wait || true
  # Nothing is left to wait for: a part that somebody starts again is not a child of this shell.
  sleep 1
done
