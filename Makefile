# Two commands matter: `make run` (from nothing to the report) and `make test`.
# Any Python from 3.11 on will do.
PYTHON ?= $(firstword $(foreach name,python3.11 python3,$(shell command -v $(name))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-benchmarks test-ray test-numerics test-gpu test-s3 lint links docs readme clean

run: $(STAMP)
	$(BIN)/twinbench run quick

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
test: $(STAMP)
	@echo "The whole suite but for the programs of benchmarks/, the pages of docs/ and Ray: about six minutes on two quiet cores."
	$(PYTEST) -m "not programs and not docs and not ray" tests

# The programs of benchmarks/, whole and small.
test-benchmarks: $(STAMP)
	$(PYTEST) -m programs tests/benchmarks

# Studies on Ray, which comes with the extra of its name. One after another, for each needs the cores.
test-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests

# The tests that compare a score of something trained, as other CPUs would round and with another seed.
SETTINGS := default onednn-avx2 oldest seed-100
test-numerics: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/numerics.py $(SETTINGS)

# What a GPU computes, against the CPU. On a machine without one: make test-gpu ON=cpu rehearses the tests, as continuous
# integration does, so that they keep up with the code.
ON := cuda
test-gpu: $(STAMP)
	TWINBENCH_TEST_GPU=$(ON) $(BIN)/python -m pytest -m gpu tests/gpu

# A run store on a real S3 server, in a process of its own.
test-s3: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[s3-tests]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m s3 tests

lint: $(STAMP) links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The rooms under the name that they have when installed: for mypy and for editors (give them the path .links).
ROOMS := foundation data encoders pretraining baselines downstream harness reports recipes studies
links:
	@mkdir -p .links/twinbench
	@for room in $(ROOMS); do ln -sfn ../../$$room .links/twinbench/$$room; done

# The site, into site/: a link that leads nowhere is an error; then the commands of its pages are run.
docs: $(STAMP)
	$(BIN)/python -m twinbench.harness.reference docs/protocols.md
	$(BIN)/sphinx-build -q -W --keep-going docs site
	$(PYTEST) -m docs tests/docs

# The tables and figures in docs/results.md and the README are generated: run these studies, then this. The paper, run at the
# scale quick, is shown with all its figures and a block for each table; make readme SHOWN= takes it alone.
SHOWN := cifar10-cpu:linear-top1 quick:linear-top1,box-ap bccd:box-ap detection-backends:detectron2-box-ap
STUDIES := $(foreach shown,$(SHOWN),$(firstword $(subst :, ,$(shown))))
PAPER := docs/results/paper
readme: $(STAMP)
	for shown in $(SHOWN); do \
	  from=results/$${shown%%:*}; to=docs/$$from; \
	  rm -rf $$to && mkdir -p $$to/figures && cp -r $$from/tables $$from/records.csv $$from/environments.json $$to/ || exit 1; \
	  for figure in $$(echo $${shown##*:} | tr , ' '); do cp $$from/figures/$$figure.svg $$to/figures/ || exit 1; done; \
	  done
	test -f results/paper-quick/records.csv
	rm -rf $(PAPER) && mkdir -p $(PAPER)/figures
	cp -r results/paper-quick/tables results/paper-quick/records.csv results/paper-quick/environments.json $(PAPER)/
	cp results/paper-quick/figures/*.svg $(PAPER)/figures/
	$(BIN)/python -m twinbench.reports.readme docs/results.md $(foreach study,$(STUDIES),$(study)=docs/results/$(study)) \
	  $$(for table in $(PAPER)/tables/*.md; do echo paper/$$(basename $$table .md)=$$table; done)
	$(BIN)/python -m twinbench.reports.readme README.md cifar10-cpu=docs/results/cifar10-cpu

clean:
	rm -rf $(VENV) .links build *.egg-info

# Installs again whenever the dependencies change.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
	  { echo "error: no Python 3.11 or newer found that makes virtual environments (Debian's needs the package" \
	    "python3-venv); next: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(STAMP)
