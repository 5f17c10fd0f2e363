#!/usr/bin/env bash
# Every head on four sets, and what centring does to each: tables of docs/results.md. Needs a GPU. Finished runs are not
#   repeated. Arguments: KEY=VALUE for every run.
# SETS: some of tno landsat s2 hard. TNO, LANDSAT, S2, HARD: their folders (HARD: trireid synth --difficulty hard with the
#   names of RGBNT201, 256x128). WEIGHTS: timm, or a file of vit_small_patch14_dinov2. OUT: folder of all runs.
# PARALLEL: runs at once, over all GPUs. SEEDS: how many (TNO: 5). LIMIT: seconds of a set. CELLS: a file of cells.
set -euo pipefail
OUT=${OUT:-runs/centring}
WEIGHTS=${WEIGHTS:-timm}
TRIREID="${PYTHON:-python3} -m trireid"
ours=(train.compile=false train.maps_every=0 "train.trackers=[]" train.device=auto)
for set in ${SETS:-tno landsat s2 hard}; do
  seeds=${SEEDS:-3} rules=camera,cross_camera cells=${CELLS:-benchmarks/centring.yaml}
  landsat=(--config configs/trireid/landsat_places/sdtps.yaml train.evaluate_every=35 train.checkpoint_every=35)
  case $set in
    tno) seeds=${SEEDS:-5} settings=(--config configs/trireid/tno_scenes/recipe.yaml "data.root=${TNO:-data/tno_scenes}"
      "model.backbone.pretrained=$WEIGHTS" data.augmentation.blinding=0.0) ;; # as the tables were measured
    landsat) settings=("${landsat[@]}" "data.root=${LANDSAT:-../shared/data/landsat_places}") ;;
    s2) settings=("${landsat[@]}" "data.root=${S2:-../shared/data/s2_places}" "data.image_size=[12, 12]"
      model.backbone.patch_size=3 data.augmentation.padding=2) ;;
    hard) rules=camera settings=(--config configs/trireid/synthetic/vit_small.yaml "data.root=${HARD:-data/synthetic_hard}"
      "model.backbone.pretrained=$WEIGHTS" data.cache=disk) ;;
  esac
  timeout --signal=INT "${LIMIT:-0}" $TRIREID ablate "${settings[@]}" "${ours[@]}" --cells "$cells" --seeds "$seeds" \
    --parallel "${PARALLEL:-1}" --out "$OUT/$set" --no-costs "$@" >/dev/null || echo "$set: not complete, run again" >&2
  ${PYTHON:-python3} benchmarks/centring.py "$OUT/$set" --rules "$rules" --out "$OUT/$set/centring.json" |
    tee "$OUT/$set/centring.md"
done
