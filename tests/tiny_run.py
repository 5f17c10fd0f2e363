"""A data set of a few coloured triplets and the smallest configuration that trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trireid.config.load import override_config
from trireid.config.schema import Config

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
