#!/usr/bin/env bash
# Missing modalities on real pixels (TNO): one model for all subsets of the modalities, with and without modality
# dropout and zero-filling, against one model per subset. Finished runs are not repeated. Arguments: KEY=VALUE for every
# run. Needs a GPU, or SMALL=1.
# CONFIG: another recipe, with its own head (the first one gets SDTPS with all patches).
# DATA: the tree of benchmarks/tno_scenes.py. WEIGHTS: timm, or a file of vit_small_patch14_dinov2.
# OUT: folder of all runs. PARALLEL: runs at once, over all GPUs. SEEDS: how many. CELLS: a file of cells.
# SMALL=1: a tiny ViT of one block for one epoch, to try the script on a CPU.
set -euo pipefail
SMALL=${SMALL:-}
OUT=${OUT:-runs/missing_tno${SMALL:+_small}}
DATA=${DATA:-data/tno_scenes}
PARALLEL=${PARALLEL:-1}
TRIREID="${PYTHON:-python3} -m trireid"
settings=(train.maps_every=0 "train.trackers=[]" data.augmentation.blinding=0.0) # blinding: as the tables were measured
[ -n "${CONFIG:-}" ] || settings+=(model.head=sdtps model.sdtps.preset=reference model.sdtps.sparse_ratio=1.0)
if [ -n "$SMALL" ]; then
  settings+=(model.backbone.name=tiny model.backbone.pretrained=none model.backbone.patch_size=28 model.backbone.width=32
    model.backbone.depth=1 model.backbone.num_heads=2 train.epochs=1 train.warmup_epochs=0 train.evaluate_every=1
    train.checkpoint_every=1)
else
  settings+=("model.backbone.pretrained=${WEIGHTS:-timm}")
fi
$TRIREID ablate --config "${CONFIG:-configs/trireid/tno_scenes/baseline.yaml}" "${settings[@]}" \
  --cells "${CELLS:-benchmarks/missing_subsets.yaml}" --seeds "${SEEDS:-3}" --parallel "$PARALLEL" --out "$OUT" \
  --no-costs "data.root=$DATA" "$@" >/dev/null || echo "not complete, run again" >&2
${PYTHON:-python3} benchmarks/missing.py "$OUT" --parallel "$PARALLEL" --matrix
