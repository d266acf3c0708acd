# Commands a newcomer has. `make help` lists them.
PYTHON ?= python3.11
BIN := .venv/bin
# Compiled tests and modules are kept, whatever the shell says: every process that a test starts needs them.
export PYTHONDONTWRITEBYTECODE :=

help: ## Show this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q "torch==2.13.0"
	$(BIN)/pip install -q -c constraints.txt -e ".[worker,local,demo,dev]"
	@touch $@

install: .venv/.done ## Create .venv with everything in it

demo: .venv/.done ## Forget real people end to end: services, model, requests, certificate
	$(BIN)/expunge demo

test: .venv/.done ## Run the whole suite against real services that it starts itself
	$(BIN)/pytest -n 2 --dist loadfile

test-browser: .venv/.done ## Walk the dashboard with a real browser (part of make test; skipped without Chromium)
	$(BIN)/pytest tests/browser -n 2 --dist loadfile

screenshots: .venv/.done ## Take pictures of every page of the dashboard into docs/dashboard/
	$(BIN)/python -m tests.browser.screenshots

check: .venv/.done ## Format, lint, types, import contracts, fast tests (under 60 s)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow" -q -n 2

format: .venv/.done ## Rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: .venv/.done ## Rewrite docs/openapi.json from the code
	$(BIN)/python -m app.api.openapi > docs/openapi.json

bench-page: .venv/.done ## Write the tables and plots of docs/benchmarks.md from the results
	$(BIN)/python benchmarks/page.py

bench-%: .venv/.done ## Run benchmarks/NAME.py, write benchmarks/results/NAME.json
	$(BIN)/python benchmarks/$*.py

clean: ## Remove the environment and local state
	rm -rf .venv .expunge .pytest_cache .mypy_cache .ruff_cache

.PHONY: help install demo test test-browser screenshots check format openapi clean
