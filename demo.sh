#!/usr/bin/env bash
# `make demo`: the main job on real data, through the same scripts and flags as any other model.
# What is done already is not done again, so a second run takes seconds. Each stage can be run alone, as it stands here.
source "$(dirname "$0")/demo_prelude.sh"

model=all-MiniLM-L6-v2
# short texts on which a model is needed, and one (96_spam_is) that words alone solve
datasets=(5_hist_fig_ismale 6_hist_fig_isamerican 7_hist_fig_ispolitician 87_glue_cola 92_glue_sst2 96_spam_is
  119_us_state_TX 126_art_type_book 155_athlete_sport_basketball)
ood=(5_hist_fig_ismale 6_hist_fig_isamerican 7_hist_fig_ispolitician 87_glue_cola)
common=(--model_name "$model" ${folders[@]+"${folders[@]}"})
sizes=(20 143)

stage 1. fetch texts and language model
"$RUN" fetch_data.py ${folders[@]+"${folders[@]}"}
stage 2. texts to model activations, two layers
"$RUN" generate_model_activations.py "${common[@]}" --datasets "${datasets[@]}" --max_rows 1500 --device "$DEVICE"
stage 3. train an SAE on vectors of other texts
"$RUN" train_saes.py "${common[@]}" --layers 2 --widths 1024 --max_characters 300 --device "$DEVICE"
stage 4. model activations to SAE activations, the SAE and its twins
"$RUN" generate_sae_activations_optimized.py "${common[@]}" --datasets "${datasets[@]}" --setting all --device "$DEVICE"
stage 5. baseline probes and words alone
both=(--protocol paper nested) # of few rows the second takes five times as long: normal alone
kept=(--keep_probes all) # with the scores of test rows: the report's intervals need them
"$RUN" train_baselines.py "${common[@]}" --datasets "${datasets[@]}" --setting normal --layers 5 --method logreg,pca,knn,mlp,diff_of_means,lda ${jobs[@]+"${jobs[@]}"}
"$RUN" train_baselines.py "${common[@]}" --datasets "${datasets[@]}" --setting normal --layers 2 "${both[@]}" "${kept[@]}" ${jobs[@]+"${jobs[@]}"}
"$RUN" train_baselines.py "${common[@]}" --datasets "${datasets[@]}" --setting scarcity --conditions "${sizes[@]}" ${jobs[@]+"${jobs[@]}"}
"$RUN" train_baselines.py "${common[@]}" --datasets "${ood[@]}" --setting OOD ${jobs[@]+"${jobs[@]}"}
stage 6. SAE probes and controls
controls=(--controls all)
"$RUN" train_sae_probes.py "${common[@]}" --datasets "${datasets[@]}" --setting normal "${both[@]}" "${controls[@]}" "${kept[@]}" ${jobs[@]+"${jobs[@]}"}
"$RUN" train_sae_probes.py "${common[@]}" --datasets "${datasets[@]}" --setting scarcity --conditions "${sizes[@]}" "${controls[@]}" ${jobs[@]+"${jobs[@]}"}
"$RUN" train_sae_probes.py "${common[@]}" --datasets "${ood[@]}" --setting OOD "${controls[@]}" ${jobs[@]+"${jobs[@]}"}
stage 7. latent cards: what the probes read, and on which texts
"$RUN" explain_probes.py "${common[@]}" --datasets "${datasets[@]}" --tokens --device "$DEVICE"
printf '\ndemo: %d s up to here\n' $((SECONDS - started))
stage 8. comparison, figures, report
"$RUN" visualize.py "${common[@]}" --datasets "${datasets[@]}"
