# make run and make test do all the set-up themselves, in .venv; everything else builds on them.

PYTHON ?= python3
VENV   ?= .venv
# The torch to install: `torch==2.13.0` is the small CPU build where the index has one. With a GPU: make run TORCH=torch
TORCH  ?= torch==2.13.0
ARGS   ?=

# Whether to build the CUDA kernels: the CPU build of torch has no use for them, and nvcc takes a minute.
CUDA   ?= $(if $(filter torch==2.13.0,$(TORCH)),0,auto)
export LAYERCOLLAPSE_CUDA ?= $(CUDA)

BIN := $(VENV)/bin
# --no-compile: compiling all of torch to bytecode takes half a minute, and Python compiles what it imports by itself.
INSTALL := $(BIN)/pip install --quiet --no-compile
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Threads that wait by spinning made training 5 times slower on 2 cores that had other work (52 s an epoch, not 9 s).
export OMP_WAIT_POLICY ?= passive

# A process per core, each with one thread: the tests have networks too small for two. Eight at most, of 0.5 GB each.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal
test test-long test-isa: export OMP_NUM_THREADS ?= 1

.PHONY: help run test test-long test-isa lint docs bench sanitize clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

run: $(VENV)/.run  ## install, then train, prune and collapse a ResNet-18 on 5,000 MNIST digits (ARGS="--steps 8 ...")
	$(BIN)/layercollapse run $(ARGS)

test: $(VENV)/.dev  ## install with the test tools, then run the tests
	$(PYTEST) $(ARGS)

test-long: $(VENV)/.dev  ## the tests that take longer
	$(PYTEST) -m long $(ARGS)

test-isa: $(VENV)/.dev  ## the tests three times, with the instructions and the rounding errors of other processors
	ATEN_CPU_CAPABILITY=default $(PYTEST) $(ARGS)
	ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) $(ARGS)
	PYTHONPATH=tests/helpers $(PYTEST) -p exact_sums $(ARGS)

lint: $(VENV)/.dev  ## ruff, mypy, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## the documentation as a site, in build/site; what is not right in it is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## time the ops on this machine
	$(BIN)/layercollapse bench $(ARGS)

sanitize:        ## the C++ core's own tests under AddressSanitizer, UBSan and ThreadSanitizer (needs only g++)
	csrc/tests/run.sh address
	csrc/tests/run.sh thread

clean:           ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find layercollapse csrc/python -name '*.so' -delete

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

SOURCES := pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.* csrc/python/include/*)

$(VENV)/.run: $(BIN)/python $(SOURCES)
	$(INSTALL) "$(TORCH)" --editable '.[run]'
	touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	$(INSTALL) "$(TORCH)" --editable '.[dev]'
	$(INSTALL) --no-deps 'onnx2torch>=1.5' # its torchvision is built for CUDA, and does not import beside a torch for CPUs
	touch $@ $(VENV)/.run
