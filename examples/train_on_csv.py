"""Train on images listed in a CSV table, and print the metrics.

    python examples/train_on_csv.py my_data.csv --out runs/mine
    python examples/train_on_csv.py                        # without a table: a small synthetic one

A small ViT from scratch on the CPU, so that it runs anywhere in a minute. For results that count take
configs/trireid/rgbnt201/slimmed.yaml, which starts from pretrained weights.
"""

import argparse
import csv
from pathlib import Path

import trireid

SETTINGS = [
    "data.format=csv",
    "data.image_size=[64, 32]",
    "data.batch_size=32",
    "data.num_instances=4",
    "data.augmentation.padding=3",
    "model.backbone.name=tiny",
    "model.backbone.pretrained=none",
    "model.sdtps.preset=sound",
    "train.device=cpu",
    "train.backbone_lr=3.5e-4",
]


def write_table(folder: Path) -> Path:
    """Write a synthetic data set and a CSV table of it: the columns that a table of your own needs."""
    tree = folder / "images"
    if not tree.exists():
        trireid.write_synthetic(tree, layout="rgbnt201", num_ids=12, num_cameras=2, per_camera=4, image_size=(64, 32))
    index = trireid.scan("rgbnt201", tree)
    table = folder / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["rgb", "nir", "tir", "id", "camera", "scene", "split"])
        for split, records in (("train", index.train), ("test", index.gallery)):  # test: query and gallery at once
            for record in records:
                paths = [source.path.relative_to(folder) for source in record.images]
                writer.writerow([*paths, record.identity, record.camera, "", split])
    return table


def main() -> None:
    """Train, then print what `trireid test` would print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, nargs="?", help="CSV with the columns rgb,nir,tir,id,camera,scene,split")
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="folder of the run")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.table or write_table(options.out)
    run = options.out / "run"
    config = trireid.load_config(
        None,
        [
            *SETTINGS,
            f"data.root={table}",
            f"train.epochs={options.epochs}",
            f"train.warmup_epochs={min(3, options.epochs - 1)}",
            f"output={run}",
        ],
    )
    metrics = trireid.train.loop.train(config)
    for name, values in metrics["feature"].items():
        print(f"{name:7} mAP {values['mAP']:.3f}  rank-1 {values['rank1']:.3f}")
    print(f"run: {run}")


if __name__ == "__main__":
    main()
