# The developer's whole loop. Every target makes .venv when it is missing, with the versions that
# constraints.txt pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/python -m pip install -q
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find cmake csrc pyinv export -type f -not -name '*.pyc' 2>/dev/null)
CPP := $(shell find csrc benchmarks examples tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)

# One worker per core, and one thread in each: tests/conftest.py.
PYTEST := PATH="$(abspath $(BIN)):$$PATH" PYINV_REQUIRE_TORCHSCRIPT=1 OMP_NUM_THREADS=1 \
  $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

# What clang-tidy reads: each source of the library, as CMake compiles it without CUDA and torch.
CPU_ONLY := -DPYINV_CUDA=OFF -DPYINV_TORCH=OFF

.PHONY: demo test test-all lint format bench docs gpu-check clean

demo: $(VENV)/installed-demo
	$(BIN)/pyinv demo

test: $(VENV)/installed-test
	$(PYTEST) -m "not slow"

# With what takes long: wheels, compilers' warnings, sanitizers, the emulated device.
test-all: $(VENV)/installed-test
	$(PYTEST) --cov

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/cmake -S . -B build/tidy -DCMAKE_EXPORT_COMPILE_COMMANDS=ON $(CPU_ONLY) --log-level=WARNING
	$(BIN)/python $(BIN)/run-clang-tidy.py -quiet -p build/tidy -clang-tidy-binary $(BIN)/clang-tidy

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

# The pip that comes with Python 3.13 and older knows no dependency groups. TorchScript is built for
# the torch that is there: so torch comes first, and no isolated build.
$(VENV)/installed-test: $(BIN)/python $(SOURCES)
	$(PIP) pip scikit-build-core pybind11 cmake ninja torch
	$(PIP) --no-build-isolation '.[all]' --group dev
	touch $@ $(VENV)/installed-demo

$(VENV)/installed-docs: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) pip
	$(PIP) --group docs
	touch $@
