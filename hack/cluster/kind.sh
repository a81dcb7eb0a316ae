#!/usr/bin/env bash
# A cluster of kind (Kubernetes in Docker) instead of the local one. usage: kind.sh up|down [NAME]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
verb=${1:-} name=fairlead-${2:-demo}
kubeconfig=${XDG_STATE_HOME:-$HOME/.local/state}/fairlead/$name.kubeconfig

stop() {
  echo "hack/cluster/kind.sh: $*" >&2
  exit 1
}

case $verb in
  up | down) ;;
  *) stop "usage: kind.sh up|down [NAME]" ;;
esac
command -v kind > /dev/null || stop "kind is not on PATH: install it, or use the local cluster (CLUSTER=local)"
command -v docker > /dev/null || stop "docker is not on PATH, and kind's nodes are its containers: install it, or use CLUSTER=local"
timeout 20 docker info > /dev/null 2>&1 || stop "no Docker daemon answers, and kind's nodes are its containers: start it, or use CLUSTER=local"

command -v kubectl > /dev/null || stop "kubectl is not on PATH: install it, or use CLUSTER=local"

if [ "$verb" = down ]; then
  kind delete cluster --name "$name" --kubeconfig "$kubeconfig"
  rm -f "$kubeconfig"
  exit
fi
mkdir -p "$(dirname "$kubeconfig")"
if kind get clusters 2> /dev/null | grep --quiet --line-regexp --fixed-strings "$name"; then
  kind export kubeconfig --name "$name" --kubeconfig "$kubeconfig"
else
  cache=${FAIRLEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fairlead}
  mkdir -p "$cache"
  sed "s#CACHE#$cache#g" "$here/kind/config.yaml" |
    kind create cluster --name "$name" --config - --kubeconfig "$kubeconfig" --wait 180s
fi
# Eight GPUs that are not there: a resource that the kubelet counts and knows nothing else of.
for field in capacity allocatable; do
  kubectl --kubeconfig "$kubeconfig" patch node "$name-worker" --subresource=status --type=json \
    --patch '[{"op": "add", "path": "/status/'$field'/nvidia.com~1gpu", "value": "8"}]' >&2
done
echo "export KUBECONFIG=$kubeconfig"
