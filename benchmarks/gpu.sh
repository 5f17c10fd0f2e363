#!/usr/bin/env bash
# Measures the tables of docs/performance.md on one GPU, the most important first; about eight minutes with compilation.
# NAMES: folder with RGBNT201_train.txt and RGBNT201_test.txt. OUT: folder of the results and the runs.
# FLAGS, BATCH, REPEATS: options of `trireid bench`. A part that takes longer than its limit is stopped, and the next
#   begins.
set -uo pipefail
NAMES=${NAMES:?folder of RGBNT201_train.txt and RGBNT201_test.txt}
OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python3}
FLAGS=${FLAGS---compile --cuda-graph}
export DATA=${DATA:-data/synthetic_hard} NAMES PYTHON COLUMNS=200
mkdir -p "$OUT"
part() {
  local name=$1 limit=$2
  shift 2
  echo "== $name, $SECONDS s after the start"
  timeout "$limit" "$@" >"$OUT/$name.txt" 2>&1 || echo "$name: not complete (exit code $?)"
  tail -n 14 "$OUT/$name.txt"
}
bench() {
  local name=$1 limit=$2
  shift 2
  # shellcheck disable=SC2086
  part "$name" "$limit" "$PYTHON" -m trireid bench --config configs/trireid/rgbnt201/baseline.yaml model.backbone.pretrained=none \
    --mode inference --batch-size "${BATCH:-128}" --repeats "${REPEATS:-30}" --warmup 5 --out "$OUT/$name.json" $FLAGS "$@"
}
bench cuts 150 --cells benchmarks/cost_cuts.yaml
part epochs 180 env OUT="$OUT/epochs" WAYS=recorded EPOCHS=8 bash benchmarks/epochs.sh
part ranking 90 "$PYTHON" benchmarks/ranking.py --device "${DEVICE:-cuda}" --literal none --large 100000 --out "$OUT/ranking.json"
bench heads 150 --cells benchmarks/cost_heads.yaml
