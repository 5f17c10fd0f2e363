#!/usr/bin/env bash
# The tables of SDTPS and of deep cuts on real pixels (docs/results.md), on one GPU; finished runs are not repeated.
# TNO: folder of tno_scenes. LANDSAT: folder of landsat_places. WEIGHTS: timm, or a file of vit_small_patch14_dinov2.
# CONFIG: settings of the runs on TNO. OUT: folder of all runs. PARALLEL: runs at once. PARTS: some of sdtps, cuts,
#   ratio, fusion, landsat. SEEDS: how many, of landsat and cuts 3 at most. LIMIT: seconds after which a grid is
#   interrupted. COSTS=no: without the time of each cell (of an idle GPU).
# Arguments: KEY=VALUE for all runs.
set -euo pipefail
TNO=${TNO:-data/tno_scenes}
LANDSAT=${LANDSAT:-data/landsat_places}
WEIGHTS=${WEIGHTS:-timm}
CONFIG=${CONFIG:-configs/trireid/tno_scenes/recipe.yaml}
OUT=${OUT:-runs/sdtps_tno}
SEEDS=${SEEDS:-5}
PYTHON=${PYTHON:-python3}
FEW=$((SEEDS < 3 ? SEEDS : 3))
BENCH=${BENCH:---batch-size 128 --repeats 10 --warmup 3}
export COLUMNS=200
tno=(--config "$CONFIG" "data.root=$TNO" "model.backbone.pretrained=$WEIGHTS"
  data.augmentation.blinding=0.0) # the cells that train blinded say so
fast=(--no-costs --parallel "${PARALLEL:-1}" data.cache=disk data.workers=0 train.maps_every=0 'train.trackers=[]')
mkdir -p "$OUT"
grid() { # name, cells, seeds, then settings
  local name=$1 cells=$2 seeds=$3 start=$SECONDS
  shift 3
  timeout --signal=INT "${LIMIT:-0}" "$PYTHON" -m trireid ablate "$@" --cells "$cells" --seeds "$seeds" \
    --out "$OUT/$name" "${fast[@]}" >"$OUT/$name.txt" 2>&1 || echo "$name: not complete, run again" >&2
  echo "$name: $((SECONDS - start)) s"
}
costs() { # name, cells
  [ "${COSTS:-yes}" = yes ] || return 0
  timeout "${LIMIT:-0}" "$PYTHON" -m trireid bench "${tno[@]}" model.backbone.pretrained=none --cells "$2" \
    --mode inference --out "$OUT/$1_costs.json" $BENCH >"$OUT/$1_costs.txt" 2>&1 || rm -f "$OUT/$1_costs.json"
}
table() { # name, controls, then options
  local name=$1 against=$2
  shift 2
  [ ! -f "$OUT/${name}_costs.json" ] || set -- "$@" --costs "$OUT/${name}_costs.json"
  for rule in camera cross_camera; do # the own capture as distractors, or the other capture alone
    echo "## $name, feature head, $rule"
    "$PYTHON" benchmarks/paired.py "$OUT/$name" --against "$against" --exclude "$rule" "$@" \
      --parallel "${PARALLEL:-1}" \
      --out "$OUT/${name}_$rule.json" || true
  done
}
for part in ${PARTS:-sdtps cuts ratio fusion landsat}; do
  case $part in
    sdtps)
      grid sdtps benchmarks/sdtps_tno.yaml "$SEEDS" "${tno[@]}" model.sdtps.preset=reference "$@"
      costs sdtps benchmarks/sdtps_tno.yaml
      table sdtps "HDM + ATMoE;cells, all;cells, random half" --scene Marne_15
      ;;
    cuts)
      grid cuts benchmarks/deep_cuts_tno.yaml "$FEW" "${tno[@]}" model.sdtps.preset=reference "$@"
      costs cuts benchmarks/deep_cuts_tno.yaml
      table cuts "dense;half after 4, random" --scene Marne_15
      "$PYTHON" benchmarks/dropped_places.py "$OUT"/cuts/half_after_4*/seed1/ || true
      "$PYTHON" -m trireid show patches "$OUT/cuts/half_after_4_consensus/seed1" --ids 000144,000121 --n 2 \
        --out "$OUT/pictures" >"$OUT/pictures.txt" 2>&1 || true
      ;;
    ratio)
      grid ratio benchmarks/ratio_tno.yaml "$FEW" "${tno[@]}" model.sdtps.preset=reference data.val_ids=24 "$@"
      for cell in scored_after_4 scored_after_6; do
        echo "## ratio, $cell"
        "$PYTHON" benchmarks/choose_ratio.py "$OUT/ratio/$cell"/seed*/ --out "$OUT/$cell.json" || true
      done
      ;;
    fusion)
      grid fusion benchmarks/fusion_tno.yaml "$SEEDS" "${tno[@]}" model.sdtps.preset=reference \
        data.augmentation.blinding=0.3 "$@"
      table fusion "cells, all;cells, all, fused" --scene Marne_15 --scene Movie_12 --adaptive-fusion 4
      ;;
    landsat)
      grid landsat benchmarks/landsat_cells.yaml "$FEW" --config configs/trireid/landsat_places/sdtps.yaml \
        "data.root=$LANDSAT" train.device=auto "$@"
      table landsat "HDM + ATMoE;cells, all"
      ;;
  esac
done
