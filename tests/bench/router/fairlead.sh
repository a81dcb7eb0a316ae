#!/bin/bash
# Start one router on PORT in front of two engines: fairlead.sh PORT ENGINE1 ENGINE2 (URLs). The whole way of a request
# runs: identity (the API key sk-bench), policy, two routes, two USD budgets on a local lease, the journal, metering. The
# access log is off. The hot modules are compiled, as in the image; fairlead.sh compile does no more than that.
# $FAIRLEAD_ROUTER: another program than the repository's; $FAIRLEAD_BENCH_CONFIG: another configuration.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
if [ -n "${FAIRLEAD_ROUTER:-}" ]; then
    router=("$FAIRLEAD_ROUTER")
else
    # The image runs Debian's python3.11, which is built with profile-guided optimisation; other builds are slower.
    python=$root/.venv/bin/python
    [ -x /usr/bin/python3.11 ] && [ -e /usr/include/python3.11/Python.h ] && python=/usr/bin/python3.11
    compiled=$(cd "$root" && .venv/bin/python -m hack.compile --python "$python")
    export PYTHONPATH=$compiled:$root/.venv/lib/python3.11/site-packages
    router=("$python" -m fairlead_router.main)
fi
[ "$1" = compile ] && exit
work=$(mktemp -d)
port=$1
engines() {
    printf '[{"pod": "bench/%s-1", "address": "%s", "variant": "mock"}, ' "$1" "${2#http://}"
    printf '{"pod": "bench/%s-2", "address": "%s", "variant": "mock"}]' "$1" "${3#http://}"
}
cat > "$work/endpoints.json" <<CONF
{"pools": [
  {"pool": "bench/mock-model", "endpoints": $(engines short "$2" "$3")},
  {"pool": "bench/mock-model-long", "endpoints": $(engines long "$2" "$3")}]}
CONF
export FAIRLEAD_STATE_DIR=$work/state
exec "${router[@]}" --listen 127.0.0.1 --port "$port" --admin-port $((port + 1)) --endpoints "$work/endpoints.json" \
    --config "${FAIRLEAD_BENCH_CONFIG:-$here/config.json}" --local-lease "$here/lease.json"
