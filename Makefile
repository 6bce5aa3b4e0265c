# Every target starts from nothing but Python and make: the first one to run creates $(VENV) and
# installs the tested set of packages, the others find it there.
#
#   make demo     molecules, forecasts and 3D poses from the embedded weights, metrics, pictures
#   make test     formatting, lint, import contracts, types of the public core, tests
#   make paper    slow reproductions of published figures
#   make lint     the static part of `make test`
#   make bench    every benchmark; figures go to benchmarks/results
#
# Variables: PYTHON (the interpreter to start from), VENV (where packages go), STRUCTDIFF_DATA (a
# folder that already holds the datasets), JOBS (test processes), PYTEST_ARGS.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=
EXTRAS := molecules,timeseries,sktime,eeg,parquet,pose,train,cli,ot,plots,test
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two test processes on two cores: one thread each.
export OMP_NUM_THREADS ?= 1
ifdef STRUCTDIFF_DATA
export STRUCTDIFF_DATA := $(abspath $(STRUCTDIFF_DATA))
endif

.PHONY: demo test paper lint bench clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP)
	@mkdir -p demo_output
	$(BIN)/structdiff molecules sample --model gdss-qm9 --num 1000 --seed 0 \
		--out demo_output/molecules.csv --grid demo_output/grid.png
	$(BIN)/structdiff molecules evaluate demo_output/molecules.csv --reference gdss-qm9 \
		--plot demo_output/properties.png
	$(BIN)/structdiff timeseries demo --out demo_output/forecast.csv --plot demo_output/forecast.png
	$(BIN)/structdiff pose demo --out demo_output/poses.npz --plot demo_output/poses.png \
		--video demo_output/poses.mp4
	@echo "written: demo_output/molecules.csv, grid.png, properties.png, forecast.csv, forecast.png,"
	@echo "         poses.npz, poses.png, poses.mp4"

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

paper: $(STAMP)
	$(BIN)/python -m pytest -m paper $(PYTEST_ARGS)

bench: $(STAMP)
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

clean:
	rm -rf $(VENV) demo_output dist build
