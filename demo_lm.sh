#!/usr/bin/env bash
# `make demo-lm`: a causal language model read as the paper reads one, at the last token of each text, through the same
# scripts and flags. What is done already is not done again.
source "$(dirname "$0")/demo_prelude.sh"

model=smollm2-135m
datasets=(5_hist_fig_ismale 6_hist_fig_isamerican 7_hist_fig_ispolitician 87_glue_cola 92_glue_sst2
  119_us_state_TX 126_art_type_book 155_athlete_sport_basketball)
ood=(5_hist_fig_ismale 6_hist_fig_isamerican 7_hist_fig_ispolitician 87_glue_cola)
common=(--model_name "$model" ${folders[@]+"${folders[@]}"})
sizes=(20 53 143)

stage 1. fetch texts and SmolLM2-135M
"$RUN" fetch_data.py --what texts smollm2 ${folders[@]+"${folders[@]}"}
stage 2. texts to model activations, two layers, last token
"$RUN" generate_model_activations.py "${common[@]}" --datasets "${datasets[@]}" --max_rows 1500 --device "$DEVICE"
stage 3. train SAEs on the token activations of other texts
"$RUN" train_saes.py "${common[@]}" --layers 14 20 --widths 2048 --n_samples 100000 --max_characters 300 --device "$DEVICE"
stage 4. model activations to SAE activations, the SAEs and their twins
"$RUN" generate_sae_activations_optimized.py "${common[@]}" --datasets "${datasets[@]}" --setting all --device "$DEVICE"
stage 5. baseline probes and words alone
kept=(--keep_probes all) # with the scores of test rows: the report's intervals need them
fast=(--method logreg,pca,knn,mlp,diff_of_means,lda,text_only)
"$RUN" train_baselines.py "${common[@]}" --datasets "${datasets[@]}" --setting normal "${fast[@]}" "${kept[@]}" ${jobs[@]+"${jobs[@]}"}
"$RUN" train_baselines.py "${common[@]}" --datasets "${datasets[@]}" --setting scarcity --conditions "${sizes[@]}" "${fast[@]}" ${jobs[@]+"${jobs[@]}"}
"$RUN" train_baselines.py "${common[@]}" --datasets "${ood[@]}" --setting OOD ${jobs[@]+"${jobs[@]}"}
stage 6. SAE probes and controls
controls=(--controls all)
"$RUN" train_sae_probes.py "${common[@]}" --datasets "${datasets[@]}" --setting normal "${controls[@]}" "${kept[@]}" ${jobs[@]+"${jobs[@]}"}
"$RUN" train_sae_probes.py "${common[@]}" --layers 14 --datasets "${datasets[@]}" --setting scarcity --conditions "${sizes[@]}" "${controls[@]}" ${jobs[@]+"${jobs[@]}"}
"$RUN" train_sae_probes.py "${common[@]}" --layers 14 --datasets "${ood[@]}" --setting OOD "${controls[@]}" ${jobs[@]+"${jobs[@]}"}
stage 7. latent cards: what the probes read, and on which texts
"$RUN" explain_probes.py "${common[@]}" --datasets "${datasets[@]}" --tokens --device "$DEVICE"
printf '\ndemo-lm: %d s up to here\n' $((SECONDS - started))
stage 8. comparison, figures, report
"$RUN" visualize.py "${common[@]}" --datasets "${datasets[@]}"
