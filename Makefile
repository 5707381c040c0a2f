# make demo   set up .venv, train a VAE on embedded digits, draw, export a SavedModel
# make test   set up .venv, run the tests on TensorFlow, JAX and PyTorch
# make test-all   the same with the exhaustive ones: further shapes, kinds, kills, machines
# make test-versions   fast tests on PyTorch, RESOLUTION=lowest or highest versions
# make mutants    deliberate mistakes in a copy of kgen, each with the test that catches it
# make serve  a TensorFlow Serving of all that was exported, or how to start one
# make results    the README's tables of numbers, from the recipes' records
# make lint   ruff
# make bench  side-by-side timings (tests/benchmarks)
# make clean  remove what the above made

PYTHON   ?= python3
VENV     ?= .venv
BACKENDS ?= torch tensorflow jax
# Processes that share the test files of a backend.
WORKERS  ?= 2
BIN      := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

# Prepared TensorFlow Datasets beside the checkout are used where there are any.
PREPARED := $(wildcard ../shared/tfds)
ifneq ($(PREPARED),)
export TFDS_DATA_DIR ?= $(abspath $(PREPARED))
endif

.PHONY: demo test test-all test-versions mutants serve results lint bench clean
SHELL := /bin/bash

demo: $(VENV)/.base
	$(BIN)/python recipes/vae_digits.py

# One backend after another. Tests that touch no backend run with the first alone, and so
# do proofs of plain Keras operations, unless all are asked for: test_parity compares the
# backends.
test test-all: $(VENV)/.dev
	@mkdir -p runs; status=0; rest=""; \
	for backend in $(BACKENDS); do \
	  echo "== $$backend"; \
	  KERAS_BACKEND=$$backend $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	    -m "$(SUITE)$$rest" $(TESTS) 2>&1 | tee runs/tests_$$backend.log; \
	  case $${PIPESTATUS[0]} in 0|5) ;; *) status=1 ;; esac; \
	  rest=$(REST); \
	done; \
	for backend in $(BACKENDS); do \
	  sed -nE "s/^(FAILED|ERROR|[0-9]+ (passed|failed|error))/$$backend: &/p" \
	    runs/tests_$$backend.log; \
	done; exit $$status

test: SUITE := not exhaustive
test: REST := " and not once and not portable"
test-all: SUITE := (exhaustive or not exhaustive)
test-all: REST := " and not once"

RESOLUTION ?= lowest
test-versions:
	$(PYTHON) tests/versions.py $(RESOLUTION)

mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants/run.py

serve: $(VENV)/.base
	$(BIN)/python -m kgen.serving serve

results: $(VENV)/.base
	$(BIN)/python recipes/report.py --readme README.md --picture recipes/results/families.png

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_train_step.py
	$(BIN)/python tests/benchmarks/bench_range_checks.py
	$(BIN)/python tests/benchmarks/bench_gated_pixel_cnn.py
	$(BIN)/python tests/benchmarks/bench_pixel_rnn.py
	$(BIN)/python tests/benchmarks/bench_rows.py
	$(BIN)/python tests/benchmarks/bench_sampling.py
	$(BIN)/python tests/benchmarks/bench_export.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find saved_models -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kgen needs Python 3.11 or newer; set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(BIN)/python
	@echo "installing kgen and its packages into $(VENV), a minute or two ..."
	$(BIN)/python -m pip install --quiet -e ".[serving]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing kgen, three backends and the tools into $(VENV), a few minutes ..."
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.base
