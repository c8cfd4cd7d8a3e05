# Everything runs in .venv, which is made from pyproject.toml and constraints.txt and renewed when they change.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUNDLE := build/tiny-llava.bundle
PAPER := build/paper.bundle
RANDOM := build/random.bundle
RECIPE := iwp_export/assets/recipes/tiny-llava.json
CALIBRATE := iwp-export calibrate tiny-llava --keep 0.3 0.11
DEMO_IMAGE := calibration/tiny_llava/heldout/000.png
DEMO_PROMPT := what is the yellow digit ?
DEMO_DATA := calibration/tiny_llava/heldout/questions.jsonl
DEMO_QUESTIONS := 150
DEMO_VALIDATED := 60
# One thread a process: the tests already run in $(JOBS) processes.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo test test-slow check clean
.DELETE_ON_ERROR:

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(STAMP)  ## export tiny-llava, ask it, draw the kept tokens, compare its accuracy with controls, validate it
	$(BIN)/iwp-export tiny-llava -o $(BUNDLE) --force
	$(BIN)/iwp-export tiny-llava --recipe paper -o $(PAPER) --force
	$(BIN)/iwp-export tiny-llava --importance random -o $(RANDOM) --force
	$(BIN)/iwp-export run $(BUNDLE) --image $(DEMO_IMAGE) --prompt "$(DEMO_PROMPT)" --save-tokens build/kept.png
	$(BIN)/iwp-export validate $(BUNDLE) $(PAPER) $(RANDOM) --data $(DEMO_DATA) \
		--keep 1 0.3 0.11 --limit $(DEMO_QUESTIONS) --threads 1
	$(BIN)/iwp-export validate $(BUNDLE) --limit $(DEMO_VALIDATED) --max-drop 10% --threads 1 \
		-o build/report.json build/report.html --force
	@if [ -e $(RECIPE) ]; then echo "The recipe of $(BUNDLE) was made by: $(CALIBRATE)"; \
	else echo "No recipe ships for tiny-llava yet: $(BUNDLE) has the paper's settings. To make one: $(CALIBRATE)"; fi

test: $(STAMP)  ## run the tests, but for those marked slow
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-slow: $(STAMP)  ## run the slow tests, and property tests on many more, random examples
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m "slow or hypothesis" --hypothesis-profile thorough $(PYTEST_ARGS)

check: $(STAMP)  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:  ## remove what make and the tools made, but for .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10: make PYTHON=/path/to/python3.10 or newer" >&2; exit 1; }
	@echo "Setting up $(VENV): a few minutes on the first run"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ort,export,rtx,report,train,dev]'
	@touch $@
