# Three commands for everybody: `make demo`, `make test` and `make e2e`. All set up what they need.
# Needs root: Debian packages, network namespaces, nftables. Says so if it is missing.

SHELL  := /bin/bash
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
CNI    := build/node-network-cni
# Four more than the two cores it is measured on: lab tests wait more than they compute.
WORKERS ?= 6

.PHONY: help demo cni image test e2e e2e-long e2e-kernel lint format bench floors soak schema docs lock clean setup

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(STAMP) $(CNI) ## show the main job on a VPC made of namespaces, and check every claim
	@$(BIN)/node-network lab demo

test: $(STAMP) $(CNI) ## run all tests
	@$(BIN)/pytest -n $(WORKERS) $(ARGS)

# A whole cluster runs in one session: no workers. It prints what it builds, and how long that takes.
e2e: $(STAMP) $(CNI) ## a real Kubernetes cluster on two lab nodes: start, pods, edit, rollout, kill, reboot
	@lab/kubernetes/setup.sh
	@RESULTS=$(RESULTS) $(BIN)/pytest -s -v -m "not long" tests/e2e $(ARGS)

e2e-long: $(STAMP) $(CNI) ## the same, and what takes longer
	@lab/kubernetes/setup.sh
	@RESULTS=$(RESULTS) $(BIN)/pytest -s -v tests/e2e $(ARGS)

e2e-kernel: $(STAMP) ## what this machine's kernel does not have, on Debian's in an emulated machine: the fast path
	@lab/vm/run.sh $(BIN)/pytest -v --color=no tests/vm tests/targets/test_flows_contract.py $(ARGS)

cni: $(CNI) ## build the static CNI executable

image: ## build the container image without a registry: build/node-network-image.tar
	@deploy/image/build.sh $(or $(TAG),localhost/node-network:dev)

lint: $(STAMP) ## lint, format and type checks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy tests/fakes.py tests/fake_cloud.py tests/fake_directories.py tests/simulation.py # the fakes stand for the targets

format: $(STAMP) ## format and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) $(CNI) ## measure, and write benchmarks/results.md
	@$(BIN)/python -m benchmarks

floors: $(STAMP) $(CNI) ## measure what is beneath each goal, after bench: profiles, and who does nothing else
	@$(BIN)/python -m benchmarks.floors

soak: $(STAMP) $(CNI) ## every crash point, every two losses of records, storms of drift, 50 hours of faults, 10 of clock steps, 60,000 steps of the pool's model, 10,000 pods, 500 kills of one call, 100 of the daemon, 50,000 routes stamped as ours
	@CRASH_SHARE=1 $(BIN)/pytest -q -n $(WORKERS) tests/node/test_crash_points.py
	@PAIRS_SHARE=1 $(BIN)/pytest -q -n $(WORKERS) tests/node/test_lost_records.py
	@STORM_RUNS=60 STORM_STEPS=30 $(BIN)/pytest -q tests/node/test_drift_storm.py
	@FAULT_HOURS=50 CLOCK_HOURS=10 $(BIN)/pytest -q -n $(WORKERS) tests/node/test_fault_hour.py
	@MODEL_RUNS=1000 MODEL_STEPS=60 $(BIN)/pytest -q tests/node/test_pool_model.py
	@CYCLES=10000 $(BIN)/pytest -q -s tests/runtime/test_cycles.py
	@KILLS=500 $(BIN)/pytest -q tests/runtime/test_kill.py
	@CRASHES=100 $(BIN)/pytest -q -s tests/scenarios/test_crash.py
	@STAMPED=50000 ROUNDS=20 $(BIN)/pytest -q tests/hostile/test_neighbour.py

schema: $(STAMP) ## generate the JSON Schema from the models
	@$(BIN)/python -m schemas

# Pages link to each other and to files beside docs/, so the site is made of a copy of all of these.
docs: $(STAMP) ## write the reference pages, and the site to build/site
	@$(BIN)/python docs/reference.py
	@rm -rf build/site-pages && mkdir -p build/site-pages
	@cp -r --parents *.md LICENSE benchmarks/*.md config deploy docs schemas/*.json build/site-pages
	@$(BIN)/mkdocs --quiet build

lock: ## pin Python's packages anew, with hashes: for a checkout, for the daemon, for its build (needs uv)
	@deploy/image/lock.sh $(ARGS)

setup: $(STAMP) ## Debian packages and the virtual environment, if they are missing

$(STAMP): requirements.txt pyproject.toml setup.sh lab/packages.sh
	@./setup.sh $(VENV)
	@touch $@

# The distribution's own Python: its library is what is linked.
$(CNI): $(STAMP) $(wildcard cni/*.py deploy/executable/*)
	@/usr/bin/python3 deploy/executable/build.py $@

clean: ## remove what setup made
	@rm -rf $(VENV) *.egg-info build
