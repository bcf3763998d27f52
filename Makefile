# `make` lists the targets. Variables, on the command line or in the environment, reach every recipe:
#   MODEL=gemma-2-9b  SETTING=normal  DEVICE=auto  LAYERS="20"  DATASETS="96_spam_is 87_glue_cola"  N_JOBS=4
#   SCHEDULER=tcp://host:8786   the workers of a Dask scheduler in place of processes (docs/cluster.md)
#   SEEDS=3                     rows, folds and fits with three seeds
#   DATASETS="'my data' 87_glue_cola"   a name with spaces in it
#   ARGS="--overwrite"   further flags of the script that the target runs
# The folders can be moved: DATA_DIR, TEXT_DIR, RESULTS_DIR, FIGURES_DIR.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
# stages read what the stages before have made: with -j (or MAKEFLAGS=-j8) they still go in turn
.NOTPARALLEL:

PYTHON ?= python3
VENV ?= .venv
MODEL ?= gemma-2-9b
SETTING ?=
DEVICE ?= auto
LAYER ?=
LAYERS ?= $(LAYER)
DATASETS ?=
DATASET ?=
N_JOBS ?=
SEEDS ?=
ARGS ?=
GOLDEN ?= ../shared/golden
KILLS ?= 200
MINUTES ?= 10
WORKERS ?=
SCHEDULER ?=
RELEASE ?=
PROBE ?=
PUBLISHED ?=
TEXTS ?=
DATA_DIR ?=
TEXT_DIR ?=
RESULTS_DIR ?=
FIGURES_DIR ?=

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# one word of the shell, whatever is in it
q = '$(subst ','\'',$(1))'
# a flag only where its variable is set, so that the scripts' own defaults hold
folders = $(if $(DATA_DIR),--data_dir $(call q,$(DATA_DIR))) $(if $(TEXT_DIR),--text_dir $(call q,$(TEXT_DIR))) \
	$(if $(RESULTS_DIR),--results_dir $(call q,$(RESULTS_DIR))) $(if $(FIGURES_DIR),--figures_dir $(call q,$(FIGURES_DIR)))
common = --model_name $(MODEL) $(folders) $(if $(DATASETS),--datasets $(DATASETS))
setting = $(if $(SETTING),--setting $(SETTING))
seeds = $(if $(SEEDS),--n_seeds $(SEEDS))
scheduler = $(if $(SCHEDULER),--scheduler $(SCHEDULER))
jobs = $(if $(N_JOBS),--n_jobs $(N_JOBS)) $(scheduler)

##@ Start

.PHONY: help
## help: this list
help:
	@echo "make TARGET [MODEL=…] [SETTING=…] [DEVICE=…] [LAYERS=\"…\"] [DATASETS=\"…\"]"
	@echo "            [N_JOBS=…] [SEEDS=3] [SCHEDULER=…] [ARGS=\"flags of the script\"]"
	@awk '/^##@ /{printf "\n%s\n", substr($$0, 5)} \
	  /^## [a-z-]+: /{split(substr($$0, 4), part, ": "); printf "  %-28s %s\n", part[1], part[2]}' \
	  $(firstword $(MAKEFILE_LIST))

.PHONY: setup
## setup: build .venv from requirements.txt
setup: $(STAMP)

# an interpreter that is gone (an upgrade) or has no pip is as good as none
_ := $(shell test ! -e $(STAMP) || $(RUN) -c 'import pip' 2>/dev/null || rm -f $(STAMP))

$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else f"Python 3.10 to 3.13 is needed, not {v.major}.{v.minor}: make PYTHON=python3.12 setup")'
	@$(PYTHON) -c 'import platform as p; old = p.system() == "Darwin" and (p.machine() == "x86_64" or int(p.mac_ver()[0].split(".")[0]) < 14); raise SystemExit("torch has no build for Intel Macs or macOS before 14: use Linux, or a newer Mac" if old else 0)'
	@echo "building $(VENV) (a few minutes the first time)"
	@$(RUN) -c 'import pip' 2>/dev/null || { rm -f $(VENV)/bin/python $(VENV)/bin/python3*; $(PYTHON) -m venv $(VENV); }
	$(RUN) -m pip install --quiet --requirement requirements.txt --requirement requirements-dev.txt --constraint constraints.txt
	@$(RUN) -c 'from utils.probes.l1_path import warm_up; warm_up()' # compiled once
	@touch $@

.PHONY: demo
## demo: the main job, end to end, on real data
demo: $(STAMP)
	@RUN="$(RUN)" DEVICE="$(DEVICE)" JOBS="$(jobs)" DATA_DIR=$(call q,$(DATA_DIR)) TEXT_DIR=$(call q,$(TEXT_DIR)) \
	  RESULTS_DIR=$(call q,$(RESULTS_DIR)) FIGURES_DIR=$(call q,$(FIGURES_DIR)) ./demo.sh

.PHONY: demo-lm
## demo-lm: the same on SmolLM2-135M, a causal model
demo-lm: $(STAMP)
	@RUN="$(RUN)" DEVICE="$(DEVICE)" JOBS="$(jobs)" DATA_DIR=$(call q,$(DATA_DIR)) TEXT_DIR=$(call q,$(TEXT_DIR)) \
	  RESULTS_DIR=$(call q,$(RESULTS_DIR)) FIGURES_DIR=$(call q,$(FIGURES_DIR)) ./demo_lm.sh

.PHONY: test
## test: the test suite (offline, under 5 minutes)
test: $(STAMP)
	$(RUN) -m pytest tests utils -m "not long" --numprocesses 2 --dist loadfile $(ARGS)

.PHONY: fetch-data
## fetch-data: the 113 text datasets and the demo's model
fetch-data: $(STAMP)
	$(RUN) fetch_data.py $(folders) $(ARGS)

##@ Your SAE

.PHONY: generate-model-acts
## generate-model-acts: texts to model activations
generate-model-acts: $(STAMP)
	$(RUN) generate_model_activations.py $(common) $(setting) $(scheduler) --device $(DEVICE) $(if $(LAYERS),--layers $(LAYERS)) $(ARGS)

.PHONY: train-saes
## train-saes: train small SAEs and an untrained control
train-saes: $(STAMP)
	$(RUN) train_saes.py --model_name $(MODEL) $(folders) --device $(DEVICE) $(if $(LAYERS),--layers $(LAYERS)) $(ARGS)

.PHONY: generate-sae-acts-optimized
## generate-sae-acts-optimized: model activations to SAE activations
generate-sae-acts-optimized: $(STAMP)
	$(RUN) generate_sae_activations_optimized.py $(common) $(setting) $(scheduler) --device $(DEVICE) $(if $(LAYERS),--layers $(LAYERS)) $(ARGS)

.PHONY: train-baselines
## train-baselines: baseline probes of SETTING (normal)
train-baselines: $(STAMP)
	$(RUN) train_baselines.py $(common) $(setting) $(seeds) $(jobs) $(if $(LAYERS),--layers $(LAYERS)) $(ARGS)

.PHONY: train-sae-probes
## train-sae-probes: probes on SAE latents of SETTING (normal)
train-sae-probes: $(STAMP)
	$(RUN) train_sae_probes.py $(common) $(setting) $(seeds) $(jobs) $(if $(LAYERS),--layers $(LAYERS)) $(ARGS)

.PHONY: train-all
## train-all: baselines, SAE probes, controls, all settings
train-all: $(STAMP)
	@status=0; \
	$(RUN) train_baselines.py $(common) --setting all $(seeds) $(jobs) $(if $(LAYERS),--layers $(LAYERS)) || status=1; \
	$(RUN) train_sae_probes.py $(common) --setting all $(seeds) $(jobs) $(if $(LAYERS),--layers $(LAYERS)) \
	  --controls raw_dims pca_dims || status=1; \
	exit $$status

.PHONY: train-multi-token-probes
## train-multi-token-probes: probes on all tokens of a text
train-multi-token-probes: $(STAMP)
	$(RUN) train_multi_token_probes.py $(common) $(scheduler) --device $(DEVICE) $(if $(LAYERS),--layers $(LAYERS)) $(ARGS)

.PHONY: explain
## explain: latent cards, what the probes read and where
explain: $(STAMP)
	$(RUN) explain_probes.py $(common) --device $(DEVICE) $(ARGS)

.PHONY: export-probe
## export-probe: a kept probe of DATASETS to a folder (ARGS)
export-probe: $(STAMP)
	$(RUN) export_probe.py --model_name $(MODEL) $(folders) --dataset $(if $(DATASET),$(call q,$(DATASET)),$(DATASETS)) $(ARGS)

.PHONY: score
## score: new TEXTS with an exported PROBE
score: $(STAMP)
	@test -n $(call q,$(PROBE)) || { echo "say which: make score PROBE=folder (make export-probe writes one)" >&2; exit 2; }
	@$(RUN) score_texts.py --probe $(call q,$(PROBE)) $(if $(TEXTS),--texts $(call q,$(TEXTS))) $(folders) --device $(DEVICE) $(ARGS)

.PHONY: audit-labels
## audit-labels: rows of DATASET whose label probes deny
audit-labels: $(STAMP)
	$(RUN) -m checks.labels --model_name $(MODEL) $(folders) --dataset $(if $(DATASET),$(call q,$(DATASET)),$(DATASETS)) $(ARGS)

.PHONY: prune-latents
## prune-latents: probes on DATASET's most relevant latents, OOD
prune-latents: $(STAMP)
	$(RUN) -m checks.pruning --model_name $(MODEL) $(folders) --dataset $(if $(DATASET),$(call q,$(DATASET)),$(DATASETS)) $(ARGS)

.PHONY: transfer
## transfer: each dataset's probe on every other's texts
transfer: $(STAMP)
	$(RUN) -m checks.transfer $(common) $(ARGS)

.PHONY: visualize
## visualize: comparison, figures and report
visualize: $(STAMP)
	$(RUN) visualize.py $(common) $(setting) $(ARGS)

##@ The paper's files

.PHONY: claims
## claims: the paper's claims one by one, results/claims.md
claims: $(STAMP)
	$(RUN) -m checks.claims $(folders) $(if $(PUBLISHED),--published $(call q,$(PUBLISHED))) $(ARGS)

.PHONY: fetch-published-results
## fetch-published-results: the paper's result tables
fetch-published-results: $(STAMP)
	$(RUN) -m published.fetch_results $(folders) $(ARGS)

.PHONY: extract-data
## extract-data: unpack the paper's archives of MODEL
extract-data: $(STAMP)
	$(RUN) -m published.extract --model_name $(MODEL) $(folders) $(ARGS)

.PHONY: export-splits
## export-splits: our SAE activations as the original files
export-splits: $(STAMP)
	$(RUN) -m published.export_splits $(common) $(setting) $(ARGS)

##@ Checks

.PHONY: status
## status: what is there, what is missing, what makes it
status: $(STAMP)
	$(RUN) -m checks.status --model_name $(MODEL) $(folders) $(ARGS)

.PHONY: audit
## audit: what to distrust in the result tables of MODEL
# exit status 3: all was looked at, and a table is not what it is called; the last line says which
audit: $(STAMP)
	@$(RUN) -m checks.audit --model_name $(MODEL) $(folders) $(ARGS) || test $$? -eq 3

.PHONY: saes
## saes: what a RELEASE of SAEs reads, or all releases
saes: $(STAMP)
	$(RUN) -m checks.saes $(folders) $(if $(RELEASE),--sae_release $(RELEASE)) $(ARGS)

.PHONY: check-datasets
## check-datasets: are the texts fit to probe on
check-datasets: $(STAMP)
	$(RUN) -m checks.datasets $(folders) $(if $(DATASETS),--datasets $(DATASETS)) $(ARGS)

.PHONY: parity
## parity: our probes against reference results
parity: $(STAMP)
	$(RUN) -m checks.parity --golden $(call q,$(GOLDEN)) $(ARGS)

.PHONY: words
## words: what the words alone tell, without a model
words: $(STAMP)
	$(RUN) train_baselines.py $(common) --method text_only $(jobs)
	$(RUN) -m checks.words --model_name $(MODEL) $(folders) $(ARGS)

.PHONY: calibrate
## calibrate: SAEs of known quality: does the tool see it?
calibrate: $(STAMP)
	$(RUN) -m checks.calibrate $(folders) $(ARGS)

.PHONY: plan
## plan: what a study of a whole SAE release takes
plan: $(STAMP)
	$(RUN) -m benchmarks.plan --model_name $(MODEL) $(folders) $(if $(DATASETS),--datasets $(DATASETS)) $(if $(LAYERS),--layers $(LAYERS)) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

##@ For developers

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

.PHONY: test-faults
## test-faults: bad files, full disks, over 200 kills (30 min)
test-faults: $(STAMP)
	$(RUN) -m pytest tests/faults $(ARGS)
	$(RUN) tests/faults/crashes.py --kills $(KILLS)

.PHONY: fuzz
## fuzz: fuzz the readers of untrusted files (Linux)
fuzz: $(STAMP)
	$(RUN) -m pip install --quiet atheris
	for target in npz pickle pt; do $(RUN) tests/faults/fuzz.py $$target --minutes $(MINUTES); done

.PHONY: audit-dependencies
## audit-dependencies: known faults of the pins (needs the network)
audit-dependencies: $(STAMP)
	$(RUN) -m pip install --quiet pip-audit
	$(RUN) -m pip_audit --requirement constraints.txt --no-deps

.PHONY: benchmark
## benchmark: all our ratios, to docs/benchmarks.md
benchmark: $(STAMP)
	$(RUN) -m benchmarks.run_all $(folders) $(ARGS)

.PHONY: benchmark-generate
## benchmark-generate: the generator against the original order
benchmark-generate: $(STAMP)
	$(RUN) -m benchmarks.generate $(ARGS)

.PHONY: benchmark-models
## benchmark-models: reading activations against a plain loop
benchmark-models: $(STAMP)
	$(RUN) -m benchmarks.models $(folders) $(ARGS)

.PHONY: benchmark-probes
## benchmark-probes: our probes against the paper's procedure
benchmark-probes: $(STAMP)
	$(RUN) -m benchmarks.probes $(folders) $(if $(DATASETS),--datasets $(DATASETS)) $(ARGS)

.PHONY: benchmark-scaling
## benchmark-scaling: the SAE-probe sweep with one and two workers
benchmark-scaling: $(STAMP)
	$(RUN) -m benchmarks.scaling $(folders) $(ARGS)

.PHONY: benchmark-release
## benchmark-release: book-keeping of a made-up release, or kills
# WORKERS=4: on a Dask cluster of four workers, whose parts are killed
benchmark-release: $(STAMP)
	$(RUN) -m $(if $(WORKERS),benchmarks.reach --workers $(WORKERS),benchmarks.release) $(folders) $(ARGS)

.PHONY: benchmark-full-run
## benchmark-full-run: all 113 datasets, each stage killed once
benchmark-full-run: $(STAMP)
	$(RUN) -m benchmarks.full_run $(if $(TEXT_DIR),--text_dir $(TEXT_DIR)) $(ARGS)

.PHONY: docs
## docs: every figure in README and docs from its numbers
docs: $(STAMP)
	$(RUN) -m checks.documents $(folders) $(ARGS)

.PHONY: clean
## clean: remove caches (never data or results)
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# the old names of targets, not listed
include published/targets.mk
