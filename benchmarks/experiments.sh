#!/usr/bin/env bash
# The tables of heads and of slimming in docs/results.md; finished runs are not repeated. Arguments: KEY=VALUE.
# NAMES: folder with RGBNT201_train.txt and RGBNT201_test.txt. LANDSAT: folder of landsat_places.
# WEIGHTS: timm, or a file of vit_small_patch14_dinov2. OUT: folder of all runs. PARALLEL: runs at once, over all GPUs.
# GRIDS: some of the file names below. SEEDS: how many. LIMIT: seconds after which a grid is interrupted.
set -euo pipefail
NAMES=${NAMES:?folder of RGBNT201_train.txt and RGBNT201_test.txt}
LANDSAT=${LANDSAT:-../shared/data/landsat_places}
WEIGHTS=${WEIGHTS:-timm}
OUT=${OUT:-runs/experiments}
DATA=${DATA:-data/synthetic_hard}
TRIREID="${PYTHON:-python3} -m trireid"
[ -d "$DATA" ] || $TRIREID synth --layout rgbnt201 --names "$NAMES" --difficulty hard --size 256x128 \
  --out "$DATA" --workers "$(nproc)"
for grid in ${GRIDS:-slimming heads cuts_and_heads landsat_slimming landsat_heads}; do
  case $grid in
    landsat_*) settings=(--config configs/trireid/landsat_places/sdtps.yaml "data.root=$LANDSAT" train.device=auto) ;;
    *) settings=(--config configs/trireid/synthetic/vit_small.yaml "data.root=$DATA" "model.backbone.pretrained=$WEIGHTS") ;;
  esac
  cells=benchmarks/$grid.yaml
  [ -f "$cells" ] || cells=benchmarks/${grid#landsat_}.yaml
  timeout --signal=INT "${LIMIT:-0}" $TRIREID ablate "${settings[@]}" --cells "$cells" --seeds "${SEEDS:-3}" \
    --parallel "${PARALLEL:-1}" --out "$OUT/$grid" --no-costs data.cache=disk "$@" ||
    echo "$grid: not complete, run again" >&2
done
