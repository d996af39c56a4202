# make demo, make test: everything from a bare clone. make help lists the rest.
PYTHON ?= python3
STACK ?= onedl
VENV ?= $(if $(filter onedl,$(STACK)),.venv,.venv-$(STACK))
ARGS ?=
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow bench lint clean

help:
	@echo 'make install   the environment: torch, mmcv with its compiled ops, mmdet, the plugin'
	@echo 'make demo      install, then a small data set, a training run, its evaluation and pictures'
	@echo 'make test      install, then the test suite; one part of it: make test ARGS="-k loss"'
	@echo 'make test-slow the tests that take minutes each, the demo among them'
	@echo 'make bench     all benchmarks, some minutes on a machine that does nothing else; writes docs/benchmarks.md'
	@echo 'make lint      ruff and mypy, of the environment or of PATH'
	@echo 'make clean     remove .venv, .venv-openmmlab and work_dirs; the compiled ops stay in the cache'
	@echo
	@echo 'PYTHON=python3.11   the Python (3.10 to 3.13, with openmmlab 3.12) that a new environment is made from'
	@echo 'STACK=openmmlab     the packages of January 2024 instead of the maintained ones, in .venv-openmmlab'
	@echo 'VENV=/path/to/env   an environment that is there already, venv or conda; its torch is kept'
	@echo 'JOBS=4              test processes side by side (2 where nothing is said)'
	@echo 'ARGS="..."          more arguments for tools/demo.py, pytest, tools/analysis_tools/benchmark.py or ruff'

install:
	@command -v $(PYTHON) >/dev/null || \
		{ echo '$(PYTHON) is missing: install Python 3.10 to 3.13, or name one with PYTHON=' >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py --stack $(STACK) --env $(VENV)

demo: install
	$(VENV)/bin/python tools/demo.py $(ARGS)

# Waiting threads of one process would take the core of the other.
test: export OMP_WAIT_POLICY = PASSIVE
test: install
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-slow: install
	$(VENV)/bin/python -m pytest -m slow $(ARGS)

bench: install
	$(VENV)/bin/python tools/analysis_tools/benchmark.py $(ARGS)

lint: export PATH := $(abspath $(VENV)/bin):$(PATH)
lint:
	@for tool in ruff mypy; do command -v $$tool >/dev/null || \
		{ echo "$$tool is missing: install it with $(VENV)/bin/pip install ruff mypy" >&2; exit 1; }; done
	ruff check $(ARGS) .
	ruff format --check .
	mypy

clean:
	rm -rf .venv .venv-openmmlab work_dirs
