# Two commands are enough: `make quickstart` and `make test`. Both set the machine up first and can be repeated.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check lint format soak mutants clean

quickstart: .venv/installed
	$(BIN)/fledge run recipes/quickstart.yaml

test: lint
	$(BIN)/python -m pytest -m road --durations=10
	$(BIN)/python -m pytest -n 2 -m "not slow and not road" --durations=10

check: lint
	$(BIN)/python -m pytest -n 2 -m "not slow and not road" --ignore tests/training --ignore tests/stages --ignore tests/test_cli.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

# Takes a line that matters away from a copy of the package, 21 times, and sees that the tests notice: about five minutes.
mutants: .venv/installed-dev
	$(BIN)/python tests/mutants.py

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fledge needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
