# shellcheck shell=bash
# The real node: containerd, kubelet, kube-proxy and CoreDNS. Sourced by init.sh, whose names it uses.
: "${state:?is set by init.sh}"

# containerd's shims, CNI and the kubelet write here whatever they are told. The mounts are private to the cluster.
private_folders() {
  local path
  for path in /run /opt/containerd /usr/libexec/kubernetes /var/lib/cni /var/lib/kubelet /var/log/containers; do
    mkdir -p "$path"
    mount -t tmpfs fairlead "$path"
  done
}

# The kubelet sets these for the whole machine and would leave them so. It reads a value first and writes only what
# differs, so it is shown files with what it wants.
fixed_sysctls() {
  local pair
  mkdir -p "$state/sysctl"
  for pair in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    local file=$state/sysctl/${pair//\//.}
    echo "${pair#*=}" > "$file"
    mount --bind "$file" "/proc/sys/${pair%=*}"
  done
}

# All pods live below one cgroup with the state folder's name, which is how `down` finds it.
pod_cgroup() {
  local name controller file
  name=$(basename "$state")
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    # UNTESTED: cgroup v2. Children get only the controllers that the parent hands down.
    for controller in cpu cpuset memory pids io; do
      echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
    done
    mkdir -p "/sys/fs/cgroup/$name"
    return
  fi
  for controller in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
    [ ! -d "/sys/fs/cgroup/$controller" ] || mkdir -p "/sys/fs/cgroup/$controller/$name"
  done
  # A new folder of cpuset allows no processor at all.
  for file in cpuset.cpus cpuset.mems; do
    cat "/sys/fs/cgroup/cpuset/$file" > "/sys/fs/cgroup/cpuset/$name/$file"
  done
}

node() {
  await ctr --address "$state/containerd.sock" version
  start kubelet
  start kube-proxy
  # DNS is a process of the node: it needs no image, and pods find it at the address that they are told.
  ip address add 10.96.0.10/32 dev lo
  start coredns
  await kubectl get node real
  await kubectl patch node real --subresource=status --type=json --patch-file="$state/gpus.json"
  await kubectl create --filename="$state/volume.json"
  await kubectl wait --for=condition=Ready node/real --timeout=1s
}
