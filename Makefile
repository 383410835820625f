# The everyday commands. Each makes .venv first where it is missing or older than the lock.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format check bench bench-pages bench-quick bench-memory image lock .venv

# A newcomer's first command: the service on an embedded PostgreSQL with real data.
demo: .venv
	$(BIN)/cases-service demo

test: .venv
	$(BIN)/pytest -n auto

lint: .venv
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: .venv
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: lint test

# The pages of heavy visitors against that of an ordinary one, over HTTP: two minutes, and one more to make the data.
bench-pages: .venv/benchmarks
	$(BIN)/python -m benchmarks.page_latency

# The service beside its floor and its peers, over HTTP: some fifteen minutes, and three more to make the data.
bench: .venv/benchmarks
	$(BIN)/python -m benchmarks

# The same in about three minutes, with little data: for a try, its figures are not kept.
bench-quick: .venv/benchmarks
	$(BIN)/python -m benchmarks --quick

# Whether a worker grows within so many requests.
REQUESTS ?= 1000000
bench-memory: .venv/benchmarks
	$(BIN)/python -m benchmarks.memory --requests $(REQUESTS)

.venv/benchmarks: .venv/complete requirements/benchmarks.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/benchmarks.lock
	touch $@

.venv: .venv/complete

# The mark comes last, so that an interrupted installation is done again.
.venv/complete: requirements/development.lock pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/development.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Builds the container image where no container engine runs, and tries it.
image:
	deploy/build-image

# Names, versions and hashes; no addresses. Needs uv.
lock:
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		pyproject.toml -o requirements/production.lock
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--group build -o requirements/build.lock
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		pyproject.toml --extra embedded --group dev -o requirements/development.lock
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		-c requirements/development.lock pyproject.toml --extra embedded --group benchmarks \
		-o requirements/benchmarks.lock
