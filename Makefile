# Targets for development. Every target creates .venv if it is missing, with the versions pinned in
# constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/python -m pip install -q
# The ONNX Runtime that fits the machine.
RUNTIME := $(if $(shell command -v nvidia-smi),cuda,cpu)
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find cmake csrc pyinv export -type f -not -name '*.pyc' 2>/dev/null)
CPP := $(shell find csrc benchmarks examples tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)

# One worker per core, with one thread each: see tests/conftest.py.
PYTEST := PATH="$(abspath $(BIN)):$$PATH" PYINV_REQUIRE_TORCHSCRIPT=1 OMP_NUM_THREADS=1 \
  $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

# For clang-tidy: each source of the library, as CMake compiles it without CUDA and torch.
CPU_ONLY := -DPYINV_CUDA=OFF -DPYINV_TORCH=OFF

.PHONY: demo test test-all test-ray lint format bench docs gpu-check clean

demo: $(VENV)/installed-demo
	$(BIN)/pyinv demo

test: $(VENV)/installed-test
	$(PYTEST) -m "not slow"

# Including slow tests: wheels, compiler warnings, sanitizers, the emulated device.
test-all: $(VENV)/installed-test
	$(PYTEST) --cov

# Ray is too large to come with the rest, so `make test` skips its tests.
test-ray: $(VENV)/installed-test
	$(PIP) 'ray[data]'
	$(PYTEST) tests/ray_data

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

# Writes build/site from the sources, without building pyinv.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Uses the machine's Python, because its PyTorch has CUDA. Options: GPU_CHECK="--data DIR".
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(GPU_CHECK)

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: $(BIN)/python $(SOURCES)
	$(PIP) '.[$(RUNTIME)]'
	touch $@

# The pip of Python 3.13 and older does not support dependency groups. TorchScript is built for the
# installed torch, so torch is installed first and build isolation is off.
$(VENV)/installed-test: $(BIN)/python $(SOURCES)
	$(PIP) pip scikit-build-core pybind11 cmake ninja torch
	$(PIP) --no-build-isolation '.[all,$(RUNTIME)]' --group dev
	touch $@ $(VENV)/installed-demo

$(VENV)/installed-docs: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) pip
	$(PIP) --group docs
	touch $@
