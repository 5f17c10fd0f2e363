"""What a cut inside the ViT drops on the test images of trained runs, and whether it drops the same in both captures.

    python benchmarks/dropped_places.py RUN [RUN ...]

prints a Markdown row per run and spectrum, over the last cut: the contrast (standard deviation of the pixels) of kept
patches beside that of dropped ones, the share kept of the middle quarter of the image, the share of a grid of 4 x 4
cells of which nothing is kept, and the overlap (Jaccard index) of what is kept in two images of an identity from
different cameras, beside that of different identities. Two images can only be compared by what both kept. Needs runs
with `model.slimming`; minutes without a GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from trireid.cli.guard import guarded
from trireid.errors import ConfigError
from trireid.models.cells import cell_of_place
from trireid.train.checkpoint import build_for, config_here, load_checkpoint
from trireid.train.device import resolve_device
from trireid.train.inputs import open_test, scan_index
from trireid.types import MODALITIES

COLUMNS = ("contrast kept / dropped", "middle kept", "empty cells", "overlap, same identity", "overlap, other identity")


def patch_contrast(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Standard deviation of the pixels of every patch: `(B, M, 3, H, W)` -> `(B, M, N)`."""
    height, width = images.shape[-2] // grid[0], images.shape[-1] // grid[1]
    tiles = images.mean(dim=2).unflatten(3, (grid[1], width)).unflatten(2, (grid[0], height))  # (B, M, r, h, c, w)
    return tiles.permute(0, 1, 2, 4, 3, 5).flatten(4).std(dim=-1).flatten(2)


def overlaps(kept: Tensor, identity: Tensor, camera: Tensor) -> tuple[float, float]:
    """Mean Jaccard index of kept places `(Q, N)` of pairs from different cameras: same identity, other identity."""
    kept = kept.float()
    both = kept @ kept.T
    count = kept.sum(dim=1)
    jaccard = both / (count[:, None] + count - both)
    apart = camera[:, None] != camera
    same = identity[:, None] == identity
    return float(jaccard[apart & same].mean()), float(jaccard[apart & ~same].mean())


def rows(run: Path) -> list[str]:
    """The rows of one run.

    Raises:
        ConfigError: it has no cut.
    """
    checkpoint = load_checkpoint(run)
    config = config_here(checkpoint)
    if not config.model.slimming:
        raise ConfigError(f"{run} has no cut inside the ViT (model.slimming): nothing is dropped")
    device = resolve_device(config.train.device)
    model = build_for(checkpoint, config).to(device).eval()
    split = open_test(config, scan_index(config), checkpoint.label_map, device=device)
    masks, contrasts, present = [], [], []
    for each in split.query_loader:
        batch = each.to(device)
        images = split.transform(batch.images, batch.present)
        with torch.inference_mode():
            chosen = model(images, batch.present, batch.camera).selection
        cut = [each for name, each in chosen.items() if name.startswith("block")][-1]
        masks.append(cut.mask.cpu())
        contrasts.append(patch_contrast(images, cut.grid).cpu())
        present.append(batch.present.cpu())
    mask, contrast = torch.cat(masks), torch.cat(contrasts)  # (Q, M, N)
    cell = cell_of_place(cut.grid, (4, 4)) if min(cut.grid) >= 4 else torch.arange(mask.shape[-1])
    per_cell = torch.stack([mask[..., cell == number].any(dim=-1) for number in range(int(cell.max()) + 1)])
    inner = torch.zeros(cut.grid, dtype=torch.bool)
    top, left = cut.grid[0] // 4, cut.grid[1] // 4
    inner[top : cut.grid[0] - top, left : cut.grid[1] - left] = True
    lines = []
    for index, name in enumerate(MODALITIES):
        there = torch.cat(present)[:, index]
        if not there.any():
            continue
        own, level = mask[there, index], contrast[there, index]
        ratio = "-" if own.all() else f"{float(level[own].mean() / level[~own].mean().clamp_min(1e-9)):.2f}"
        empty = 1 - float(per_cell[:, there, index].float().mean())
        same, other = overlaps(own, split.query_labels.identity[there], split.query_labels.camera[there])
        middle = float(own[:, inner.flatten()].float().mean())
        values = [ratio, f"{100 * middle:.0f} %", f"{100 * empty:.0f} %", f"{same:.2f}", f"{other:.2f}"]
        lines.append(f"| {run.parent.name}/{run.name}, {name} | " + " | ".join(values) + " |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    found = [line for run in parser.parse_args().runs for line in rows(run)]
    head = ["| run, spectrum | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    sys.stdout.write("\n".join([*head, *found, ""]))


if __name__ == "__main__":
    with guarded():
        main()
