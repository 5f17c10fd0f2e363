"""Convert files of other projects: checkpoints of upstream, and start weights of a backbone."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trireid.errors import CheckpointError, InputError, RunError
from trireid.files import replacing, write_json
from trireid.models.backbone import create_vit, timm_model_name
from trireid.models.positions import GRID_KEY, Grid, grid_text, published_grid, recorded_grid, table_grid
from trireid.models.towers import clip_prefix, clip_rules, count_blocks, is_upstream
from trireid.models.weights import fill_backbone, read_metadata, read_state, table_rows_of_others, visual_tower
from trireid.train.checkpoint import save_checkpoint
from trireid.train.run_files import IMPORT_REPORT_SUFFIX, LAST_FILE
from trireid.upstream.checkpoint import read_upstream
from trireid.upstream.state_dict import HEAD_WIDTH, ImportReport

_OPTIONS = {"num_cameras": "--cameras", "data_format": "--format"}  # other options have the names of the arguments


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
        path: a .safetensors file.
        report_path: JSON file with the whole report.
        is_model: whether it is a checkpoint of a whole model; otherwise start weights of a backbone.
        backbone: name of the backbone.
        report: the use of every key.
    """

    path: Path
    report_path: Path
    is_model: bool
    backbone: str
    report: ImportReport


def import_file(
    source: Path,
    target: Path,
    *,
    image_size: tuple[int, int] | None = None,
    checkpoint_image_size: tuple[int, int] | None = None,
    num_cameras: int | None = None,
    sie_coefficient: float | None = None,
    sparse_ratio: float | None = None,
    beta: float | None = None,
    ignore: tuple[str, ...] | None = None,
    data_format: str | None = None,
    backbone: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """Convert a checkpoint of upstream, or weights of CLIP or timm, to a .safetensors file of this package.

    Args:
        source: an upstream state_dict, OpenAI's CLIP file in either form, or timm weights.
        target: a .safetensors file; the report is written beside it.
        backbone: name of the ViT of start weights; None: recognise CLIP ViT-B/16 and ImageNet ViT-B/16 by their keys.
        checkpoint_image_size: (height, width) that the position table was made for; needed for start weights whose
            table does not have the published size.
        image_size, num_cameras, sie_coefficient, sparse_ratio, beta, ignore, data_format: only for
            checkpoints of upstream, see `read_upstream`; None: its default.
        overwrite: replace an existing target and report.

    Raises:
        CheckpointError: the source is damaged, hostile or does not fit; the target does not end in .safetensors.
        InputError: an argument is not used for this kind of file, or is outside its range.
        RunError: the target exists, or cannot be written.
    """
    report_path = _check_target(source, target, overwrite=overwrite)
    options = {
        "image_size": image_size,
        "num_cameras": num_cameras,
        "sie_coefficient": sie_coefficient,
        "sparse_ratio": sparse_ratio,
        "beta": beta,
        "ignore": ignore,
        "data_format": data_format,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if (source / LAST_FILE).is_file():
        raise CheckpointError(_our_own(source))
    state = read_state(source)
    write = _write_model if is_upstream(state) else _write_backbone
    name, report, content = write(
        source, state, target, backbone=backbone, trained_at=checkpoint_image_size, given=given
    )
    write_json(report_path, content)
    return Imported(target, report_path, is_upstream(state), name, report)


def _write_model(
    source: Path,
    state: dict[str, Tensor],
    target: Path,
    *,
    backbone: str | None,
    trained_at: tuple[int, int] | None,
    given: dict[str, Any],
) -> tuple[str, ImportReport, dict[str, object]]:
    """Write a whole model of upstream; returns its backbone, its report, and the content of the report file."""
    if backbone is not None:
        raise InputError(
            f"backbone (--backbone) {backbone} is for start weights; {source} is a whole model of upstream, whose "
            "shapes tell its ViT: leave it out"
        )
    imported = read_upstream(source, state=state, checkpoint_image_size=trained_at, **given)
    save_checkpoint(
        target,
        imported.model,
        config=imported.config,
        label_map=imported.label_map,
        epoch=0,
        note=f"imported from {source.name}",
    )
    content = {"facts": asdict(imported.facts), **asdict(imported.report)}
    return imported.config.model.backbone.name, imported.report, content


def _check_target(source: Path, target: Path, *, overwrite: bool) -> Path:
    """Check that target and report may be written; returns the path of the report."""
    if target.suffix != ".safetensors":
        raise CheckpointError(f"the target {target} must end in .safetensors, the only format that is written")
    if os.path.realpath(target) == os.path.realpath(source):  # Path.resolve fails on links that lead to each other
        raise CheckpointError(f"the target {target} is the source itself: give another name")
    report_path = target.with_suffix(IMPORT_REPORT_SUFFIX)
    existing = [path for path in (target, report_path) if path.exists()]
    if existing and not overwrite:
        raise RunError(f"{existing[0]} exists already: give another name, or replace it with --force (overwrite=True)")
    return report_path


def _write_backbone(
    source: Path,
    state: dict[str, Tensor],
    target: Path,
    *,
    backbone: str | None,
    trained_at: tuple[int, int] | None,
    given: dict[str, Any],
) -> tuple[str, ImportReport, dict[str, object]]:
    """Write start weights with a position table of the grid that it has in the file; returns as `_write_model`."""
    if given:
        refused = ", ".join(_OPTIONS.get(option, f"--{option.replace('_', '-')}") for option in given)
        raise InputError(
            f"{refused}: not used for {source}, which holds only start weights of a ViT; leave it out "
            "(--checkpoint-image-size names the size that their position table was made for)"
        )
    if any(key.startswith("backbone.vit.") for key in state):
        raise CheckpointError(_our_own(source))
    tower, num_others = visual_tower(state, source=source)
    name, sizes = _recognise(source, tower) if backbone is None else (backbone, {})
    is_clip = clip_prefix(state) is not None
    grid, size = _source_grid(source, tower, name=name, sizes=sizes, given=trained_at, is_clip=is_clip)
    with torch.device("meta"):  # only shapes: a hostile file could require any amount of memory
        vit = create_vit(name, image_size=size, **sizes)
    note = fill_backbone(
        vit, tower, name=name, source=source, num_others=num_others, image_size=trained_at, is_square=is_clip
    )
    own, prefix = vit.state_dict(), clip_prefix(state)
    if prefix is None:
        used = {key: key for key in state if key in own}
        reason = "the ImageNet classifier, which features do not use"
    else:
        depth = count_blocks(tower, "blocks.")
        rules = clip_rules(depth=depth, dim=tower["head.bias"].shape[0], prefix=prefix)
        used = {key: rule.target for rule in rules for key in rule.sources}
        reason = "not of CLIP's visual tower"
    ignored = {key: reason for key in state if key not in used}
    with replacing(target) as temporary:
        tensors = {key: value.detach().contiguous().clone() for key, value in own.items()}
        save_file(tensors, temporary, metadata={GRID_KEY: grid_text(grid)})
    heads = f"ViT: {HEAD_WIDTH} channels per head assumed"
    report = ImportReport(used=used, ignored=ignored, notes=(note, heads) if sizes else (note,))
    return name, report, asdict(report)


def _our_own(source: Path) -> str:
    return (
        f"{source} is a {'run' if source.is_dir() else 'checkpoint'} of trireid already: test it as it is, or start a "
        f"training from it with model.backbone.pretrained={source}"
    )


def _recognise(source: Path, tower: dict[str, Tensor]) -> tuple[str, dict[str, int]]:
    """Recognise the backbone of start weights by their keys; returns its name and sizes.

    Raises:
        CheckpointError: it is neither CLIP's ViT nor a plain ViT with a CLS token and timm's names.
    """
    filters = tower.get("patch_embed.proj.weight")
    if filters is None or filters.dim() != 4 or "cls_token" not in tower:
        raise CheckpointError(
            f"{source} is neither a checkpoint of upstream, nor CLIP's file, nor weights of a plain ViT of timm "
            f"({len(tower)} keys, such as {', '.join(sorted(tower)[:3])})"
        )
    sizes = {
        "patch_size": filters.shape[2],
        "width": filters.shape[0],
        "depth": count_blocks(tower, "blocks."),
        "num_heads": max(1, filters.shape[0] // HEAD_WIDTH),
    }
    if "norm_pre.weight" in tower and "head.weight" in tower:
        return "clip_vit_b16", {**sizes, "projection": tower["head.weight"].shape[0]}
    if filters.shape[:1] != (768,) or filters.shape[2] != 16:
        raise CheckpointError(
            f"{source} holds a ViT of width {filters.shape[0]} with patches of {filters.shape[2]} pixels; its keys do "
            "not tell its name: give --backbone"
        )
    return "vit_b16", sizes


def _source_grid(
    source: Path,
    tower: dict[str, Tensor],
    *,
    name: str,
    sizes: dict[str, int],
    given: tuple[int, int] | None,
    is_clip: bool,
) -> tuple[Grid, tuple[int, int]]:
    """Grid of the position table of start weights, and the image size of that grid."""
    table, filters = tower.get("pos_embed"), tower.get("patch_embed.proj.weight")
    if table is None or filters is None or table.dim() != 3 or filters.dim() != 4 or 0 in filters.shape:
        raise CheckpointError(
            f"{source} lacks the position table or the patch filters of a ViT: the weights of one without a table "
            "(DINOv3) need no import, set model.backbone.pretrained to the file itself"
        )
    patch_size = (filters.shape[2], filters.shape[3])
    with torch.device("meta"):  # any size tells which rows of the table are of patches
        probe = create_vit(name, image_size=(2 * patch_size[0], 2 * patch_size[1]), **sizes)
    grid = table_grid(
        table.shape[1] - table_rows_of_others(probe),
        source=source,
        patch_size=patch_size,
        recorded=recorded_grid(read_metadata(source), patch_size=patch_size),
        given=given,
        published=None if name == "tiny" else published_grid(timm_model_name(name), patch_size=patch_size),
        is_square=is_clip,
        setting="checkpoint_image_size (--checkpoint-image-size)",
    )
    return grid, (grid[0] * patch_size[0], grid[1] * patch_size[1])
