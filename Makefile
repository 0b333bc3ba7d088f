SHELL := bash
UV := scripts/uv
RUN := $(UV) run --frozen
# Named one by one: ruff would stumble over the template's pyproject.toml, which is Jinja.
CODE := bench hooks scripts service-template/hooks tests
# Outside this clone, since a repository inside another one gets no git of its own.
OUT ?= ..

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {gsub(/: make /, sprintf("\n%14smake ", ""), $$2); printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: new
new: export UV_PROJECT_ENVIRONMENT := .tools/new
new: ## Make a repository: make new [OUT=directory] [ARGS="project_name=Lab"] [NO_INPUT=1]
	@echo "Starting cookiecutter. The first start takes some seconds."
	@$(UV) run --quiet --frozen --no-default-groups --python '>=3.10' \
		python scripts/new.py $(if $(NO_INPUT),--no-input) "$(OUT)" $(ARGS)

# Most tests start Python processes, and each one would compile what it imports.
PYTEST := $(RUN) --compile-bytecode pytest -n auto --dist loadgroup

.PHONY: test test-all mutate
test: ## Run the fast tests, without Docker, and list the skipped ones
	$(PYTEST) -m "not docker and not slow" -rs $(ARGS)
	@echo 'Left out: slow tests, and those that need Docker. Run them with "make test-all".'

test-all: ## Test everything, on all supported Pythons and in containers
	$(PYTEST) --durations 25 -rs $(ARGS)

mutate: ## Plant faults in the shared library, count those that tests find
	$(RUN) python scripts/mutate.py $(ARGS)

.PHONY: lint format
lint: ## Check this repository's own code and words
	$(RUN) ruff check $(CODE)
	$(RUN) ruff format --check $(CODE)
	$(RUN) mypy
	$(RUN) python scripts/check_words.py
	$(RUN) zizmor --quiet --offline .github

format: ## Format this repository's own code
	$(RUN) ruff check --fix $(CODE)
	$(RUN) ruff format $(CODE)

.PHONY: documents
documents: ## Write templates/documents/ after a change of settings or messages
	$(RUN) python scripts/refresh_documents.py

.PHONY: refresh
refresh: ## Update all locks, exports and pinned actions, and test the result
	$(RUN) python scripts/refresh.py $(ARGS)

.PHONY: bench
bench: ## Measure, with Mosquitto and Docker (see bench/README.md)
	$(RUN) python bench/generate.py
	$(RUN) python bench/add_service.py
	$(UV) run bench/mqtt/run.py
	$(UV) run bench/docker/run.py
	$(UV) run bench/faults/run.py
