# `make demo` and `make test` each do the whole set-up first: all they need is Python >= 3.11, pip and a registry.

# The first Python that runs and is new enough; `make PYTHON=/path/to/python test` overrides it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
MODEL ?= tiny.en

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A process of tests takes up to 3 GB.
SUITE := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-page test-ray check setup clean

demo: setup
	$(BIN)/asr-stream demo

test: setup
	$(SUITE)

# The page in a real browser, in real time; not part of `make test`, which must pass on a machine that is busy.
test-page: setup
	@$(BIN)/python -c 'import sys; from tests.browser.chromium import program; sys.exit(program() is None)' || \
		{ echo "make test-page needs Chromium: apt-get install chromium, or have chromium or google-chrome" \
		"on the PATH" >&2; exit 1; }
	$(BIN)/python -m pytest tests/browser

# Two replicas under Ray Serve, one of them killed; not part of `make test`: Ray is an extra, and heavy.
test-ray: setup
	$(BIN)/python -m pip install --quiet --editable '.[ray]'
	$(BIN)/python -m pytest tests/ray

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(SUITE)

setup: $(INSTALLED)
	$(BIN)/asr-stream models fetch $(MODEL)

# The stamp is written last: an interrupted set-up goes on where it stopped (pip keeps what it downloaded).
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "asr-stream needs Python >= 3.11 and found none: install one," \
		"or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev,mic]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
