# Each target is enough by itself on a fresh machine with Python 3.11 or 3.12: it makes .venv, installs, does its job.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/mmssl demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 13); sys.exit(0 if ok else \
	"mmssl needs Python 3.11 or 3.12, found %s; name one with: make PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[all]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock --no-deps tinysoundfont  # not pyaudio
	touch $@

clean:
	rm -rf $(VENV) build dist
