# shellcheck shell=bash
# What demo.sh and demo_lm.sh begin with: the interpreter, the device, worker flags and folders that make hands on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
started=$SECONDS

RUN=${RUN:-.venv/bin/python}
DEVICE=${DEVICE:-auto}
read -r -a jobs <<<"${JOBS:-}"
folders=()
for name in data text results figures; do
  folder=$(tr '[:lower:]' '[:upper:]' <<<"$name")_DIR
  [[ -z ${!folder:-} ]] || folders+=("--${name}_dir" "${!folder}")
done
# no stage may look for anything on a model hub
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

stage() { printf '\n== %s\n' "$*"; }
