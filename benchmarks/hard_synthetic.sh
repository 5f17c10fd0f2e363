#!/usr/bin/env bash
# Writes the synthetic hard set and runs the grids of docs/results.md; what is finished is not run again.
# NAMES: folder with RGBNT201_train.txt and RGBNT201_test.txt. OUT: folder of all runs. PARALLEL: runs at a time.
set -euo pipefail
NAMES=${NAMES:?folder of RGBNT201_train.txt and RGBNT201_test.txt}
OUT=${OUT:-runs/hard}
PARALLEL=${PARALLEL:-1}
SEEDS=${SEEDS:-3}
DATA=${DATA:-data/synthetic_hard}
TRIREID="${PYTHON:-python3} -m trireid"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[ -d "$DATA" ] || $TRIREID synth --layout rgbnt201 --names "$NAMES" --difficulty hard --size 128x64 \
  --out "$DATA" --workers "$(nproc)"
common=("data.root=$DATA" "$@")
for grid in ${GRIDS:-modalities heads slimming}; do
  if [ "$grid" = modalities ]; then
    cells=(--vary 'data.modalities=[rgb,nir,tir],[rgb],[nir],[tir]')
  else
    cells=(--cells "benchmarks/hard_$grid.yaml")
  fi
  $TRIREID ablate --config configs/synthetic/hard.yaml "${cells[@]}" --seeds "$SEEDS" --parallel "$PARALLEL" \
    --out "$OUT/$grid" --no-costs "${common[@]}"
done
