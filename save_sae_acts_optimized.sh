#!/usr/bin/env bash
# SAE activations of all settings for one model: ./save_sae_acts_optimized.sh [MODEL] [FLAGS of the generator …]
# One run serves every setting: scarcity, class imbalance and label noise draw their rows from the normal files.
set -euo pipefail
cd "$(dirname "$0")"
model=gemma-2-9b
if [[ $# -gt 0 && $1 != --* ]]; then
  model=$1
  shift
fi
exec "${PYTHON:-.venv/bin/python}" generate_sae_activations_optimized.py --model_name "$model" --setting all "$@"
