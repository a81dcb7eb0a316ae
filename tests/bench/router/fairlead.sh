#!/bin/bash
# Start one router on PORT in front of two engines: fairlead.sh PORT BACKEND1 BACKEND2 (URLs). The whole way of a request
# runs: identity, policy, one USD budget on a local lease, splicing, metering. The token in fairlead.headers and the key
# in config.json were made for this bench; the key's private half was thrown away.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
port=$1
b1=${2#http://}
b2=${3#http://}
cat > "$work/endpoints.json" <<CONF
{"pools": [{"pool": "bench/mock-model", "endpoints": [
  {"pod": "bench/one", "address": "$b1", "variant": "mock"},
  {"pod": "bench/two", "address": "$b2", "variant": "mock"}]}]}
CONF
exec "${FAIRLEAD_ROUTER:-$here/../../../.venv/bin/fairlead-router}" --listen 127.0.0.1 --port "$port" --admin-port $((port + 1)) \
    --config "$here/config.json" --endpoints "$work/endpoints.json" --local-lease "$here/lease.json"
