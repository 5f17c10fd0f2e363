#!/usr/bin/env bash
# Missing modalities with and without modality dropout: docs/results.md. Finished runs are not repeated.
# Arguments: KEY=VALUE for every run. Variables:
# NAMES: folder with RGBNT201_train.txt and RGBNT201_test.txt. DATA: the images (written if they do not exist).
# WEIGHTS: timm, or a file of vit_small_patch14_dinov2. OUT: folder of all runs. PARALLEL: runs at once, over all GPUs.
# SEEDS: how many. CELLS: a file of cells. SMALL=1: 60 identities of 64 x 32 pixels and a tiny ViT, for a CPU; no NAMES.
set -euo pipefail
SMALL=${SMALL:-}
OUT=${OUT:-runs/missing${SMALL:+_small}}
DATA=${DATA:-data/synthetic_hard${SMALL:+_60}}
PARALLEL=${PARALLEL:-1}
TRIREID="${PYTHON:-python3} -m trireid"
if [ -n "$SMALL" ]; then
  made=(--ids 60 --cameras 3 --per-camera 4 --size 64x32)
  settings=(--config configs/trireid/synthetic/hard.yaml "data.image_size=[64, 32]" data.batch_size=32
    data.augmentation.padding=3 model.backbone.width=96 model.backbone.depth=4 model.backbone.num_heads=4
    train.epochs=40 train.evaluate_every=40 train.checkpoint_every=40)
else
  made=(--names "${NAMES:?folder of RGBNT201_train.txt and RGBNT201_test.txt}" --size 256x128)
  settings=(--config configs/trireid/synthetic/vit_small.yaml "model.backbone.pretrained=${WEIGHTS:-timm}")
fi
[ -d "$DATA" ] || $TRIREID synth --layout rgbnt201 --difficulty hard "${made[@]}" --out "$DATA" --workers "$(nproc)"
$TRIREID ablate "${settings[@]}" --cells "${CELLS:-benchmarks/missing.yaml}" --seeds "${SEEDS:-3}" \
  --parallel "$PARALLEL" --out "$OUT" --no-costs "data.root=$DATA" data.cache=disk "$@" >/dev/null ||
  echo "not complete, run again" >&2
${PYTHON:-python3} benchmarks/missing.py "$OUT" --parallel "$PARALLEL"
