# make demo   installs into .venv and runs the main job: prompts, vectors, sums, a report
# make llm    downloads a small pre-trained language model (SmolLM2: 93 MB, Apache-2.0),
#             answers with a ready prompt, tunes prompts on it for two tasks, adds their vectors, prints scores and
#             answers; goes on where it was interrupted
# make test   installs the extras for tests, then runs lint, types and all tests except
#             those marked slow, which make test-all runs as well
# make test-fast  runs the fast tests of the package as its wheel installs it, from another
#             folder: two minutes on two cores, in an environment without TensorFlow
# make fuzz-long  damages inputs of every kind, COUNT times each (default 20000; a kind that
#             needs JAX takes an hour or two); SEED=1 for other damage, KIND="npz" for the
#             kinds with that in their names, FIRST=5000 to continue where it was stopped
# make t5x-test  runs tests/t5x under real T5X and skips none; T5X=folder is where T5X is,
#             if it is not installed
# make t5x-check  runs the documents' T5X commands as printed, and writes docs/t5x-check.md
# make kill-check  kills every job that writes, 20 times each, and checks what it leaves
# make clean  removes the environment and what demo and test made
#
# PYTHON=python3.12  chooses the interpreter (3.11 or newer); by default the newest of
#             python3.13, python3.12 and python3.11 that runs
# EXTRAS=cuda13      more of pip's extras for any target: cuda13, cuda12 or tpu for this
#             machine's accelerator (docs/installing.md)
# VENV=folder        where the environment is (default .venv)
# OUT=folder         where the demo writes (default demo_out)
# LLM_OUT=folder     where make llm writes (default llm_out)
# ARGS=...           more flags for the demo, such as --gin.OVERWRITE=True, or for the
#                    tuning of make llm, such as --gin.TRAIN_STEPS=150
# TESTS=tests/data   runs a part of the tests

# Prints the version of a Python; fails if it is too old or cannot make environments, so
# that it is passed over: pyenv's command may only say that its version is not selected,
# and Debian's Python comes without venv.
PROBE := import sys; print("%d.%d" % sys.version_info[:2]); \
  assert sys.version_info >= (3, 11); import ensurepip
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11; do \
  $$python -c '$(PROBE)' >/dev/null 2>&1 && { echo $$python; exit; }; done; echo python3)
VENV ?= .venv
OUT ?= demo_out
LLM_OUT ?= llm_out
TESTS ?= tests
EXTRAS ?=
JOBS ?= auto
COUNT ?= 20000
SEED ?= 0
FIRST ?= 0
KIND ?=
BIN := $(VENV)/bin/python
# For recipes: `fail MESSAGE` prints it in one line and ends make with exit code 2;
# `version PYTHON` prints the version of a suitable one, or fails and says what it lacks.
SHELL_FUNCTIONS := fail() { echo "error: $$*" >&2; exit 2; }; \
  version() { \
    found=$$("$$1" -c '$(PROBE)' 2>/dev/null) && echo "$$found" || case "$$found" in \
    3.1[1-9]) fail "'$$1' (Python $$found) makes no environments." \
      "On Debian: apt-get install python$$found-venv" ;; \
    [0-9]*) fail "'$$1' is Python $$found, and tpv_jax needs 3.11 or newer." \
      "Name one that you have: make PYTHON=/path/to/python3.12" ;; \
    *) fail "'$$1' does not run, and tpv_jax needs Python 3.11 or newer." \
      "Name one that you have: make PYTHON=/path/to/python3.12" ;; \
    esac; }
# The extras of pip for a target, NEEDS, and for this machine, EXTRAS. Each choice of
# EXTRAS has its own mark in the environment, .installed-llm+cuda13, so that a new one is
# installed there.
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
COMMA := ,
joined = $(subst $(SPACE),$(COMMA),$(strip $(1)))
WANTED = $(call joined,$(NEEDS) $(subst $(COMMA),$(SPACE),$(EXTRAS)))
MARK := $(if $(EXTRAS),+$(call joined,$(EXTRAS)))
# Installs pip first, if a killed make has left an environment without it.
INSTALL = @$(SHELL_FUNCTIONS); \
  "$(BIN)" -m pip --version >/dev/null 2>&1 || "$(BIN)" -m ensurepip; \
  "$(BIN)" -m pip install --quiet --upgrade pip && \
  "$(BIN)" -m pip install -e '.$(if $(WANTED),[$(WANTED)])' || \
  fail "pip could not install tpv_jax into" "$(VENV); above it says why. Another Python may do: make PYTHON=python3.12 VENV=.venv-3.12"

.PHONY: demo llm test test-all test-fast lint fuzz-long t5x-test t5x-check kill-check clean help same-python
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed$(MARK)
	@echo "== tuning prompts, making vectors, measuring sums; report in $(OUT)/report.md"
	"$(BIN)" -m tpv_jax study --gin_file=gin_configs/runs/demo.gin --gin.OUTPUT_DIR="'$(OUT)'" $(ARGS)

TPV = "$(BIN)" -m tpv_jax
ENGLISH := --gin_file=gin_configs/tasks/english.gin

llm: $(VENV)/.installed-llm$(MARK)
	@echo "== fetching the model"
	$(TPV) fetch smollm2
	@echo "== answering examples/films.csv with a ready prompt, tuned on film reviews (SST-2)"
	$(TPV) prompts unpack sst2-0 -o "$(LLM_OUT)/ready"
	$(TPV) infer --prompt "$(LLM_OUT)/ready/runs/sst2-0" --input examples/films.csv
	@echo "== tuning two prompts at once: the sentiment of reviews, the topic of sentences"
	$(TPV) bank --gin_file=gin_configs/runs/bank_llm.gin $(ENGLISH) \
	  --gin.TRAIN_STEPS=50 --gin.BATCH_SIZE=8 --gin.EVAL_PERIOD=25 \
	  --gin.OUTPUT_DIR="'$(LLM_OUT)'" $(ARGS)
	@echo "== subtracting the initial prompt from each, and adding the two vectors"
	$(TPV) diff "$(LLM_OUT)/sentiment-0" -o "$(LLM_OUT)/sentiment.safetensors" --overwrite
	$(TPV) diff "$(LLM_OUT)/topic-0" -o "$(LLM_OUT)/topic.safetensors" --overwrite
	$(TPV) sum "$(LLM_OUT)/sentiment.safetensors" "$(LLM_OUT)/topic.safetensors" \
	  -o "$(LLM_OUT)/both.safetensors" --overwrite
	@echo "== scoring on 60 test rows of each task: the untuned prompt, two tuned ones, then the sum"
	$(TPV) eval --gin_file=gin_configs/runs/eval_llm.gin $(ENGLISH) \
	  --gin.PROMPT_PATH="['$(LLM_OUT)/topic-0/initial_prompt.safetensors', \
	  '$(LLM_OUT)/sentiment-0', '$(LLM_OUT)/topic-0']" \
	  --gin.VECTOR="'$(LLM_OUT)/both.safetensors'" --gin.INITIAL="'$(LLM_OUT)/topic-0'" \
	  --gin.OUTPUT="'$(LLM_OUT)/scores.json'" --gin.OVERWRITE=True
	@echo "== answering the lines of examples/reviews.txt with the prompt for sentiment"
	$(TPV) infer --gin_file=gin_configs/runs/infer_llm.gin \
	  --gin.PROMPT_PATH="'$(LLM_OUT)/sentiment-0'" --gin.OVERWRITE=True \
	  --gin.INPUT_FILE="'examples/reviews.txt'" --gin.OUTPUT="'$(LLM_OUT)/answers.jsonl'"
	@cat "$(LLM_OUT)/answers.jsonl"

test: lint
	@echo "== tests"
	JAX_PLATFORMS=cpu "$(BIN)" -m pytest -n $(JOBS) --dist worksteal --durations=20 \
	  -m "not slow" $(TESTS)

test-all: lint
	@echo "== tests, the slow ones too"
	JAX_PLATFORMS=cpu "$(BIN)" -m pytest -n $(JOBS) --dist worksteal $(TESTS)

test-fast: $(VENV)/.installed-fast$(MARK)
	@echo "== fast tests, of the built wheel"
	"$(BIN)" tests/fast.py -n $(JOBS) --dist worksteal

# The hooks of .pre-commit-config.yaml run the same.
lint: $(VENV)/.installed-test$(MARK)
	@echo "== lint and types"
	"$(BIN)" -m ruff check .
	"$(BIN)" -m ruff format --check .
	"$(BIN)" -m mypy

fuzz-long: $(VENV)/.installed-test$(MARK)
	@echo "== $(COUNT) mutations of each kind, seed $(SEED); faults are kept in fuzz_out/"
	PYTHONPATH=tests nice -n 10 "$(BIN)" -m fuzz --count "$(COUNT)" --seed "$(SEED)" \
	  --first "$(FIRST)" $(if $(KIND),"$(KIND)")

WITH_T5X = JAX_PLATFORMS=cpu PYTHONPATH="$(if $(T5X),$$(realpath "$(T5X)"))"

t5x-test: $(VENV)/.installed-test$(MARK)
	$(WITH_T5X) "$(BIN)" -m pytest --no-skips tests/t5x

t5x-check: $(VENV)/.installed-test$(MARK)
	$(WITH_T5X) "$(BIN)" tests/t5x_check.py --output docs/t5x-check.md

kill-check: $(VENV)/.installed-test$(MARK)
	"$(BIN)" tests/kill_check.py $(ARGS)

clean:
	@[ ! -e "$(VENV)/pyvenv.cfg" ] || rm -rf "$(VENV)"
	rm -rf demo_out llm_out build tpv_jax.egg-info

$(BIN):
	@$(SHELL_FUNCTIONS); python="$(PYTHON)"; version=$$(version "$$python") || exit 2; \
	echo "== making the virtual environment $(VENV) with $$python (Python $$version)"; \
	before=$$(ls -A "$(VENV)" 2>/dev/null); \
	"$$python" -m venv "$(VENV)" || { [ -n "$$before" ] || rm -rf "$(VENV)"; \
	  fail "Python could not make an environment in $(VENV); above it says why"; }

# An environment is kept, whichever Python made it, unless another one is asked for.
same-python: $(BIN)
ifneq ($(origin PYTHON),file)
	@$(SHELL_FUNCTIONS); there=$$(version "$(BIN)") && asked=$$(version "$(PYTHON)") || exit 2; \
	[ "$$there" = "$$asked" ] || fail "$(VENV) holds Python $$there, and '$(PYTHON)' is" \
	  "$$asked. To keep both: make PYTHON=$(PYTHON) VENV=.venv-$$asked"
endif

$(VENV)/.installed$(MARK): $(BIN) setup.py pyproject.toml | same-python
	@echo "== installing tpv_jax (JAX and friends, about 700 MB on disk)"
	$(INSTALL)
	@touch "$@"

$(VENV)/.installed-llm$(MARK): NEEDS := llm
$(VENV)/.installed-llm$(MARK): $(BIN) setup.py pyproject.toml | same-python
	@echo "== installing tpv_jax with its extra for language models"
	$(INSTALL)
	@touch "$@" "$(VENV)/.installed$(MARK)"

$(VENV)/.installed-fast$(MARK): NEEDS := test gcs
$(VENV)/.installed-fast$(MARK): $(BIN) setup.py pyproject.toml | same-python
	@echo "== installing tpv_jax with its test extra"
	$(INSTALL)
	@touch "$@" "$(VENV)/.installed$(MARK)"

$(VENV)/.installed-test$(MARK): NEEDS := test data hf
$(VENV)/.installed-test$(MARK): $(BIN) setup.py pyproject.toml | same-python
	@echo "== installing tpv_jax with its test and data extras (TensorFlow too, about 3 GB)"
	$(INSTALL)
	@touch "$@" "$(VENV)/.installed$(MARK)" "$(VENV)/.installed-fast$(MARK)"
