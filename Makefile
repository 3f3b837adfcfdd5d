# `make test` and `make demo` work on a fresh clone with nothing but Python 3.11+, pip and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests in so many processes: one a core (they mostly keep one busy: compilers, image codecs), four at most, for memory.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 2 ? 2 : n > 4 ? 4 : n)))

.PHONY: test test-fast demo demo-quick study-quick lint format clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

test: lint  ## everything: style, types, all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-fast: $(STAMP)  ## without the tests that need minutes or the shared data
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not integration'

demo: $(STAMP)  ## the whole path on the embedded photographs, into demo-out/
	$(BIN)/r2m demo --out demo-out --overwrite

demo-quick: $(STAMP)
	$(BIN)/r2m demo --out demo-out --overwrite --quick

study-quick: $(STAMP)  ## the paper's tables and figures, small, into study-out/
	$(BIN)/r2m study all --out study-out --overwrite --quick

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-out study-out dist .pytest_cache .mypy_cache .ruff_cache
