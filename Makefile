# The first two set up what they need: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo drill test test-cluster test-all lint bench bench-data

help:
	@echo "make demo      train LeNet-5 and ResNet-18 on handwritten digits, compare them"
	@echo "make drill     hurt a run 200 times, compare it with one left alone; about 10 minutes"
	@echo "make test      the test suite, under 5 minutes"
	@echo "make test-cluster  jobs on a real Slurm of three nodes on this machine; needs root"
	@echo "make test-all  the slow tests too"
	@echo "make lint      formatting, lint, types, import contracts"
	@echo "make bench     measure against peers (tests/bench)"
	@echo "make bench-data IMAGES=TAR_OR_DIR  loading of real images beside what others use"
	@echo "make setup     only the virtual environment in $(VENV)"

setup: $(BIN)/.ready

$(BIN)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/tahoe shard digits datasets/digits
	$(BIN)/tahoe train experiment=demo_lenet5 if_finished=skip
	$(BIN)/tahoe train experiment=demo_resnet18 if_finished=skip
	$(BIN)/tahoe compare runs/demo-lenet5_1998 runs/demo-resnet18
	$(BIN)/tahoe report data=digits
	@echo "Curves and parameters, in MLflow:  $(BIN)/tahoe ui"

drill: setup
	TAHOE_DRILL_FAULTS=200 $(BIN)/python -m pytest tests/drill -k every_kind --capture no

test: setup
	$(BIN)/python -m pytest -m "not slow and not cluster" --numprocesses 2 --dist worksteal

test-cluster: setup
	$(BIN)/python -m pytest tests/cluster --numprocesses 2 --dist worksteal

test-all: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup
	$(BIN)/python tests/bench/reading.py
	$(BIN)/python tests/bench/planning.py
	$(BIN)/python tests/bench/writing.py
	$(BIN)/python tests/bench/remote.py
	$(BIN)/python tests/bench/saving.py
	$(BIN)/python tests/bench/optimizer_memory.py
	$(BIN)/python tests/bench/logging_calls.py
	$(BIN)/python tests/bench/startup.py
	$(BIN)/python tests/bench/shipping.py
	$(BIN)/python tests/bench/many_runs.py

bench-data: setup
	$(BIN)/python tests/bench/loading.py $(IMAGES)
