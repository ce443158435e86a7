# make demo   installs into .venv and runs the main job: prompts, vectors, sums, a report
# make test   installs with the extras for tests, then lint, types and all tests
#             but those marked slow, which make test-all runs, too
# make t5x-check  trains, kills, resumes, evaluates and infers under real T5X, and writes
#             docs/t5x-check.md; T5X=folder says where T5X is if it is not installed
# make clean  removes the environment and what the two made
#
# PYTHON=python3.12  chooses the interpreter (3.11 or newer)
# OUT=folder         where the demo writes (default demo_out)
# ARGS=...           more flags for the demo, such as --gin.OVERWRITE=True
# TESTS=tests/data   runs a part of the tests

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo_out
TESTS ?= tests
JOBS ?= auto
BIN := $(VENV)/bin/python

.PHONY: demo test test-all lint t5x-check clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile | head -11

demo: $(VENV)/.installed
	@echo "== tuning prompts, making vectors, measuring sums; report in $(OUT)/report.md"
	"$(BIN)" -m tpv_jax.study --gin_file=gin_configs/runs/demo.gin --gin.OUTPUT_DIR="'$(OUT)'" $(ARGS)

test: lint
	@echo "== tests"
	JAX_PLATFORMS=cpu "$(BIN)" -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(TESTS)

test-all: lint
	@echo "== tests, the slow ones too"
	JAX_PLATFORMS=cpu "$(BIN)" -m pytest -n $(JOBS) --dist worksteal $(TESTS)

lint: $(VENV)/.installed-test
	@echo "== lint and types"
	"$(BIN)" -m ruff check .
	"$(BIN)" -m ruff format --check .
	"$(BIN)" -m mypy

t5x-check: $(VENV)/.installed-test
	"$(BIN)" -m tpv_jax.t5x.check --t5x "$(T5X)" --output docs/t5x-check.md

clean:
	rm -rf "$(VENV)" demo_out build tpv_jax.egg-info

$(BIN):
	@"$(PYTHON)" -c 'import sys; assert sys.version_info >= (3, 11), sys.version' || \
	  { echo "tpv_jax needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 2; }
	@echo "== making the virtual environment $(VENV)"
	@"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; \
	  echo "Making it failed. On Debian: apt-get install python3-venv"; exit 2; }
	"$(BIN)" -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(BIN) setup.py pyproject.toml
	@echo "== installing tpv_jax (JAX and friends, about 700 MB on disk)"
	"$(BIN)" -m pip install -e .
	@touch "$@"

$(VENV)/.installed-test: $(BIN) setup.py pyproject.toml
	@echo "== installing tpv_jax with its test and data extras (TensorFlow too, about 3 GB)"
	"$(BIN)" -m pip install -e '.[test,data,hf]'
	@touch "$@" "$(VENV)/.installed"
