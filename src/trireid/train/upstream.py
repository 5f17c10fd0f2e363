"""Upstream's (DeMo's) checkpoints as models of ours, with the settings that build them and a report of every key."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from torch import Tensor

from trireid.config.schema import BackboneConfig, Config, DataConfig, ModelConfig, SDTPSConfig
from trireid.data.labels import LabelMap
from trireid.errors import CheckpointError, InputError
from trireid.models.build import build_model
from trireid.models.sdtps import slot_count
from trireid.models.towers import Rule
from trireid.models.upstream import (
    HEAD_WIDTH,
    ImportReport,
    UpstreamFacts,
    UpstreamMismatchError,
    convert_upstream,
    read_facts,
    resize_cameras,
    resize_positions,
    strip_parallel,
    upstream_rules,
)
from trireid.models.weights import read_state

if TYPE_CHECKING:
    from trireid.models.reid import ReIDModel

_log = logging.getLogger(__name__)
_POSITIONS, _CAMERAS = "backbone.vit.pos_embed", "backbone.camera_embedding.weight"
_NATIVE = {"clip_vit_b16": (16, 768, 12, 12, 512), "vit_b16": (16, 768, 12, 12, None)}


@dataclass(frozen=True)
class ImportedModel:
    """An upstream checkpoint as a model of ours.

    Attributes:
        model: in evaluation mode, on the CPU, in float32.
        config: settings that build this model; data settings but for the image size are the defaults.
        label_map: identities and cameras by number, because the file does not name them.
        report: what became of every key.
    """

    model: ReIDModel
    config: Config
    label_map: LabelMap
    report: ImportReport


def load_upstream(
    path: Path | str,
    *,
    image_size: tuple[int, int] = (256, 128),
    checkpoint_image_size: tuple[int, int] | None = None,
    num_cameras: int | None = None,
    sie_coefficient: float = 1.0,
    sparse_ratio: float = 0.5,
    beta: float = 0.25,
    ignore: tuple[str, ...] = (),
) -> ReIDModel:
    """The model of an upstream checkpoint, in evaluation mode; the report goes to the log, see `read_upstream`."""
    imported = read_upstream(
        path,
        image_size=image_size,
        checkpoint_image_size=checkpoint_image_size,
        num_cameras=num_cameras,
        sie_coefficient=sie_coefficient,
        sparse_ratio=sparse_ratio,
        beta=beta,
        ignore=ignore,
    )
    for line in (imported.report.describe(), *imported.report.notes):
        _log.info("%s: %s", Path(path).name, line)
    return imported.model


def read_upstream(
    path: Path | str,
    *,
    state: Mapping[str, Tensor] | None = None,
    image_size: tuple[int, int] = (256, 128),
    checkpoint_image_size: tuple[int, int] | None = None,
    num_cameras: int | None = None,
    sie_coefficient: float = 1.0,
    sparse_ratio: float = 0.5,
    beta: float = 0.25,
    ignore: tuple[str, ...] = (),
    data_format: str = "rgbnt201",
) -> ImportedModel:
    """Read a state_dict of upstream; classes, cameras, heads, slots and kind of head are read off its shapes.

    Args:
        path: a torch file of tensors (opened without running code) or .safetensors.
        state: what the file holds, where it was read already (`models.weights.read_state`); None reads it.
        image_size: (height, width) of the images that the model will see.
        checkpoint_image_size: (height, width) it was trained at; None infers it from the position table.
        num_cameras: rows of the camera embedding; None keeps those of the file. Further ones get the mean.
        sie_coefficient: upstream's SIE_COE, which no shape tells; 1.0 in the published configurations.
        sparse_ratio, beta: of SDTPS, which no shape tells either; 0.5 and 0.25 in the published configuration.
        ignore: patterns such as `extra.*` of keys that no rule knows and that may be left out; none by default.
        data_format: whose names of cameras the label map takes, and the format of the configuration.

    Raises:
        CheckpointError: the file is damaged, hostile, no checkpoint of upstream, or does not fit key by key
            (then a `UpstreamMismatchError` with the report).
    """
    path = Path(path)
    try:
        plain = strip_parallel(read_state(path) if state is None else state)
        facts = read_facts(plain)
        rules, notes = upstream_rules(facts), []
        grid = (image_size[0] // facts.patch_size, image_size[1] // facts.patch_size)
        source, note = checkpoint_grid(facts, grid, checkpoint_image_size=checkpoint_image_size)
        notes.append(note)
        if source != grid:
            rules = _changed(rules, _POSITIONS, lambda table: resize_positions(table, source, grid))
        cameras = facts.num_cameras if num_cameras is None else num_cameras
        if cameras != facts.num_cameras:
            if not facts.num_cameras or cameras < 1:
                raise CheckpointError(
                    f"num_cameras is {cameras}, the file has a camera embedding of {facts.num_cameras} rows: leave it "
                    "out to keep them; another number, at least 1, needs an embedding"
                )
            rules = _changed(rules, _CAMERAS, lambda table: resize_cameras(table, cameras))
            notes.append(f"camera embedding: {facts.num_cameras} rows made {cameras}: the first, then the mean of all")
        config, assumed = upstream_config(
            facts, image_size, cameras, sie_coefficient=sie_coefficient, sparse_ratio=sparse_ratio, beta=beta
        )
        config = config.model_copy(update={"data": DataConfig(format=data_format, image_size=image_size)})  # type: ignore[arg-type]
        model = build_model(
            config.model,
            image_size=image_size,
            num_classes=facts.num_classes,
            num_cameras=cameras,
            load_pretrained=False,
        )
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        made, report = convert_upstream(plain, rules, wanted=wanted, notes=(*notes, *assumed), ignore=ignore)
    except UpstreamMismatchError as error:
        raise UpstreamMismatchError(f"{path}: {error}", error.report) from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InputError(f"the arguments of the import do not fit: {wrong}") from error
    except (CheckpointError, InputError) as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise CheckpointError(message) from error
    model.load_state_dict(made, strict=True)
    return ImportedModel(model.eval(), config, _label_map(facts.num_classes, cameras, data_format), report)


def checkpoint_grid(
    facts: UpstreamFacts, grid: tuple[int, int], *, checkpoint_image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], str]:
    """Patch grid (rows, columns) of the position table, and a line that says how it is known.

    Raises:
        CheckpointError: the size given does not have that many patches, or none is given and none can be inferred.
    """
    count, size = facts.num_positions, facts.patch_size
    if checkpoint_image_size is not None:
        given = (checkpoint_image_size[0] // size, checkpoint_image_size[1] // size)
        if given[0] * given[1] != count:
            raise CheckpointError(
                f"the position table has {count} patches, checkpoint_image_size {checkpoint_image_size} has "
                f"{given[0]} x {given[1]}: give the (height, width) it was trained at"
            )
        source, why = given, "as given"
    elif grid[0] * grid[1] == count:
        turned = "" if grid[0] == grid[1] else f"; a checkpoint of {grid[1]} x {grid[0]} would look the same"
        return grid, f"position table: {count} patches, taken as {grid[0]} x {grid[1]} and not resized{turned}"
    else:
        half = math.isqrt(count // 2)
        side = math.isqrt(count)
        if side * side == count:
            source, why = (side, side), "assumed to be square"
        elif 2 * half * half == count:
            source = (half, 2 * half) if grid[1] > grid[0] else (2 * half, half)
            why = "assumed to lie like the images"
        else:
            raise CheckpointError(
                f"the position table has {count} patches, the images {grid[0]} x {grid[1]}, and its own grid cannot "
                "be inferred: give checkpoint_image_size"
            )
    resized = f"resized (bilinear) to {grid[0]} x {grid[1]}" if source != grid else "not resized"
    return source, f"position table: {count} patches, {source[0]} x {source[1]} ({why}), {resized}"


def upstream_config(
    facts: UpstreamFacts,
    image_size: tuple[int, int],
    num_cameras: int,
    *,
    sie_coefficient: float,
    sparse_ratio: float,
    beta: float,
) -> tuple[Config, tuple[str, ...]]:
    """Settings that build the model of these facts, and what had to be assumed.

    Raises:
        CheckpointError: the slots of SDTPS do not fit the patches of these images.
    """
    name = "clip_vit_b16" if facts.is_clip else "vit_b16"
    notes = [f"ViT: {facts.num_heads} heads assumed, {HEAD_WIDTH} channels each"]
    own = (facts.patch_size, facts.width, facts.depth, facts.num_heads, facts.dim if facts.is_clip else None)
    changed = [value if value != native else None for value, native in zip(own, _NATIVE[name], strict=True)]
    patch_size, width, depth, num_heads, projection = changed
    sdtps = SDTPSConfig()
    if num_cameras:
        if not sie_coefficient > 0:
            raise CheckpointError(f"sie_coefficient is {sie_coefficient:g}; with a camera embedding it must be above 0")
        notes.append(f"camera embedding: {num_cameras} cameras, scale {sie_coefficient:g} assumed (SIE_COE)")
    if facts.head == "sdtps":
        num_patches = (image_size[0] // facts.patch_size) * (image_size[1] // facts.patch_size)
        aggr_ratio = 0.4
        if slot_count(num_patches, sparse_ratio=sparse_ratio, aggr_ratio=aggr_ratio) != facts.num_slots:
            aggr_ratio = facts.num_slots / (num_patches * sparse_ratio)
        if aggr_ratio > 1.0:
            raise CheckpointError(
                f"SDTPS has {facts.num_slots} slots, more than the kept ones of {num_patches} patches at sparse_ratio "
                f"{sparse_ratio:g}: give a larger image_size or sparse_ratio"
            )
        sdtps = SDTPSConfig(sparse_ratio=sparse_ratio, aggr_ratio=aggr_ratio, beta=beta)
        notes.append(
            f"SDTPS: {facts.num_slots} slots, so aggr_ratio {aggr_ratio:g}, with sparse_ratio {sparse_ratio:g} and "
            f"beta {beta:g} assumed"
        )
    backbone = BackboneConfig(
        name=name,
        pretrained="none",
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        projection=projection,
    )
    model = ModelConfig(
        backbone=backbone,
        sie_coefficient=sie_coefficient,
        pife=facts.pife,
        head=facts.head,
        sdtps=sdtps,
        atmoe_heads=facts.atmoe_heads or ModelConfig().atmoe_heads,
        global_classifier="joint" if facts.joint else "separate",
    )
    return Config(model=model), tuple(notes)


def _changed(rules: list[Rule], target: str, change: Callable[[Tensor], Tensor]) -> list[Rule]:
    """The rules with one tensor passed through a further step."""

    def wrap(rule: Rule) -> Rule:
        return replace(rule, make=lambda tensors: change(rule.make(tensors)))

    return [wrap(rule) if rule.target == target else rule for rule in rules]


def _label_map(num_classes: int, num_cameras: int, data_format: str) -> LabelMap:
    digits = len(str(max(0, num_classes - 1)))
    identities = tuple(f"{index:0{digits}d}" for index in range(num_classes))
    first, width = (0, 1) if data_format == "msvr310" else (1, 4 if data_format == "rgbnt100" else 1)
    width = max(width, len(str(num_cameras)) if num_cameras > 9 else 1)
    return LabelMap(identities, tuple(f"{first + index:0{width}d}" for index in range(num_cameras)))
