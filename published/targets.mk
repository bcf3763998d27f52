# Targets of the reproduction that this project continues (mganderson-goodfire/SAE-Probes), under
# their old names: each does the same work by our targets, or says in one line what to type.

DATASET ?=
METHOD ?=

# one step each, in order: what a step reads, the step before has made
define steps
	@for step in $(1); do $(MAKE) --no-print-directory $$step || exit; done
endef

.PHONY: generate-activations generate-sae-acts generate-sae-acts-all generate-multi-token
generate-activations:
	+$(call steps,generate-model-acts generate-sae-acts-optimized)
generate-sae-acts: generate-sae-acts-optimized
generate-sae-acts-all:
	@$(MAKE) --no-print-directory generate-sae-acts-optimized SETTING=all
generate-multi-token: train-multi-token-probes

.PHONY: train-probes train-all-probes train-all-baselines train-all-sae-probes train-multi-token
train-probes:
	+$(call steps,train-baselines train-sae-probes)
train-all-probes: train-all
train-all-baselines:
	@$(MAKE) --no-print-directory train-baselines SETTING=all
train-all-sae-probes:
	@$(MAKE) --no-print-directory train-sae-probes SETTING=all
train-multi-token: train-multi-token-probes

.PHONY: train-baseline-method train-layer train-single-dataset
train-baseline-method:
	@test -n "$(METHOD)" || { echo "say which: make $@ METHOD=logreg"; exit 2; }
	@$(MAKE) --no-print-directory train-baselines ARGS="--method $(METHOD) $(ARGS)"
train-layer:
	@test -n "$(LAYERS)" || { echo "say which: make $@ LAYER=20"; exit 2; }
	@$(MAKE) --no-print-directory train-baselines
train-single-dataset:
	@test -n "$(DATASET)" || { echo "say which: make $@ DATASET=100_news_fake"; exit 2; }
	@$(MAKE) --no-print-directory train-sae-probes DATASETS="$(DATASET)"

.PHONY: analyze plot-all plot-normal plot-combined plot-ood plot-llama plot-improvements
.PHONY: plot-k-vs-auc plot-multi-token-results
analyze plot-all plot-combined plot-k-vs-auc plot-multi-token-results: visualize
plot-normal:
	@$(MAKE) --no-print-directory visualize SETTING=normal
plot-ood:
	@$(MAKE) --no-print-directory visualize SETTING=OOD
plot-llama:
	@$(MAKE) --no-print-directory visualize MODEL=llama-3.1-8b
plot-improvements: visualize

.PHONY: reproduce-from-scratch reproduce-from-precomputed reproduce-minimal
reproduce-from-scratch:
	+$(call steps,fetch-data generate-activations train-all visualize)
reproduce-from-precomputed:
	+$(call steps,fetch-data extract-data generate-sae-acts-optimized train-all visualize)
reproduce-minimal:
	+$(call steps,fetch-published-results visualize)

.PHONY: combine-results
combine-results: $(STAMP)
	$(RUN) -m published.combine_runs --model_name $(MODEL) $(folders) $(ARGS)

.PHONY: watch-training
watch-training: status

# what has no equal here: one line each, and exit status 2
instead = @echo '$@: $(1)'; exit 2
.PHONY: all train-dataset-range plot-ai-human plot-rebuttal clean-results
.PHONY: clean-cache test-setup check-gpu investigate-cola investigate-aimade
all:
	$(call instead,make demo does the whole job on small data)
train-dataset-range:
	$(call instead,make train-sae-probes DATASETS="100_news_fake 105_click_bait" N_JOBS=4)
plot-ai-human investigate-aimade:
	$(call instead,make check-datasets DATASETS=110_aimade_humangpt3 shows what solves it)
investigate-cola:
	$(call instead,make check-datasets DATASETS=87_glue_cola shows what is in it)
plot-rebuttal:
	$(call instead,its figures are not made here; make visualize draws those of the paper)
clean-results:
	$(call instead,results are never removed by make; --overwrite makes a table again)
clean-cache: clean
test-setup:
	$(call instead,make test checks the whole set-up)
check-gpu:
	$(call instead,DEVICE=auto takes a GPU where there is one; each run prints the device it uses)
