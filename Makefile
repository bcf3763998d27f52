# `make` lists the targets. Variables, on the command line or in the environment, reach every recipe:
#   MODEL=gemma-2-9b  SETTING=normal  DEVICE=auto  LAYER="20"  DATASETS="96_spam_is 87_glue_cola"  N_JOBS=4
#   SCHEDULER=tcp://host:8786   the workers of a Dask scheduler in place of processes (docs/cluster.md)
#   ARGS="--overwrite"   further flags of the script that the target runs
# The folders can be moved: DATA_DIR, TEXT_DIR, RESULTS_DIR, FIGURES_DIR.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
MODEL ?= gemma-2-9b
SETTING ?=
DEVICE ?= auto
LAYER ?=
DATASETS ?=
N_JOBS ?=
ARGS ?=
GOLDEN ?= ../shared/golden
KILLS ?= 200
MINUTES ?= 10
WORKERS ?=
SCHEDULER ?=
DATA_DIR ?=
TEXT_DIR ?=
RESULTS_DIR ?=
FIGURES_DIR ?=

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# a flag only where its variable is set, so that the scripts' own defaults hold
folders = $(if $(DATA_DIR),--data_dir $(DATA_DIR)) $(if $(TEXT_DIR),--text_dir $(TEXT_DIR)) \
	$(if $(RESULTS_DIR),--results_dir $(RESULTS_DIR)) $(if $(FIGURES_DIR),--figures_dir $(FIGURES_DIR))
common = --model_name $(MODEL) $(folders) $(if $(DATASETS),--datasets $(DATASETS))
setting = $(if $(SETTING),--setting $(SETTING))
scheduler = $(if $(SCHEDULER),--scheduler $(SCHEDULER))
jobs = $(if $(N_JOBS),--n_jobs $(N_JOBS)) $(scheduler)

.PHONY: help
## help: this list
help:
	@echo "make TARGET [MODEL=…] [SETTING=…] [DEVICE=…] [LAYER=…] [DATASETS=\"…\"] [N_JOBS=…] [ARGS=\"…\"]"
	@echo
	@sed -n 's/^## \([a-z-]*\): /\1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "  %-28s %s\n", $$1, $$2}'

.PHONY: setup
## setup: build .venv from requirements.txt under constraints.txt
setup: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else f"Python 3.10 to 3.13 is needed, not {v.major}.{v.minor}: make PYTHON=python3.12 setup")'
	@echo "building $(VENV) (a few minutes the first time)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt --requirement requirements-dev.txt --constraint constraints.txt
	@touch $@

.PHONY: demo
## demo: the main job end to end on real data: texts, activations, SAEs, probes, figures, report
demo: $(STAMP)
	@RUN="$(RUN)" DEVICE="$(DEVICE)" JOBS="$(jobs)" FOLDERS="$(folders)" ./demo.sh

.PHONY: fetch-data
## fetch-data: download the 113 text datasets and the demo's language model
fetch-data: $(STAMP)
	$(RUN) fetch_data.py $(folders) $(ARGS)

.PHONY: check-datasets
## check-datasets: are the texts fit to probe on: classes, repeated texts, test rows that are copies of training rows
check-datasets: $(STAMP)
	$(RUN) -m checks.datasets $(folders) $(if $(DATASETS),--datasets $(DATASETS)) $(ARGS)

.PHONY: extract-data
## extract-data: unpack the paper's archives of MODEL that lie in data/ or raw_text_datasets/
extract-data: $(STAMP)
	$(RUN) -m published.extract --model_name $(MODEL) $(folders) $(ARGS)

.PHONY: fetch-published-results
## fetch-published-results: the paper's result tables (ARGS="--from DIR": from a copy of its repository)
fetch-published-results: $(STAMP)
	$(RUN) -m published.fetch_results $(folders) $(ARGS)

.PHONY: status
## status: what is there, what is missing and the command that makes it (ARGS="--output REPRODUCTION_STATUS.md")
status: $(STAMP)
	$(RUN) -m checks.status --model_name $(MODEL) $(folders) $(ARGS)

.PHONY: audit
## audit: what to distrust in the result tables of MODEL
audit: $(STAMP)
	$(RUN) -m checks.audit --model_name $(MODEL) $(folders) $(ARGS)

.PHONY: generate-model-acts
## generate-model-acts: texts to model activations
generate-model-acts: $(STAMP)
	$(RUN) generate_model_activations.py $(common) $(setting) $(scheduler) --device $(DEVICE) $(if $(LAYER),--layers $(LAYER)) $(ARGS)

.PHONY: train-saes
## train-saes: train small SAEs and an untrained control on a model's token activations
train-saes: $(STAMP)
	$(RUN) train_saes.py --model_name $(MODEL) $(folders) --device $(DEVICE) $(if $(LAYER),--layers $(LAYER)) $(ARGS)

.PHONY: generate-sae-acts-optimized
## generate-sae-acts-optimized: model activations to SAE activations, each SAE opened once
generate-sae-acts-optimized: $(STAMP)
	$(RUN) generate_sae_activations_optimized.py $(common) $(setting) $(scheduler) --device $(DEVICE) $(if $(LAYER),--layers $(LAYER)) $(ARGS)

.PHONY: export-splits
## export-splits: the original scripts' per-condition files from our SAE activations
export-splits: $(STAMP)
	$(RUN) -m published.export_splits $(common) $(setting) $(ARGS)

.PHONY: benchmark
## benchmark: all our ratios, to docs/benchmarks.md, and the rates that plan reads (after demo; a quarter of an hour; ARGS=--full)
benchmark: $(STAMP)
	$(RUN) -m benchmarks.run_all $(folders) $(ARGS)

.PHONY: benchmark-scaling
## benchmark-scaling: the demo's SAE-probe sweep with one and two workers, processes and Dask
benchmark-scaling: $(STAMP)
	$(RUN) -m benchmarks.scaling $(folders) $(ARGS)

.PHONY: plan
## plan: what a study of MODEL's whole SAE release takes (WORKERS=32)
plan: $(STAMP)
	$(RUN) -m benchmarks.plan --model_name $(MODEL) $(folders) $(if $(DATASETS),--datasets $(DATASETS)) $(if $(LAYER),--layers $(LAYER)) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

.PHONY: benchmark-generate
## benchmark-generate: the generator against the original order of work, on real-shape files (ARGS=--quick: small)
benchmark-generate: $(STAMP)
	$(RUN) -m benchmarks.generate $(ARGS)

.PHONY: benchmark-models
## benchmark-models: reading a model's activations, batches by length against a plain loop
benchmark-models: $(STAMP)
	$(RUN) -m benchmarks.models $(folders) $(ARGS)

.PHONY: benchmark-full-run
## benchmark-full-run: all 113 datasets, all rows, two layers of the demo's model, each stage killed once on the way (an hour)
benchmark-full-run: $(STAMP)
	$(RUN) -m benchmarks.full_run $(if $(TEXT_DIR),--text_dir $(TEXT_DIR)) $(ARGS)

.PHONY: benchmark-probes
## benchmark-probes: our probes against the paper's procedure in scikit-learn, on the demo's data (half an hour)
benchmark-probes: $(STAMP)
	$(RUN) -m benchmarks.probes $(folders) $(if $(DATASETS),--datasets $(DATASETS)) $(ARGS)

.PHONY: positive-control
## positive-control: synthetic activations whose features an SAE knows, so that its probes must win on few rows
positive-control: $(STAMP)
	$(RUN) -m checks.positive_control $(folders) $(ARGS)

.PHONY: train-baselines
## train-baselines: the five baseline probes (SETTING=normal unless given)
train-baselines: $(STAMP)
	$(RUN) train_baselines.py $(common) $(setting) $(jobs) $(if $(LAYER),--layers $(LAYER)) $(ARGS)

.PHONY: train-sae-probes
## train-sae-probes: probes on SAE latents (SETTING=normal unless given)
train-sae-probes: $(STAMP)
	$(RUN) train_sae_probes.py $(common) $(setting) $(jobs) $(if $(LAYER),--layers $(LAYER)) $(ARGS)

.PHONY: train-all
## train-all: baselines, SAE probes and their controls in all five settings
train-all: $(STAMP)
	@status=0; \
	$(RUN) train_baselines.py $(common) --setting all $(jobs) $(if $(LAYER),--layers $(LAYER)) || status=1; \
	$(RUN) train_sae_probes.py $(common) --setting all $(jobs) $(if $(LAYER),--layers $(LAYER)) \
	  --controls raw_dims pca_dims || status=1; \
	exit $$status

.PHONY: train-multi-token-probes
## train-multi-token-probes: probes on all tokens of a text, whose activations are never stored
train-multi-token-probes: $(STAMP)
	$(RUN) train_multi_token_probes.py $(common) $(scheduler) --device $(DEVICE) $(if $(LAYER),--layers $(LAYER)) $(ARGS)

.PHONY: visualize
## visualize: result tables to comparison, figures and report
visualize: $(STAMP)
	$(RUN) visualize.py $(common) $(setting) $(ARGS)

.PHONY: parity
## parity: our probes against reference results of the paper's functions (GOLDEN=folder)
parity: $(STAMP)
	$(RUN) -m checks.parity --golden $(GOLDEN) $(ARGS)

.PHONY: test
## test: the test suite (offline, CPU, under 5 minutes)
test: $(STAMP)
	$(RUN) -m pytest tests utils -m "not long" --numprocesses 2 --dist loadfile $(ARGS)

.PHONY: test-faults
## test-faults: bad and hostile files, full disks, memory, and 200 kills over all stages (half an hour)
test-faults: $(STAMP)
	$(RUN) -m pytest tests/faults $(ARGS)
	$(RUN) tests/faults/crashes.py --kills $(KILLS)

.PHONY: fuzz
## fuzz: the readers of untrusted files under a coverage-guided fuzzer (MINUTES=10 each; Linux)
fuzz: $(STAMP)
	$(RUN) -m pip install --quiet atheris
	for target in npz pickle; do $(RUN) tests/faults/fuzz.py $$target --minutes $(MINUTES); done

.PHONY: audit-dependencies
## audit-dependencies: known faults of the pinned packages (needs the network)
audit-dependencies: $(STAMP)
	$(RUN) -m pip install --quiet pip-audit
	$(RUN) -m pip_audit --requirement constraints.txt --no-deps

.PHONY: lint
## lint: formatting, lint and type checks
lint: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

.PHONY: format
## format: rewrite the code in the project's format
format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

.PHONY: clean
## clean: remove caches (never data or results)
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
