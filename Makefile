# Every target installs what it needs: `make demo` what users need, `make test` the tools of developers too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

# TORCH=cpu installs torch without CUDA, which is several gigabytes smaller.
TORCH ?= cuda
INDEX_cpu := --extra-index-url https://download.pytorch.org/whl/cpu
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt $(INDEX_$(TORCH))

# For `make test-gpu` on a machine whose Python has torch and no network: the version that its wheels are for.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/.installed),$(BIN)/python,python3)
GPU_PYTHON_VERSION ?= 3.12
GPU_WHEELS := build/gpu-wheels

.PHONY: gpu-wheels test-gpu
.PHONY: help setup demo pictures drill test test-cluster test-all lint bench bench-data bench-links

help:
	@echo "make demo      train LeNet-5 and ResNet-18 on handwritten digits, compare them"
	@echo "make test      the test suite, under 5 minutes"
	@echo "make test-cluster  jobs on a real Slurm of three nodes on this machine; needs root"
	@echo "make test-all  the slow tests too"
	@echo "make drill     inject 200 faults into a run, compare it with an undisturbed one; about 10 minutes;"
	@echo "               STRATEGY=ddp_zero1 or fsdp2 for another strategy"
	@echo "make test-gpu  on a machine with a GPU: bits, speed, memory, in nine minutes; make gpu-wheels fetches what it needs"
	@echo "make lint      formatting, lint, types, import contracts"
	@echo "make bench     measure beside peers (tests/benchmarks)"
	@echo "make bench-data IMAGES=TAR_OR_DIR  loading of real images beside what others use"
	@echo "make bench-links  ways to train over slow links, on hosts of this machine; needs root"
	@echo "make pictures  the pictures of the README, from the demo's runs; needs chromium"
	@echo "make setup     only the virtual environment in $(VENV)"
	@echo "TORCH=cpu      with any of these: install torch without CUDA"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Tahoe into $(VENV) with torch ($(TORCH)): 6.4 GB of disk,"
	@echo "4.1 GB of which are CUDA's libraries (TORCH=cpu leaves them out), and some minutes."
	$(INSTALL) --editable .
	@touch $@

$(BIN)/.ready: $(BIN)/.installed
	$(INSTALL) --quiet --editable '.[dev]'
	@touch $@

setup: $(BIN)/.ready

demo: $(BIN)/.installed
	$(BIN)/tahoe shard digits datasets/digits
	$(BIN)/tahoe train experiment=demo_lenet5 if_finished=skip
	$(BIN)/tahoe train experiment=demo_resnet18 if_finished=skip
	$(BIN)/tahoe compare runs/demo-lenet5_1998 runs/demo-resnet18 --plot curves.png
	$(BIN)/tahoe report data=digits
	@echo
	@echo "LeNet-5's paper reports 0.95 % errors on MNIST's digits; these are other, smaller ones:"
	$(BIN)/tahoe models lenet5
	@echo "Learning curves:      curves.png"
	@echo "Report:               report/report.html"
	@echo "Both runs in MLflow:  $(BIN)/tahoe ui runs/demo-lenet5_1998 runs/demo-resnet18"

pictures: demo
	$(BIN)/python .github/make_pictures.py

STRATEGY ?= ddp
drill: setup
	TAHOE_DRILL_FAULTS=200 TAHOE_DRILL_STRATEGY=$(STRATEGY) $(BIN)/python -m pytest tests/drill -k every_kind --capture no

test: setup
	$(BIN)/python -m pytest -m "not slow and not cluster" --numprocesses 2 --dist worksteal

test-cluster: setup
	$(BIN)/python -m pytest tests/cluster --numprocesses 2 --dist worksteal

test-all: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

gpu-wheels: | $(BIN)/python
	rm -rf $(GPU_WHEELS)
	$(BIN)/python -m pip wheel --no-deps --constraint constraints.txt --wheel-dir $(GPU_WHEELS) antlr4-python3-runtime
	$(BIN)/python -m pip download --no-deps --only-binary :all: --python-version $(GPU_PYTHON_VERSION) \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--constraint constraints.txt --requirement tests/gpu/requirements.txt --dest $(GPU_WHEELS)

test-gpu:
	if [ -d $(GPU_WHEELS) ]; then $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --upgrade \
		--target build/gpu-packages $(GPU_WHEELS)/*.whl; fi
	PYTHONPATH=.:build/gpu-packages $(GPU_PYTHON) tests/gpu/check.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup
	$(BIN)/python tests/benchmarks/reading.py
	$(BIN)/python tests/benchmarks/small_images.py
	$(BIN)/python tests/benchmarks/planning.py
	$(BIN)/python tests/benchmarks/scale.py
	$(BIN)/python tests/benchmarks/writing.py
	$(BIN)/python tests/benchmarks/remote.py
	$(BIN)/python tests/benchmarks/saving.py
	$(BIN)/python tests/benchmarks/strategy_memory.py
	$(BIN)/python tests/benchmarks/logging_calls.py
	$(BIN)/python tests/benchmarks/startup.py
	$(BIN)/python tests/benchmarks/ending.py
	$(BIN)/python tests/benchmarks/shipping.py
	$(BIN)/python tests/benchmarks/many_runs.py

bench-links: setup
	$(BIN)/python tests/benchmarks/links.py --hosts 2
	$(BIN)/python tests/benchmarks/links.py --hosts 2 --delayed
	$(BIN)/python tests/benchmarks/links.py --hosts 4 --delayed

bench-data: setup
	$(BIN)/python tests/benchmarks/image_time.py $(IMAGES)
	$(BIN)/python tests/benchmarks/loading.py $(IMAGES)
