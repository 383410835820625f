# The everyday commands. Each makes .venv first where it is missing or older than the lock.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo programs test test-pythons queries torture soak fuzz lint lint-openapi format check audit bench bench-pages \
	bench-quick bench-throughput bench-indexes bench-memory bench-row-security load-statements docs image lock openapi package sbom swagger-ui .venv

# A newcomer's first command: the service on an embedded PostgreSQL with real data.
demo: .venv
	$(BIN)/cases-service demo

test: .venv
	$(BIN)/pytest -n auto

# The tests on each of these Pythons that is installed: the oldest that will do, and the image's.
PYTHONS ?= python3.11 python3.13
test-pythons:
	.ci/test-pythons $(PYTHONS)

# The programs that tests run beside the service, such as a browser and proxies: with them no test skips.
programs:
	.ci/programs
# The statements of pages and cases as the server gets them, for psql; NAME is the beginning of a name.
NAME ?=
queries: .venv
	@$(BIN)/python -m cases_service.store.page_statements $(NAME)

# What can go wrong goes wrong many times over: three quarters of an hour, and a table of what became of the requests.
# As root it also drops packets and fills a disk, in a network namespace and on a file system of its own.
torture: .venv
	CASES_TEST_TORTURE=1 $(BIN)/pytest -n 0 tests/process/test_faults.py tests/process/test_overload.py \
		tests/process/test_slow_clients.py tests/process/test_proxies.py tests/process/test_stopping.py \
		tests/process/test_load_faults.py tests/process/test_consistency.py

# Whether a worker's memory, threads and open files grow under clients of every kind.
SOAK_SECONDS ?= 3600
soak: .venv
	CASES_TEST_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/pytest -n 0 -s tests/process/test_soak.py

lint: .venv
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: .venv
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: lint test docs

# The statements of `load`, as they come out of their templates.
load-statements: .venv
	$(BIN)/python -m cases_service.loading.statements

# The tests of generated input, with thousands of examples each, and others each time: some ten minutes.
fuzz: .venv
	$(BIN)/pytest -n auto -m fuzz --hypothesis-profile=long

# Known weaknesses of everything that is locked, by a tool in an environment of its own. Asks PyPI over the network,
# and fails where it cannot tell.
audit: $(VENV)/audit/complete
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
		$(addprefix --requirement ,$(wildcard requirements/*.lock)) \
		|| { echo "audit: a weakness was found, or PyPI did not answer for a package: see above" >&2; exit 1; }

$(VENV)/audit/complete: $(VENV)/complete requirements/audit.lock
	$(PYTHON) -m venv --clear $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.lock
	touch $@

# The pages of heavy visitors against that of an ordinary one, over HTTP: two minutes, and one more to make the data.
bench-pages: $(VENV)/benchmarks
	$(BIN)/python -m benchmarks.page_latency

# The service beside its floors and its peers, over HTTP: half an hour, and three minutes more to make the data.
bench: $(VENV)/benchmarks
	$(BIN)/python -m benchmarks

# The same in about five minutes, with little data: for a try, its figures are not kept.
bench-quick: $(VENV)/benchmarks
	$(BIN)/python -m benchmarks --quick

# Only the requests a second beside the floors, printed: ten minutes, and three more to make the data.
bench-throughput: $(VENV)/benchmarks
	$(BIN)/python -m benchmarks --throughput

# What each index of cases costs those who write and gives those who read: ten minutes, and one more to make the data.
bench-indexes: $(VENV)/benchmarks
	$(BIN)/python -m benchmarks.indexes

# Whether a worker grows within so many requests.
REQUESTS ?= 1000000
bench-memory: $(VENV)/benchmarks
	$(BIN)/python -m benchmarks.memory --requests $(REQUESTS)

# What row security costs, over HTTP: three minutes, and three more to make the data. Fails where it is over a tenth.
bench-row-security: $(VENV)/benchmarks
	$(BIN)/python -m benchmarks.row_security

# The documentation as a site in build/site, from a copy of the documents and of what they link to. Fails on a link that
# leads nowhere, and on a page that would ask another host for anything.
docs: $(VENV)/docs
	rm -rf build/docs build/site
	mkdir -p build/docs
	git ls-files -z --cached --others --exclude-standard -- '*.md' LICENSE compose.yaml benchmarks deploy docs examples \
		| xargs -0 tar -cf - | tar -xf - -C build/docs
	$(BIN)/zensical build --strict --clean
	! grep -rE --include='*.html' '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//' build/site

$(VENV)/docs: $(VENV)/complete requirements/docs.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.lock
	touch $@

$(VENV)/benchmarks: $(VENV)/complete requirements/benchmarks.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/benchmarks.lock
	touch $@

.venv: $(VENV)/complete

# The mark comes last, so that an interrupted installation is done again.
$(VENV)/complete: requirements/development.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"make: needs Python 3.11 or newer: make PYTHON=/path/to/python. $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/development.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The interface's document in the tree, for those who read it there; a test compares.
openapi: .venv
	$(BIN)/python -m tests.openapi_document

# The document of the demo that runs, through a linter.
lint-openapi:
	npx --yes @redocly/cli@2 lint http://127.0.0.1:8000/openapi.json

# Builds the container image where no container engine runs, and tries it.
image:
	deploy/build-image

# What the package is published as: a wheel and a source distribution in dist/.
package: .venv
	rm -rf dist
	$(BIN)/hatchling build

# What the image is made of, for those who have to know: a bill of materials in build/, in CycloneDX' form.
sbom: $(VENV)/sbom/complete
	mkdir -p build
	$(VENV)/sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom.json requirements/production.lock

$(VENV)/sbom/complete: $(VENV)/complete requirements/sbom.lock
	$(PYTHON) -m venv --clear $(VENV)/sbom
	$(VENV)/sbom/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/sbom.lock
	touch $@

# The page at /docs of the release that cases_service/api/docs_page/README.md names, without source maps. Needs npm.
PAGE := cases_service/api/docs_page/swagger-ui
swagger-ui:
	rm -rf build/swagger-ui && mkdir -p build/swagger-ui
	cd build/swagger-ui && npm pack --silent \
		"$$(grep -o 'swagger-ui-dist [0-9.]*[0-9]' ../../$(PAGE)/../README.md | tr ' ' '@')" && tar -xzf *.tgz
	for file in $(PAGE)/*; do \
		sed 's|/\*# sourceMappingURL=.*\*/||' "build/swagger-ui/package/$${file##*/}" > "$$file" || exit 1; done

# Names, versions and hashes; no addresses. What is locked stays where it may: UPGRADE=--upgrade takes what is newest.
# Needs uv.
UPGRADE ?=
COMPILE := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 $(UPGRADE)
lock:
	$(COMPILE) pyproject.toml --extra redis --extra tracing -o requirements/production.lock
	$(COMPILE) --group build -o requirements/build.lock
	$(COMPILE) pyproject.toml --extra embedded --extra tracing --extra redis --group dev -o requirements/development.lock
	$(COMPILE) -c requirements/development.lock pyproject.toml --extra embedded --extra redis --group benchmarks \
		-o requirements/benchmarks.lock
	$(COMPILE) --group audit -o requirements/audit.lock
	$(COMPILE) --group sbom -o requirements/sbom.lock
	$(COMPILE) -c requirements/development.lock --group docs -o requirements/docs.lock
