# The environment is .venv; it is made once and brought up to date when pyproject.toml changes.
# Another interpreter or torch build: make demo PYTHON=python3.12 TORCH='torch==2.12.0', after make clean.
PYTHON ?= python3
TORCH ?= torch==2.13.0
CRYPTEN ?= crypten==0.4.1
# Processes of the test suites: one more than cores, since tests wait for servers; four at most.
WORKERS := $(shell cores=$$(nproc 2>/dev/null || echo 3); echo $$(( cores > 2 ? 4 : cores + 1 )))
# Sizes of `make faults` and `make load`.
KILLS ?= 50
FUZZED ?= 100000
CLIENTS ?= 200
SECONDS_OF_LOAD ?= 600

PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts

.DEFAULT_GOAL := help
.PHONY: help demo test peer-test faults load benchmark lint style clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 | /' | column -t -s '|'

demo: .venv/base.stamp  ## install, then classify real sentences on secret shares, by the engine and by the reference
	.venv/bin/securerouter demo
	.venv/bin/securerouter demo --protocol crypten

test: .venv/test.stamp  ## install with the test extra, then run the test suite
	.venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

peer-test: .venv/peer.stamp  ## run transformers' own model and config tests on tiny pools (ARGS='-k resize': a part)
	.venv/bin/python -m tests.peer.run --numprocesses $(WORKERS) $(ARGS)

faults: .venv/test.stamp  ## kill and stop every role in turn, then KILLS of them under load, and send nonsense to each port
	.venv/bin/python -m pytest -m fault
	.venv/bin/python -m tests.faults.kill_and_fuzz --kills $(KILLS) --fuzzed $(FUZZED)

load: .venv/test.stamp  ## let CLIENTS clients ask deployed servers for a while, with and without shared batches
	.venv/bin/python -m tests.faults.many_clients --clients $(CLIENTS) --seconds $(SECONDS_OF_LOAD)

benchmark: .venv/benchmark.stamp  ## measure both protocols and write the tables of docs/benchmark.md (ONLY=bert-tiny/1x: a part)
	.venv/bin/python tests/benchmarks/benchmark.py --only '$(ONLY)'

lint: .venv/dev.stamp  ## check style, formatting and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

style: .venv/dev.stamp  ## repair style and formatting
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:  ## remove the environment and build products
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# torch first: a bare `torch` may bring another build. crypten without its dependencies: its metadata
# asks for packages that cannot be installed; what it really imports is among ours.
.venv/base.stamp: pyproject.toml Makefile | .venv/bin/python
	$(PIP) '$(TORCH)'
	$(PIP) --no-deps '$(CRYPTEN)'
	$(PIP) --editable .
	@touch $@

.venv/test.stamp: .venv/base.stamp
	$(PIP) --editable '.[test]'
	@touch $@

.venv/peer.stamp: .venv/test.stamp
	$(PIP) --editable '.[peer]'
	@touch $@

.venv/benchmark.stamp: .venv/base.stamp
	$(PIP) --editable '.[benchmark]'
	@touch $@

.venv/dev.stamp: .venv/base.stamp
	$(PIP) --editable '.[dev]'
	@touch $@
