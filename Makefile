# make demo   evaluate the shipped classifier on shipped images, with an attack; writes out/demo/report.html
# make test   everything that can be tested without a GPU, by two processes (WORKERS=N: by N; by hand: .venv/bin/python -m pytest)
# make check  style (ruff), layers (import-linter), types (mypy): what .ci/run does before the tests
# make docs   the site, from docs/, into site/; fails on any warning
# make bench  benchmarks
# make fuzz   thousands of changed files on every reader, some minutes
# make gpu    the tests that need a GPU (skipped, with a reason, without one)
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check docs bench fuzz gpu clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python setup.py pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)
	@echo "Installing rdc and what it needs into $(VENV) (the first time this downloads torch) ..."
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) -e ".[test]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(INSTALL) -e ".[docs]"
	@touch $@

demo: $(VENV)/installed
	$(BIN)/rdc info
	$(BIN)/rdc evaluate --model fashion-mnist --data fashion-mnist-sample --n 64 --norm linf --eps 8/255 \
	  --attacks apgd-ce --steps 10 --gradient exact --noise known --out out/demo
	@echo "The full report, with pictures: out/demo/report.html"

test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/installed-test
	$(BIN)/python -m pytest --benchmark-only

fuzz: $(VENV)/installed-test
	$(BIN)/python -m tests.fuzz --cases 250

gpu: $(VENV)/installed-test
	$(BIN)/python -m pytest -m gpu -rs

clean:
	rm -rf $(VENV) build out site *.egg-info rdc/_C*.so
