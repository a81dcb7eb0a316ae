#!/bin/bash
# LiteLLM's proxy: one worker, no database, a key, and prices, so that it counts spend: litellm.sh PORT ENGINE1 ENGINE2
set -euo pipefail
work=$(mktemp -d)
engine() {
    printf '  - {model_name: mock-model, litellm_params: {model: openai/mock-model, api_base: "%s/v1", api_key: none, ' "$1"
    printf 'input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}}\n'
}
{
    echo model_list:
    engine "$2"
    engine "$3"
    echo 'router_settings: {routing_strategy: simple-shuffle, num_retries: 0}'
    echo 'litellm_settings: {telemetry: false, set_verbose: false}'
    echo 'general_settings: {master_key: sk-bench}'
} > "$work/config.yaml"
cd "$work"
export LITELLM_LOG=ERROR LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_MODE=PRODUCTION LITELLM_TELEMETRY=False
bench=${BENCH_CACHE:-$HOME/.cache/fairlead/bench}
exec "$bench/bench-litellm/bin/litellm" --config config.yaml --host 127.0.0.1 --port "$1" --num_workers 1
