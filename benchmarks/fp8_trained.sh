#!/usr/bin/env bash
# What fp8 costs trained runs (docs/performance.md): trains a ViT-S on the synthetic set and on TNO's scene patches,
#   with and without cuts, then compares fp32, bf16 and fp8 of each run (benchmarks/fp8_accuracy.py). About five minutes
#   on one GPU; finished runs are not repeated, and what is done after each part is in OUT/fp8_trained.json.
# NAMES: folder with RGBNT201_train.txt and RGBNT201_test.txt. HARD: folder of the synthetic set, made where missing.
# TNO: folder of tno_scenes. WEIGHTS: timm, or a file of vit_small_patch14_dinov2. OUT: folder of runs and results.
# PARALLEL: runs at once, each with WORKERS (2) that decode. SEEDS: how many. PARTS: some of tno, synthetic.
# LIMIT: seconds after which the training of a part is interrupted. DEVICE: cpu only tries the script.
# Arguments: KEY=VALUE for all runs.
set -euo pipefail
HARD=${HARD:-data/synthetic_hard}
TNO=${TNO:-data/tno_scenes}
OUT=${OUT:-runs/fp8}
PYTHON=${PYTHON:-python3}
PARALLEL=${PARALLEL:-6}
export COLUMNS=200 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fast=(--no-costs --parallel "$PARALLEL" "model.backbone.pretrained=${WEIGHTS:-timm}" "train.device=${DEVICE:-auto}"
  data.cache=disk "data.workers=${WORKERS:-2}" train.maps_every=0 'train.trackers=[]')
for part in ${PARTS:=tno synthetic}; do
  if [ "$part" != tno ] && [ "$part" != synthetic ]; then
    echo "PARTS has $part: allowed are tno and synthetic" >&2
    exit 2
  fi
done
mkdir -p "$OUT"
folders=()
failed=0
report() { # what did not end well, and the last lines of its output
  echo "$1 ($2):" >&2
  tail -n 5 "$2" >&2
  failed=1
}
for part in $PARTS; do
  start=$SECONDS
  case $part in
    tno) settings=(--config "${TNO_CONFIG:-configs/trireid/tno_scenes/recipe.yaml}" "data.root=$TNO"
      data.augmentation.blinding=0.0) ;; # as the tables were measured
    synthetic)
      if [ ! -d "$HARD" ]; then
        "$PYTHON" -m trireid synth --layout rgbnt201 --names "${NAMES:?folder of RGBNT201_train.txt and _test.txt}" \
          --difficulty hard --size 256x128 --out "$HARD" --workers "$(nproc)" >"$OUT/synth.txt" 2>&1
        echo "$HARD: $((SECONDS - start)) s"
      fi
      settings=(--config configs/trireid/synthetic/vit_small.yaml "data.root=$HARD")
      ;;
  esac
  timeout --signal=INT "${LIMIT:-0}" "$PYTHON" -m trireid ablate "${settings[@]}" --cells "benchmarks/fp8_$part.yaml" \
    --seeds "${SEEDS:-3}" --out "$OUT/$part" "${fast[@]}" "$@" >"$OUT/$part.txt" 2>&1 ||
    report "$part: not complete, run again" "$OUT/$part.txt"
  echo "$part: $((SECONDS - start)) s"
  folders+=("$OUT/$part")
  "$PYTHON" benchmarks/fp8_accuracy.py "${folders[@]}" --parallel "$PARALLEL" --device "${DEVICE:-cuda}" \
    --out "$OUT/fp8_trained.json" >"$OUT/fp8_trained.txt" 2>&1 || {
    echo "$part: comparison not complete" >&2
    failed=1
  }
  echo "$part with its comparison: $((SECONDS - start)) s"
  tail -n 60 "$OUT/fp8_trained.txt"
done
exit "$failed"
