"""A data set of a few coloured triplets and the smallest configuration that trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trireid.config.load import dump_config, override_config
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.data.readers import scan
from trireid.evaluation.feature_files import save_features
from trireid.models.build import build_model
from trireid.train.checkpoint import save_checkpoint
from trireid.train.testing import checkpoint_features

FOLDERS = ("RGB", "NI", "TI")


def write_tree(root: Path, *, identities: int = 6, per_camera: int = 2, size: tuple[int, int] = (32, 16)) -> Path:
    """An RGBNT201 tree: each identity a pattern of its own in each spectrum, two cameras, a little noise."""
    generator = np.random.default_rng(0)
    height, width = size
    for split, first in (("train_171", 0), ("test", 100)):
        for identity in range(first, first + identities):
            patterns = [generator.integers(40, 216, (4, 2, 3)) for _ in FOLDERS]
            for camera in (1, 2):
                for number in range(per_camera):
                    name = f"{identity:06d}_cam{camera}_0_{number:02d}.jpg"
                    for folder, pattern in zip(FOLDERS, patterns, strict=True):
                        pixels = pattern.repeat(height // 4, axis=0).repeat(width // 2, axis=1)
                        noisy = pixels + generator.integers(-20, 20, pixels.shape) + 10 * (camera - 1)
                        path = root / split / folder / name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return root


def tiny_config(root: Path, output: Path, *overrides: str, **settings: Any) -> Config:
    """Two epochs of a tiny ViT on such a tree; overrides as on the command line."""
    lines = (
        f"data.root={root}",
        f"output={output}",
        "data.image_size=[32, 16]",
        "data.batch_size=8",
        "data.num_instances=2",
        "data.workers=0",
        "data.augmentation.padding=2",
        "model.backbone.name=tiny",
        "model.backbone.pretrained=none",
        "model.backbone.patch_size=8",
        "model.backbone.width=16",
        "model.backbone.depth=1",
        "model.backbone.num_heads=2",
        "train.device=cpu",
        "train.epochs=2",
        "train.warmup_epochs=0",
        "train.lr=0.001",
        "train.backbone_lr=0.001",
        "train.checkpoint_every=1",
    )
    return override_config(Config(), [*lines, *overrides, *(f"{key}={value}" for key, value in settings.items())])


def untrained_run(root: Path, output: Path, *overrides: str) -> Path:
    """A run folder as training leaves it, of a model that never trained: checkpoint, settings and test features."""
    return write_untrained(tiny_config(root, output, *overrides))


def write_untrained(config: Config) -> Path:
    """The same for any configuration."""
    index = scan(config.data.format, config.data.root)
    label_map = LabelMap.from_records(index.train)
    torch.manual_seed(0)
    model = build_model(
        config.model,
        image_size=config.data.image_size,
        num_classes=len(label_map.identities),
        num_cameras=len(label_map.cameras),
    )
    output = config.output
    output.mkdir(parents=True)
    (output / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    save_checkpoint(output / "last.safetensors", model, config=config, label_map=label_map, epoch=0)
    save_features(output, checkpoint_features(output, progress=False))
    return output
