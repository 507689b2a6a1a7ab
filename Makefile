# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Newest versions by default; `make test CONSTRAINTS=` leaves the choice to pip.
CONSTRAINTS ?= -c constraints.txt

.PHONY: demo torture test lint format clean distclean

# The whole life cycle on a real model and real text: a page in anytune-demo/report.html
demo: $(VENV)/.installed
	$(BIN)/anytune demo $(DEMO)

# One thread a process, a process a core: threads of several processes would wait for each other.
WORKERS ?= logical
test: lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadscope $(TESTS)

# Commands killed at random moments and started again: the same bits, and no half artefact in any store.
MOMENTS ?= 50
torture: $(VENV)/.developing
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.torture.run --moments $(MOMENTS)

lint: $(VENV)/.developing
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.developing
	$(BIN)/ruff check --fix src tests examples benchmarks
	$(BIN)/ruff format src tests examples benchmarks

# The CPU build of torch is asked for by version first: a plain `torch` may bring gigabytes of GPU libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e ".[gguf,figures]"
	touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e ".[all]"
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --group dev
	touch $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis anytune-demo
	find . -name __pycache__ -not -path "./$(VENV)/*" -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
