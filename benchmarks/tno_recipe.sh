#!/usr/bin/env bash
# The search for the recipe of tno_scenes and what an unseen scene costs (tables of docs/results.md), on one GPU: about
#   four minutes. DATA: folder of TNO's scene patches (benchmarks/tno_scenes.py). WEIGHTS: timm, or a file of
#   vit_small_patch14_dinov2. OUT: folder of the results. PARALLEL: runs at once. LIMIT: seconds of each part.
set -euo pipefail
DATA=${DATA:-data/tno_scenes}
OUT=${OUT:-runs/tno_recipe}
export OMP_NUM_THREADS=1
for part in ${PARTS:-search shift}; do
  options=()
  [ "$part" = search ] || options=(--shift --config configs/trireid/tno_scenes/recipe.yaml)
  "${PYTHON:-python3}" benchmarks/tno_recipe.py --root "$DATA" --out "$OUT/$part" --parallel "${PARALLEL:-12}" \
    --limit "${LIMIT:-200}" "${options[@]}" "model.backbone.pretrained=${WEIGHTS:-timm}" "$@"
done
