# The commands of the project; each is a line or two of ordinary tools in the project's own virtual environment, .venv.
# `make demo` and `make test` work on a fresh clone with Python 3.10-3.13, a C++17 compiler and, optionally, nvcc.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NATIVE := $(shell find csrc cuda cmake -type f 2>/dev/null) CMakeLists.txt pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: always help demo test test-sanitized test-threads coverage fuzz check-arm lint format bench wheel gpu-check clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# Python files are used in place, but an install knows them by name: this list is newer than it when one came, moved or went.
.venv/modules: always
	@mkdir -p .venv
	@find dance -name '*.py' | sort | cmp -s - $@ || find dance -name '*.py' | sort > $@

# The package in .venv, rebuilt when a native source changed. Without build isolation, so that rebuilds are incremental and
# clang-tidy finds pybind11's headers.
.venv/installed: $(NATIVE) .venv/modules
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0 scikit-build-core pybind11 cmake ninja
	@echo "building dance: a minute or two"
	$(PIP) --no-build-isolation -e '.[gan,dev]'
	@touch $@

demo: .venv/installed  ## train a GAN over five processes and compressed gossip; pictures in runs/demo/
	$(BIN)/dance train --layout model-parallel --rounds 3000 --d-nodes 4 --d-learning-rate 2e-3 --out runs/demo

test: .venv/installed  ## run the tests
	$(BIN)/python -m pytest

# The tests that reach the core, but for: memory, whose limits on it sanitizers exceed; fuzz and emulated_warp, which build the core with
# sanitizers of their own; and those of collectives, gossip, DDP and training, whose many processes of torch make the same calls of the
# core as exchange_processes does, and would take an hour. Tools of .venv come first.
CORE_TESTS := $(patsubst %,tests/test_%.py,arguments arrays bench bits calibrate choco_gossip codecs exchange exchange_processes feedback \
  feedback_momentum feedback_state frame_mutation golden native nonfinite operators packet packet_sparse reduce)
TOOLS := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON=$(BIN)/python

test-sanitized: .venv/installed  ## the tests of the core under AddressSanitizer and UndefinedBehaviorSanitizer
	$(TOOLS) tests/sanitize/run.sh $(CORE_TESTS)

test-threads: .venv/installed  ## the thread pool under ThreadSanitizer
	$(TOOLS) tests/sanitize/threads.sh

coverage: .venv/installed  ## line coverage of the core, by file; fails below 95 % in the frame and the decoders
	$(PIP) gcovr==8.8
	$(TOOLS) tests/sanitize/coverage.sh $(CORE_TESTS)

SECONDS := 60
fuzz: .venv/installed  ## search for bytes that crash the core: SECONDS (60) for each target, with clang's libFuzzer
	$(TOOLS) tests/fuzz/run.sh $(SECONDS)

check-arm: .venv/installed  ## the bits of aarch64 under qemu-user equal those of this machine
	$(TOOLS) tests/arm/check.sh

lint: .venv/installed  ## check formats, types, layers and native code
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'cuda/*' 'tests/*.h' 'tests/*.cpp')
	git ls-files 'csrc/*.cpp' | xargs -P 2 -n 3 $(BIN)/clang-tidy --quiet -p $$(ls -d build/cp*/ | head -1) \
	  --extra-arg=-isystem$$($(BIN)/python -c 'import pybind11; print(pybind11.get_include())')

format:  ## rewrite sources in the project's format
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'cuda/*' 'tests/*.h' 'tests/*.cpp')

bench: .venv/installed  ## measure the kernels on this machine
	$(BIN)/dance bench

wheel: .venv/installed  ## a wheel for every CUDA architecture, checked beside nothing but NumPy
	bash benchmarks/wheel.sh

gpu-check:  ## build, test, sanitize and measure on a machine with a GPU
	bash benchmarks/gpu_check.sh

clean:  ## remove everything that was built
	rm -rf .venv build dist
