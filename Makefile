# The front door. `make help` lists the words; `make` alone makes .venv with every console script.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := .venv/.done
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv/bin
CLUSTER ?= local
export CLUSTER
PYTEST := $(VENV)/python -m pytest -q

.PHONY: help demo demo-budget down test check format unit unit-compiled cluster e2e e2e-cluster e2e-apart doctor prerequisites programs test-programs lock generate clean bench-ledger bench-router bench-affinity bench-isolation bench-forecast bench-autoscaler bench-engine-args bench-operator e2e-lifecycle fuzz-router soak-router chaos-budget test-machines test-mutants

help: ## list the words
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.done: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	$(VENV)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: .venv/.done prerequisites ## a cluster, vLLM, Fairlead, traffic, budgets: the whole story (CLUSTER=local|kind|current)
	@$(VENV)/python -m hack.demo

demo-budget: .venv/.done ## on the cluster of make demo: a budget of a minute is paced, refuses, is raised, opens again
	@$(VENV)/python -m hack.demo.minutes

down: .venv/.done ## remove what make demo and make test left running
	@for name in demo test e2e; do python3 hack/cluster down --name $$name; done

# Two at a time fill two cores; each tells all when it is over. What starts engines in a cluster has the machine to itself.
test: .venv/.done check programs test-programs ## everything that continuous integration runs
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target --old-file=prerequisites cluster unit unit-compiled e2e-apart
	$(MAKE) --no-print-directory e2e-cluster

check: .venv/.done ## format, lint, types, layers, shell, generated files
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports
	git ls-files '*.sh' .ci/run | xargs $(VENV)/shellcheck
	$(VENV)/python -m hack.crds --check
	$(VENV)/python -m hack.api_reference --check
	$(VENV)/python -m hack.values_reference --check
	$(VENV)/python -m hack.metrics_reference --check
	$(VENV)/python -m hack.engine_reference --check

format: .venv/.done ## let ruff write the format and the safe fixes
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .

unit: .venv/.done ## tests that need no cluster
	nice $(PYTEST) -m "not cluster and not e2e"

unit-compiled: .venv/.done ## the tests of router and ledger on their compiled modules, as the images have them
	compiled=$$($(VENV)/python -m hack.compile) && \
	FAIRLEAD_COMPILED=1 PYTHONPATH=$$compiled nice $(PYTEST) -o pythonpath="operator ." tests/unit/test_router_*.py
	compiled=$$($(VENV)/python -m hack.compile --package operator/fairlead_operator) && \
	FAIRLEAD_COMPILED=1 PYTHONPATH=$$compiled nice $(PYTEST) -o pythonpath="router-sidecar ." tests/unit/test_ledger_*.py \
		tests/unit/test_performance_replica.py tests/unit/test_simulate_fleet.py

cluster: .venv/.done prerequisites ## tests on a real control plane with KWOK nodes
	$(PYTEST) -m cluster

e2e: e2e-cluster e2e-apart ## tests with real vLLM

e2e-cluster: .venv/.done prerequisites ## those on a real node
	$(PYTEST) -m e2e --timeout 900 $(APART:%=--ignore=%)

# The chaos comes last: it asks for most of two cores.
APART = tests/e2e/test_engine_arguments.py $(wildcard tests/e2e/test_vllm_*.py) tests/chaos/test_slice.py
e2e-apart: .venv/.done prerequisites ## those that need no cluster: vLLM's engines, and the chaos of budgets in small
	$(PYTEST) -m e2e --timeout 900 $(APART)

doctor: ## name what this machine lacks
	@python3 hack/cluster doctor

# Helm is one of them: the chart's unit tests skip without it.
programs: prerequisites
	@if [ "$(CLUSTER)" = local ]; then python3 hack/cluster build; fi

# PostgreSQL, Prometheus and libfaketime: tests that need one skip without it.
test-programs:
	@if [ "$(CLUSTER)" = local ]; then python3 hack/cluster doctor --install --tests; fi

prerequisites:
	@if [ "$(CLUSTER)" = local ]; then python3 hack/cluster doctor --install; fi

lock: .venv/.done ## write requirements/*.txt anew from pyproject.toml
	$(VENV)/python -m hack.lock

generate: .venv/.done ## write the CRDs and the reference pages anew
	$(VENV)/python -m hack.crds
	$(VENV)/python -m hack.api_reference
	$(VENV)/python -m hack.values_reference
	$(VENV)/python -m hack.metrics_reference
	$(VENV)/python -m hack.engine_reference

bench-ledger: .venv/.done ## the ledger: syncs a second, and the cost of 50 routers
	$(VENV)/python -m tests.bench.ledger

OPTIONS ?=
bench-router: .venv/.done ## the router beside its peers, on one core (OPTIONS="--quick", "--help")
	$(VENV)/python -m tests.bench.router.run $(OPTIONS)

bench-engine-args: .venv/.done ## every combination of engine settings, shown to vLLM's own parser (OPTIONS="--small", "--help")
	$(VENV)/python -m tests.bench.engine_args $(OPTIONS)

bench-operator: .venv/.done prerequisites ## the operator with 200 pools on KWOK nodes (OPTIONS="--real" for a recorded load on real vLLM, "--help")
	compiled=$$($(VENV)/python -m hack.compile --package operator/fairlead_operator) && \
	PYTHONPATH=$$compiled:. $(VENV)/python -m tests.bench.operator $(OPTIONS)

e2e-lifecycle: .venv/.done prerequisites ## a pool of real vLLM through all that happens to one, under traffic
	$(VENV)/python -m tests.e2e.lifecycle $(OPTIONS)

chaos-budget: .venv/.done ## budgets under kills, lost volumes, a bad network, wrong clocks (OPTIONS="--seed 2", "--help")
	compiled=$$($(VENV)/python -m hack.compile) && PYTHONPATH=$$compiled $(VENV)/python -m tests.chaos.run $(OPTIONS)

EXAMPLES ?= 5000
test-machines: .venv/.done ## EXAMPLES random histories of the budget protocol, on every ledger
	FAIRLEAD_EXAMPLES=$(EXAMPLES) $(PYTEST) tests/unit/test_ledger_machine.py

test-mutants: .venv/.done ## break the budget protocol's rules one at a time: every one must be noticed
	$(VENV)/python -m tests.mutants.run

N ?= 1000000
fuzz-router: .venv/.done ## N random inputs of clients, and a tenth of engines, against the router's HTTP edge
	$(VENV)/python -m tests.fuzz.run --inputs $(N)

SECONDS ?= 600
soak-router: .venv/.done ## mixed load with killed engines, slow readers and new configurations for SECONDS
	$(VENV)/python -m tests.soak.run --seconds $(SECONDS)

bench-affinity: .venv/.done ## prefix affinity: hit rate and load spread on a recorded hour
	$(VENV)/python -m tests.bench.affinity

bench-forecast: .venv/.done ## forecasts of a window's end on recorded demand
	$(VENV)/python -m tests.bench.forecast

bench-autoscaler: .venv/.done ## the autoscaler beside a clairvoyant schedule and its peers, simulated (OPTIONS="--slice", "--help")
	compiled=$$($(VENV)/python -m hack.compile --package operator/fairlead_operator) && \
	PYTHONPATH=$$compiled:. $(VENV)/python -m tests.bench.autoscaler $(OPTIONS)

bench-isolation: .venv/.done ## short chats alone, beside long prompts, and apart from them (OPTIONS="--engines model", "--help")
	$(VENV)/python -m tests.bench.isolation $(OPTIONS)

clean: ## remove .venv and tool caches (not the cache of binaries, images and vLLM: see make doctor)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
