# make demo   set up .venv, train a VAE on embedded digits, draw, export a SavedModel
# make test   set up .venv, run the tests on TensorFlow, JAX and PyTorch
# make features   the README's table, from the results of the last make test
# make serve  a TensorFlow Serving of all that was exported, or how to start one
# make results    the README's tables of numbers, from the recipes' records
# make lint   ruff
# make bench  side-by-side timings (tests/benchmarks)
# make clean  remove what the above made

PYTHON   ?= python3
VENV     ?= .venv
BACKENDS ?= jax tensorflow torch
# Backends tested at once: a suite keeps less than one core busy.
JOBS     ?= 3
BIN      := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

# Prepared TensorFlow Datasets beside the checkout are used where there are any.
PREPARED := $(wildcard ../shared/tfds)
ifneq ($(PREPARED),)
export TFDS_DATA_DIR ?= $(abspath $(PREPARED))
endif

.PHONY: demo test serve features results lint bench clean

demo: $(VENV)/.base
	$(BIN)/python recipes/vae_digits.py

test: $(VENV)/.dev
	@mkdir -p runs
	@printf '%s\n' $(BACKENDS) | xargs -P $(JOBS) -I{} bash -o pipefail -c \
	  'KERAS_BACKEND={} $(BIN)/python -m pytest $(TESTS) 2>&1 \
	  | sed -u "s/^/{}: /" | tee runs/tests_{}.log'; status=$$?; echo; \
	grep -hE ': (FAILED|ERROR|E  |[0-9]+ (passed|failed|error))' \
	  $(BACKENDS:%=runs/tests_%.log); exit $$status

serve: $(VENV)/.base
	$(BIN)/python -m kgen.serving serve

features:
	$(BIN)/python tests/features.py

results: $(VENV)/.base
	$(BIN)/python -m kgen.results --readme README.md --picture recipes/results/families.png

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_train_step.py
	$(BIN)/python tests/benchmarks/bench_gated_pixel_cnn.py
	$(BIN)/python tests/benchmarks/bench_pixel_rnn.py
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
	$(BIN)/python -m pip install --quiet -e ".[serving]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.base
