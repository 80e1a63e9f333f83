# Everything a clone needs. On a machine without a GPU, the CPU build of torch saves several GB:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
PIP_ARGS ?=
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: help install demo test coverage test-slow bench soak lint docs format clean

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "%-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("amid needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "Installing into .venv: torch and the packages of pyproject.toml, which takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,docs]'
	touch $@

install: .venv/installed  ## the installation alone, into .venv

demo: .venv/installed  ## the default α sweep on the built-in pair and data, its table and report
	$(BIN)/amid sweep alpha divergence=kl seed=1

test: .venv/installed  ## the test suite
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

coverage: .venv/installed  ## the test suite, and which lines of amid/ it runs
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal --cov=amid --cov-report=term

test-slow: .venv/installed  ## the slower tests
	$(BIN)/python -m pytest -m slow -n auto --dist worksteal

BENCH := loss step packing activations generation ladder metrics sweep
bench: .venv/installed  ## speed and memory, as ratios measured in turn: make bench DEVICE=cuda
	for name in $(BENCH); do $(BIN)/python benchmarks/$$name.py --device $(or $(DEVICE),cpu) || exit 1; done

soak: .venv/installed  ## kills a sweep 70 times, and compares its end with an undisturbed one; takes an hour
	$(BIN)/python benchmarks/soak.py $(SOAK)

lint: .venv/installed  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## the documentation as a site, in outputs/site; broken links fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/installed  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## removes what runs wrote
	rm -rf outputs
