#!/usr/bin/env bash
# Three modalities against each single one, on the small synthetic hard set: docs/results.md. Can be resumed.
# NAMES: folder with RGBNT201_train.txt and RGBNT201_test.txt. OUT: folder of all runs. PARALLEL: runs at once.
set -euo pipefail
NAMES=${NAMES:?folder of RGBNT201_train.txt and RGBNT201_test.txt}
DATA=${DATA:-data/synthetic_hard_small}
TRIREID="${PYTHON:-python3} -m trireid"
[ -d "$DATA" ] || $TRIREID synth --layout rgbnt201 --names "$NAMES" --difficulty hard --size 128x64 \
  --out "$DATA" --workers "$(nproc)"
$TRIREID ablate --config configs/trireid/synthetic/hard.yaml --vary 'data.modalities=[rgb,nir,tir],[rgb],[nir],[tir]' \
  --seeds "${SEEDS:-3}" --parallel "${PARALLEL:-1}" --out "${OUT:-runs/hard}/modalities" --no-costs "data.root=$DATA" "$@"
