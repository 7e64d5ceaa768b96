# Two commands matter: `make demo` runs the main job on real input, `make test` passes the tests.
# Each does the set-up it needs; nothing else has to be installed by hand.
SHELL := /bin/bash
PY := .venv/bin/python
LISTS := $(wildcard scripts/debian-packages.txt scripts/debian-packages-lab.txt)
ALL_LISTS := $(LISTS) scripts/debian-packages-sim.txt
CODE := wire runtime hgwd nas_agent deliver carrier firmware_sim
PYTEST := $(PY) -m pytest
DIR ?= .

.PHONY: help setup demo up test test-all soak lint bench requirements lock docs image conformance

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## install Debian packages (as root) and the locked Python packages into .venv
	@scripts/setup.sh $(LISTS)

demo: setup ## the main job, end to end: deliver a package, back up DIR (default: this checkout), restore, bill
	@$(PY) -m firmware_sim.cli demo --dir "$(DIR)"

up: setup ## the demo's world, left running until Ctrl-C
	@$(PY) -m firmware_sim.cli demo --dir "$(DIR)" --keep

test: setup ## the tests: random order, under 15 minutes on 2 cores, seconds per area at the end
	@$(PYTEST) -m "not slow and not soak"

test-all: ## everything but the soak: booted machines, PostgreSQL, S3
	@scripts/setup.sh $(ALL_LISTS)
	@$(PYTEST) -m "not soak"

soak: ## hours of kills and power cuts; prints its seed
	@scripts/setup.sh $(ALL_LISTS)
	@$(PYTEST) -m soak --timeout 0

lint: setup ## format, lint, types, architecture
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy && .venv/bin/lint-imports

bench: ## time against restic, borg and nginx; prints the tables of docs/benchmarks.md
	@scripts/setup.sh $(LISTS) scripts/debian-packages-bench.txt
	@[ -x build/bench/bin/borg ] || { python3.11 -m venv build/bench && build/bench/bin/pip install -q \
	  --disable-pip-version-check --require-hashes -r requirements/bench.txt; }
	@HGW_BENCH_BORG=$(CURDIR)/build/bench/bin/borg $(PY) tests/bench/run.py $(if $(WRITE),--write)

requirements: setup ## docs/requirements.md from the catalogue and the IDs that tests cite
	@$(PY) scripts/requirements_table.py

lock: ## requirements/*.txt: versions and hashes, no addresses
	@scripts/lock.sh

image: ## the gateway's image for the emulated machine
	@scripts/setup.sh $(ALL_LISTS)
	@$(PY) -m firmware_sim.cli image --profile PR-500

conformance: setup ## the public TUF conformance suite, SUITE=path of a checkout; fetches nothing
	@$(PY) tests/conformance/run.py "$(SUITE)"
