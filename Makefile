# The everyday commands. Each makes .venv first where it is missing or older than the lock.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format check bench image lock .venv

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

# The page of a heavy visitor against that of an ordinary one, over HTTP.
bench: .venv
	$(BIN)/python -m benchmarks.page_latency

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
