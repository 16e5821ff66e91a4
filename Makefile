# Two commands matter: `make run` (from nothing to the report) and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test lint readme clean

run: $(STAMP)
	$(BIN)/twinbench run quick

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tables and figures in the README are generated: run the four studies, then this.
SHOWN := cifar10-cpu quick quick-lambda quick-batch-size
readme: $(STAMP)
	for study in $(SHOWN); do \
	  rm -rf docs/results/$$study && mkdir -p docs/results/$$study/figures && \
	  cp -r results/$$study/tables results/$$study/records.csv docs/results/$$study/ && \
	  cp results/$$study/figures/*.svg docs/results/$$study/figures/ || exit 1; done
	$(BIN)/python -m reports.readme README.md $(foreach study,$(SHOWN),$(study)=docs/results/$(study))

clean:
	rm -rf $(VENV) build *.egg-info

# Installs again whenever the dependencies change.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; next: make PYTHON=/path/to/python3.11 (3.11 or newer)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(STAMP)
