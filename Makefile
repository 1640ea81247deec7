# `make` alone lists the targets. Everything is installed into .venv and nowhere else; PYTHON chooses the interpreter (3.10 to 3.13).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= auto
INSTALL_INPUTS := pyproject.toml constraints.txt harness_ext/_wheel.py
RESULTS ?= results
ITEMS ?= ../shared/data/real_tasks
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.PHONY: help real demo leaderboard check test test-all benchmark demo-model demo-table pictures clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## Install, then run three recipes and their controls on the embedded model, without a network
	$(OFFLINE) $(RUN)/lm_eval run --model hf --model_args pretrained=demo --tasks int_mult,int_sum,pronoun_bias,int_mult_clean,int_sum_clean \
	  --recipe laser --recipe eigenprune:fraction=0.1 --recipe ablation-prune --control random-subspace \
	  --batch_size 64 --device cpu
	@echo
	@echo "The table above compares each recipe with the unedited model, and with its own control. What next:"
	@echo "  make leaderboard              the same as a page, on http://127.0.0.1:8501"
	@echo "  $(RUN)/lm_eval recipes     what other recipes there are"
	@echo "  $(RUN)/lm_eval run --model hf --model_args pretrained=YOUR_MODEL --tasks YOUR_TASKS --recipe laser"

leaderboard: $(VENV)/installed ## Open the page over what `make demo` stored
	$(RUN)/lm_eval leaderboard

check: $(VENV)/installed-test ## Linter, formatter, types, layers of imports: what a commit must pass
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/python -m pytest -q tests/test_house.py

test: $(VENV)/installed-test ## The default test suite, in parallel
	$(RUN)/python -m pytest -n $(WORKERS)

test-all: $(VENV)/installed-test ## Slow, long (hours), browser and wheel tests as well (the browser ones need chromium)
	$(RUN)/python -m pytest -m "not benchmark"

benchmark: $(VENV)/installed-test ## Print start-up, run time and memory against plain lm-eval
	$(RUN)/python -m pytest -m benchmark -s tests/benchmarks

demo-model: $(VENV)/installed ## Train the embedded model anew (some minutes)
	$(RUN)/python -m harness_ext.demo_training.train --out harness_ext/demo/model

demo-table: $(VENV)/installed ## Run every recipe and control on the embedded model, and write the table of its card (ten minutes; goes on where it stopped)
	$(OFFLINE) $(RUN)/python -m harness_ext.demo_training.table --out results/demo-table

real: $(VENV)/installed-test ## Run every recipe on a real model of 135M parameters (days on two cores; goes on where it stopped) and write results/real. ITEMS: a folder of items, else the hub's. ANEW=1: leave out the figures of before
	$(RUN)/python results/real/real.py prepare --items $(ITEMS)
	$(RUN)/python results/real/real.py sweep $(if $(TASKS),--tasks $(TASKS))
	$(RUN)/lm_eval sweep run results/real/sweep.yaml --on local || test $$? = 1
	$(RUN)/python results/real/real.py table $(if $(ANEW),--anew)

pictures: $(VENV)/installed-test ## Make the README's pictures from the runs in RESULTS; without it, those of `make demo` overwrite them (needs chromium)
	$(RUN)/python tests/pictures.py --results $(RESULTS)

clean: ## Remove .venv and build output; results stay
	rm -rf $(VENV) build dist .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "error: Python 3.10 to 3.13 is needed, this is %d.%d; set another: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(INSTALL_INPUTS) | $(VENV)/bin/python
	@echo "Installing into $(VENV), which takes some minutes the first time"
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: $(INSTALL_INPUTS) | $(VENV)/bin/python
	@echo "Installing into $(VENV) with what the tests need, which takes some minutes the first time"
	$(PIP) --editable '.[test]'
	@touch $(VENV)/installed $@
