# Every target sets up .venv itself; a second call reuses it.
# PYTHON may name any Python >= 3.10:  make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
RUN_READY := $(VENV)/.run-ready
DEV_READY := $(VENV)/.dev-ready

# a process per core, four at most; each computes in one thread (tests/conftest.py)
PYTEST := $(VENV)/bin/pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal --cov --cov-report=term

.PHONY: demo test test-all lint bench clean

demo: $(RUN_READY)
	$(VENV)/bin/python main.py --dataset synthblood --weights none --epochs 4 --batch_size 64

test: lint
	$(PYTEST)

# with the slow ones: real processes that are killed, README's commands
test-all: lint
	$(PYTEST) -m ""

lint: $(DEV_READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(DEV_READY)
	$(VENV)/bin/python -m benchmarks.speed

clean:
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $$($(PYTHON) --version) is too old: Python 3.10 or newer is needed. Name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_READY): requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --requirement requirements.txt
	@touch $@

$(DEV_READY): requirements-dev.txt requirements-extra.txt $(RUN_READY)
	$(VENV)/bin/pip install --quiet --requirement requirements-dev.txt
	@touch $@
