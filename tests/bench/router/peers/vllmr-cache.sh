#!/bin/bash
# vllm-router (Rust), cache aware: vllmr-cache.sh PORT ENGINE1 ENGINE2
set -euo pipefail
bench=${BENCH_CACHE:-$HOME/.cache/fairlead/bench}
exec "$bench/bench/bin/vllm-router" --host 127.0.0.1 --port "$1" \
    --worker-urls "$2" "$3" --policy cache_aware \
    --log-level warning --prometheus-host 127.0.0.1 \
    --prometheus-port $(($1 + 1000)) --worker-startup-check-interval 1
