# Everything a person or CI runs. `make` alone lists it.
#
# Each step sets up what it stands on and does nothing when that is there, so every target works in a clean clone and,
# after its first run, without a network.

PYTHON ?= python3
CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
CLIENTS := server/tests/clients
# What `make soak` plays.
SCENARIOS ?= overload-11x overload-retries noisy-neighbour classes disconnects spike ramp
# What `make bench` runs, once the things it measures are built.
BENCH ?= $(TARGET_DIR)/release/balm-loadtest bench

# Nothing is inherited from a virtual environment that happens to be active.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
# A venv in a checkout should not litter it with byte code.
export PYTHONDONTWRITEBYTECODE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests and the makers of models use ONNX Runtime, too (decision 18).
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help ort ort-gpu build serve drill test test-overload test-faults test-loom injections soak mutants check bench models models-check models-large venv fmt clean distclean

# A virtual environment holds what one requirements file pins. The stamp carries that file's digest, so an edit makes a
# new environment and an unchanged file asks no registry.
stamp = $(1)/.ready-$(shell sha256sum $(2) 2>/dev/null | cut -c1-16)
CLIENTS_STAMP := $(call stamp,.venv,$(CLIENTS)/requirements.txt)
MODELS_STAMP := $(call stamp,.venv-models,models/requirements.txt)
LARGE_STAMP := $(call stamp,.venv-large,models/requirements-large.txt)

define make_venv
	@echo "making $(1) from $(2)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11; say PYTHON=... with a newer one" >&2; exit 1; }
	@rm -rf $(1)
	@$(PYTHON) -m venv $(1) \
	  || { echo "$(PYTHON) cannot make virtual environments (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(1)/bin/python -m pip install --quiet --requirement $(2)
	@touch $@
endef

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

ort: ## bring the pinned ONNX Runtime library into .ort/
	@$(PYTHON) inference/onnxruntime/fetch.py

ort-gpu: ## bring its GPU build into .ort-gpu/ (WITH_CUDA=1: CUDA and cuDNN too, 2 GB)
	@$(PYTHON) inference/onnxruntime/fetch.py --gpu $(if $(WITH_CUDA),--with-cuda)

build: ort ## library and release binaries
	$(CARGO) build --release --workspace --locked

serve: build ## serve models/ on 127.0.0.1: 8000 HTTP, 8002 management
	$(TARGET_DIR)/release/balm serve --models models $(ARGS)

test: ort venv ## every test: Rust, then real clients against the real binary
	$(CARGO) test --workspace --locked
	$(CARGO) build --workspace --locked
	BALM_BIN=$(abspath $(TARGET_DIR))/debug/balm .venv/bin/python -m pytest -p no:cacheprovider $(CLIENTS)

test-overload: ort venv ## eleven times the load, noisy neighbours, classes: scenarios in a fifth of their time
	$(CARGO) build --workspace --locked
	BALM_BIN=$(abspath $(TARGET_DIR))/debug/balm .venv/bin/python -m pytest -p no:cacheprovider -m overload $(CLIENTS)

test-faults: ort venv ## crashes, hangs and stops of real processes: minutes
	$(CARGO) build --workspace --locked
	BALM_BIN=$(abspath $(TARGET_DIR))/debug/balm .venv/bin/python -m pytest -p no:cacheprovider -m faults $(CLIENTS)

injections: ort venv ## hundreds of faults by kind and seed, under load (ARGS="--seeds 1"; BALM_INJECTION=kind:seed does one again)
	$(CARGO) build --workspace --locked
	@cd $(CLIENTS) && BALM_BIN=$(abspath $(TARGET_DIR))/debug/balm $(CURDIR)/.venv/bin/python -m injections \
	  --page $(CURDIR)/docs/reports/injections.md $(ARGS)

drill: build ## rehearse faults on a private copy of the server that serves models/ (a minute; ARGS="--html report.html")
	$(TARGET_DIR)/release/balm drill --models models $(ARGS)

soak: build models-large ## the scenarios at full length on MiniLM, with the bounds that are promised (a quarter of an hour)
	@for scenario in $(SCENARIOS); do \
	  $(TARGET_DIR)/release/balm-loadtest run loadtest/scenarios/$$scenario.toml --serve $(TARGET_DIR)/release/balm \
	    --models .models --config loadtest/balm.toml --json $(TARGET_DIR)/soak-$$scenario.json \
	    --html $(TARGET_DIR)/soak-$$scenario.html $(ARGS) || failed="$$failed $$scenario"; \
	done; [ -z "$$failed" ] || { echo "not as promised:$$failed" >&2; exit 1; }

test-loom: ## the gate of admission under every schedule of its threads
	$(CARGO) test -p balm-inference --features loom --lib --locked admission::schedules

mutants: ## judgement with one thing wrong at a time: each must fail a test (a quarter of an hour; wants cargo-mutants 27)
	PROPTEST_CASES=64 $(CARGO) mutants -p balm-probes -j1 --timeout 20 --output $(TARGET_DIR)/mutants

check: ## formatting, clippy and documentation, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --workspace --locked

bench: build models-large ## predictions per second beside ONNX Runtime alone (ARGS=--quick: a minute or two)
	$(CARGO) build --release --workspace --locked --example ort_alone
	$(BENCH) $(ARGS)

models: $(MODELS_STAMP) ## retrain models/ (the committed files change only if the recipe did)
	.venv-models/bin/python models/train.py

models-check: $(MODELS_STAMP) ## prove that the committed models can be remade
	.venv-models/bin/python models/train.py --check

models-large: $(LARGE_STAMP) ## make .models/: MiniLM and ResNet-50, 190 MB
	@.venv-large/bin/python models/large.py

venv: $(CLIENTS_STAMP) ## the Python environment of the client tests, in .venv/

$(CLIENTS_STAMP):
	$(call make_venv,.venv,$(CLIENTS)/requirements.txt)

$(MODELS_STAMP):
	$(call make_venv,.venv-models,models/requirements.txt)

$(LARGE_STAMP):
	$(call make_venv,.venv-large,models/requirements-large.txt)

fmt: ## format the Rust code
	$(CARGO) fmt --all

clean: ## remove what was built
	$(CARGO) clean

distclean: clean ## remove what was fetched, too: the next run needs a network
	rm -rf .ort .ort-gpu .models .venv .venv-models .venv-large
