#!/usr/bin/env bash
# Seconds per epoch of a ViT-B/16 on a synthetic set with RGBNT201's file names, evaluation included:
#   docs/performance.md.
# NAMES: folder with RGBNT201_train.txt and RGBNT201_test.txt. OUT: folder of the runs. EPOCHS: per run. WAYS: plain,
#   compiled, recorded.
set -euo pipefail
NAMES=${NAMES:?folder of RGBNT201_train.txt and RGBNT201_test.txt}
OUT=${OUT:-runs/epochs}
DATA=${DATA:-data/synthetic_hard}
EPOCHS=${EPOCHS:-6}
PYTHON=${PYTHON:-python3}
[ -d "$DATA" ] || $PYTHON -m trireid synth --layout rgbnt201 --names "$NAMES" --difficulty hard --size 256x128 \
  --out "$DATA" --workers "$(nproc)"
HALF="model.slimming=[{after_block: 4, keep_ratio: 0.5}]"
run() {
  local name=$1
  shift
  $PYTHON -m trireid train --config configs/trireid/rgbnt201/baseline.yaml "data.root=$DATA" data.batch_size=64 \
    model.backbone.pretrained=none "train.epochs=$EPOCHS" train.warmup_epochs=0 train.evaluate_every=1 \
    train.checkpoint_every=1000 "output=$OUT/$name" "$@" >"$OUT/$name.log" 2>&1 || tail -n 5 "$OUT/$name.log"
  $PYTHON - "$OUT/$name/metrics.jsonl" "$name" <<'PY'
import json, statistics, sys

epochs = [json.loads(line) for line in open(sys.argv[1])][2:]
of = lambda name: statistics.median(epoch[name] for epoch in epochs)
rate = epochs[0]["num_triplets"] / of("step_seconds")
print(f"{sys.argv[2]:32} {of('seconds'):6.2f} s per epoch, data {of('data_seconds'):5.2f} s, {rate:6.0f} triplets/s in training")
PY
}
mkdir -p "$OUT"
for way in ${WAYS:-plain compiled recorded}; do
  case $way in
    plain) options=(train.compile=false train.cuda_graph=false) ;;
    compiled) options=(train.compile=true train.cuda_graph=false) ;;
    recorded) options=(train.compile=true train.cuda_graph=true) ;;
  esac
  run "dense-$way" model.slimming=[] "${options[@]}"
  run "half-after-4-$way" "$HALF" "${options[@]}"
done
