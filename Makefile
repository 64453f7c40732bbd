# The developer's whole loop. Every target makes .venv when it is missing, with the versions that
# constraints.txt pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/python -m pip install -q
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find cmake csrc pyinv export -type f -not -name '*.pyc' 2>/dev/null)
CPP := $(shell find csrc benchmarks examples tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)

.PHONY: demo test lint format bench docs gpu-check clean

demo: $(VENV)/installed-demo
	$(BIN)/pyinv demo

test: $(VENV)/installed-test
	PATH="$(abspath $(BIN)):$$PATH" PYINV_REQUIRE_TORCHSCRIPT=1 $(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/installed-test
	$(BIN)/python benchmarks/loop.py

# Writes build/site. Reads the sources, so pyinv need not be built.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# With the machine's own Python, as its PyTorch is the one with CUDA. GPU_CHECK="--data DIR" and more.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(GPU_CHECK)

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: $(BIN)/python $(SOURCES)
	$(PIP) '.[demo]'
	touch $@

# TorchScript is built for the torch that is there: so torch comes first, and no isolated build.
$(VENV)/installed-test: $(BIN)/python $(SOURCES)
	$(PIP) scikit-build-core pybind11 cmake ninja torch
	$(PIP) --no-build-isolation '.[dev]'
	touch $@ $(VENV)/installed-demo

$(VENV)/installed-docs: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) 'pip>=25.1' # the first with --group
	$(PIP) --group docs
	touch $@
