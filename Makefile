# Every target does its own set-up, and the second call is quick. `make` alone says what there is.

VENV := .venv
BIN := $(VENV)/bin
# Debian keeps mosquitto out of a plain user's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/opt/homebrew/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The first Python that is new enough, python3 preferred; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# More for pip, such as an index that holds CPU-only builds of PyTorch: make venv PIP_ARGS="--extra-index-url ..."
PIP_ARGS ?=
PIP_INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS)
ARGS ?=
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test check lint format types layers bench fuzz chaos mosquitto postgres prometheus field node clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/dev.stamp ## an environment in .venv with everything for running and developing

demo: $(VENV)/demo.stamp ## train on ten devices over a real broker: make demo ARGS="--rounds 5"
	@$(BIN)/fedmq demo $(ARGS)

test: $(VENV)/dev.stamp mosquitto postgres prometheus field node ## the tests: make test ARGS="tests/protocol -k chunk"
	$(BIN)/pytest $(ARGS)

check: lint types layers ## ruff, mypy and import-linter, as CI runs them

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp
	$(BIN)/mypy

layers: $(VENV)/dev.stamp
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## let ruff tidy the code
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(VENV)/dev.stamp mosquitto ## one benchmark: make bench BENCH=rounds ARGS="--seeds 5"; without BENCH, their names
	@if [ -z "$(BENCH)" ]; then \
		echo "make bench BENCH=... with one of:"; \
		grep -l __main__ benchmarks/*.py | sed 's,benchmarks/\(.*\)\.py,  \1,'; \
	elif [ ! -f benchmarks/$(BENCH).py ]; then \
		echo "there is no benchmark $(BENCH); make bench lists them" >&2; exit 2; \
	else $(BIN)/python benchmarks/$(BENCH).py $(ARGS); fi

fuzz: $(VENV)/dev.stamp ## fuzz all decoders by coverage: make fuzz RUNS=10000000 (needs atheris: Linux on x86-64)
	$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/pip install --quiet "atheris>=3.0"
	$(BIN)/python -m tests.fuzz all --runs $(or $(RUNS),200000)

chaos: $(VENV)/dev.stamp mosquitto ## kill and pause a real federation, then audit it: make chaos ARGS="--kills 200 --seed 1"
	@$(BIN)/python -m tests.chaos $(ARGS)

# The agent in JavaScript is tested where Node is; without it, or its packages, those tests say that they are left out.
node:
	@if [ ! -d examples/js-agent/node_modules ] && command -v npm >/dev/null; then \
		npm ci --prefix examples/js-agent --ignore-scripts --no-audit --no-fund --loglevel=error || true; fi

clean: ## remove caches and builds
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf $(VENV)

# ------------------------------------------------------------------------------------------------- set-up

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { \
		echo "fedmq needs Python 3.11 or newer; found: $$(python3 --version 2>&1). Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing fedmq into $(VENV); with PyTorch this takes a few minutes the first time"
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing fedmq and its tools into $(VENV); with PyTorch this takes a few minutes the first time"
	@$(PIP_INSTALL) --editable '.[demo,dev]'
	@touch $(VENV)/demo.stamp $@

# Mosquitto is the broker for production, and PostgreSQL may hold the journal. The tests use both where they are; without
# them they skip, with the reason.
mosquitto:
	@command -v mosquitto >/dev/null && exit 0; $(call install,mosquitto); \
	command -v mosquitto >/dev/null || echo "no mosquitto here: what needs it is skipped (apt-get install mosquitto, or brew install mosquitto)"

postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null && exit 0; $(call install,postgresql); \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || echo "no PostgreSQL here: what needs it is skipped (apt-get install postgresql, or brew install postgresql)"

prometheus:
	@command -v promtool >/dev/null && exit 0; $(call install,prometheus); \
	command -v promtool >/dev/null || echo "no Prometheus here: what needs it is skipped (apt-get install prometheus, or brew install prometheus)"

# Systems that tests flash. Only root may enter them, so that nothing is installed for anybody else; an ssh server is for CI alone.
field:
	@[ "$$(uname)" = Linux ] && [ "$$(id -u)" = 0 ] || exit 0; \
	command -v debootstrap >/dev/null && command -v mcopy >/dev/null && command -v mkfs.vfat >/dev/null && command -v sfdisk >/dev/null && command -v nft >/dev/null && \
		{ [ -z "$(CI)" ] || command -v sshd >/dev/null; } && exit 0; \
	$(call install,debootstrap dosfstools e2fsprogs fdisk mtools nftables $(if $(CI),openssh-client openssh-server)); true

# With apt-get where that may be used, else with brew where there is one. Debian is asked not to start a server of any.
define install
if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then sudo=; \
	elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then sudo="sudo -n"; \
	elif command -v brew >/dev/null; then brew install --quiet $(1); sudo=no; \
	else sudo=no; fi; \
	if [ "$$sudo" != no ]; then \
		echo "installing $(1) with apt-get"; \
		quiet=/etc/postgresql-common/createcluster.d/fedmq-tests.conf; \
		$$sudo mkdir -p $${quiet%/*}; echo "create_main_cluster = false" | $$sudo tee $$quiet >/dev/null; \
		$$sudo apt-get -qq update </dev/null >/dev/null 2>&1; \
		$$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq install --yes --no-install-recommends $(1) </dev/null >/dev/null 2>&1; \
		$$sudo rm -f $$quiet; \
	fi
endef
