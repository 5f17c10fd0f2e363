"""Load checkpoints of upstream (DeMo) as models of this package, with their settings and a report of every key."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from torch import Tensor

from trireid.config.schema import Config, DataConfig
from trireid.data.labels import LabelMap
from trireid.errors import CheckpointError, InputError
from trireid.models.build import build_model
from trireid.models.positions import overlapping_patches
from trireid.models.towers import Rule
from trireid.models.weights import read_state
from trireid.upstream.settings import BETA, SIE_COEFFICIENT, SPARSE_RATIO, describe_facts, upstream_config
from trireid.upstream.state_dict import (
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

if TYPE_CHECKING:
    from trireid.models.reid import ReIDModel

_log = logging.getLogger(__name__)
_POSITIONS, _CAMERAS = "backbone.vit.pos_embed", "backbone.camera_embedding.weight"
_MAX_SIDE, _MAX_CAMERAS = 4096, 10_000


@dataclass(frozen=True)
class ImportedModel:
    """An upstream checkpoint as a model of this package.

    Attributes:
        model: in evaluation mode, on the CPU, in float32.
        config: settings that build this model; of the data settings, only format and image size are set.
        label_map: identities and cameras by number, because the file does not name them.
        report: the use of every key, and what was read from the file or assumed.
        facts: what the shapes determine: identities, cameras, kind of head.
    """

    model: ReIDModel
    config: Config
    label_map: LabelMap
    report: ImportReport
    facts: UpstreamFacts


def load_upstream(
    path: Path | str,
    *,
    image_size: tuple[int, int] | None = None,
    checkpoint_image_size: tuple[int, int] | None = None,
    num_cameras: int | None = None,
    sie_coefficient: float = SIE_COEFFICIENT,
    sparse_ratio: float = SPARSE_RATIO,
    beta: float = BETA,
    ignore: tuple[str, ...] = (),
) -> ReIDModel:
    """The model of an upstream checkpoint, in evaluation mode.

    The log of this module reports, at level INFO, what was read from the file, assumed and left out. (Python does not
    show this level by default.) `read_upstream` takes the same arguments and also returns this report and the settings.

    Raises:
        CheckpointError, InputError: as `read_upstream`.
    """
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
    image_size: tuple[int, int] | None = None,
    checkpoint_image_size: tuple[int, int] | None = None,
    num_cameras: int | None = None,
    sie_coefficient: float = SIE_COEFFICIENT,
    sparse_ratio: float = SPARSE_RATIO,
    beta: float = BETA,
    ignore: tuple[str, ...] = (),
    data_format: str = "rgbnt201",
) -> ImportedModel:
    """Read a state_dict of upstream; classes, cameras, heads, slots and kind of head follow from its shapes.

    Args:
        path: a torch file of tensors (opened without running code) or .safetensors.
        state: content of the file if it was read before (`models.weights.read_state`); None: read the file.
        image_size: (height, width) of the model's images. Required, because no shape determines it: 128 patches can
            be 256 x 128 pixels (persons) or 128 x 256 (vehicles).
        checkpoint_image_size: (height, width) of its training images, if different.
        num_cameras: rows of the camera embedding; None: as in the file. Additional rows get the mean.
        sie_coefficient: upstream's SIE_COE, which no shape determines; 1.0 in the published configurations.
        sparse_ratio, beta: of SDTPS, not determined by shapes; 0.5 and 0.25 in the published configuration. A ratio
            that keeps every patch is refused: upstream then averages in a token of zeros, which is not supported.
        ignore: patterns such as `extra.*` of unknown keys that may be left out.
        data_format: data set format of the configuration; the label map follows its camera names.

    Raises:
        CheckpointError: the file is damaged, hostile or not a checkpoint of upstream; if single keys do not fit, it
            is an `UpstreamMismatchError` with the report.
        InputError: an argument has the wrong type or is outside its range.
    """
    path = Path(path)
    _check_sizes(image_size=image_size, checkpoint_image_size=checkpoint_image_size)
    assert image_size is not None
    _check_numbers(num_cameras=num_cameras, sie_coefficient=sie_coefficient, sparse_ratio=sparse_ratio, beta=beta)
    _check_patterns(ignore)
    with _naming(path):
        plain = strip_parallel(read_state(path) if state is None else state)
        facts = read_facts(plain)
        _check_patches(facts, image_size=image_size, checkpoint_image_size=checkpoint_image_size)
        cameras = facts.num_cameras if num_cameras is None else num_cameras
        rules, notes = _resizing_rules(facts, image_size, checkpoint_image_size, cameras)
        config, assumed = upstream_config(
            facts, image_size, cameras, sie_coefficient=sie_coefficient, sparse_ratio=sparse_ratio, beta=beta
        )
        config = config.model_copy(update={"data": DataConfig(format=data_format, image_size=image_size)})  # type: ignore[arg-type]
        model, report = _filled_model(
            plain,
            rules,
            config=config,
            facts=facts,
            num_cameras=cameras,
            notes=(*notes, *assumed),
            ignore=tuple(ignore),
        )
    return ImportedModel(model.eval(), config, _label_map(facts.num_classes, cameras, data_format), report, facts)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file before the message of any error of an import."""
    try:
        yield
    except UpstreamMismatchError as error:
        raise UpstreamMismatchError(f"{path}: {error}", error.report) from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InputError(f"the arguments of the import do not fit: {wrong}") from error
    except (CheckpointError, InputError) as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise CheckpointError(message) from error


def _resizing_rules(
    facts: UpstreamFacts,
    image_size: tuple[int, int],
    checkpoint_image_size: tuple[int, int] | None,
    num_cameras: int,
) -> tuple[list[Rule], list[str]]:
    """`upstream_rules` that also resize the position and camera tables where needed, and notes on what they do."""
    rules, notes = upstream_rules(facts), [describe_facts(facts)]
    grid = (image_size[0] // facts.patch_size, image_size[1] // facts.patch_size)
    source, note = checkpoint_grid(facts, grid, checkpoint_image_size=checkpoint_image_size)
    notes.append(note)
    if source != grid:
        rules = _changed(rules, _POSITIONS, lambda table: resize_positions(table, source, grid))
    if num_cameras != facts.num_cameras:
        notes.append(_camera_note(facts.num_cameras, num_cameras))
        rules = _changed(rules, _CAMERAS, lambda table: resize_cameras(table, num_cameras))
    return rules, notes


def _filled_model(
    state: Mapping[str, Tensor],
    rules: list[Rule],
    *,
    config: Config,
    facts: UpstreamFacts,
    num_cameras: int,
    notes: tuple[str, ...],
    ignore: tuple[str, ...],
) -> tuple[ReIDModel, ImportReport]:
    """The model of these settings with the weights of the file, and the report of every key."""
    build = partial(
        build_model,
        config.model,
        image_size=config.data.image_size,
        num_classes=facts.num_classes,
        num_cameras=num_cameras,
        load_pretrained=False,
    )
    with torch.device("meta"):  # only shapes: a hostile file could require any amount of memory
        shapes = {name: value.shape for name, value in build().state_dict().items()}
    made, report = convert_upstream(state, rules, shapes=shapes, notes=notes, ignore=ignore)
    model = build()
    model.load_state_dict(made, strict=True)
    return model, report


def checkpoint_grid(
    facts: UpstreamFacts, grid: tuple[int, int], *, checkpoint_image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], str]:
    """Patch grid (rows, columns) of the position table, and a note on how it was determined.

    Raises:
        CheckpointError: the given size has another number of patches, or no size is given and the images have another.
    """
    count, size = facts.num_positions, facts.patch_size
    trained_at = checkpoint_image_size or (grid[0] * size, grid[1] * size)
    overlaps = overlapping_patches(count, patch_size=(size, size), sizes=(trained_at,))
    if overlaps:
        raise CheckpointError(
            f"the position table has {count} patches, which for {trained_at[0]} x {trained_at[1]} pixels "
            f"overlap ({overlaps}), which is not supported; if it was trained at another size, give that as "
            "checkpoint_image_size (--checkpoint-image-size)"
        )
    if checkpoint_image_size is not None:
        given = (checkpoint_image_size[0] // size, checkpoint_image_size[1] // size)
        if given[0] * given[1] != count:
            raise CheckpointError(
                f"the position table has {count} patches, checkpoint_image_size {checkpoint_image_size} has "
                f"{given[0]} x {given[1]}: give the (height, width) of its training images"
            )
        source, why = given, "as given"
    elif grid[0] * grid[1] == count:
        turned = "" if grid[0] == grid[1] else f"; a checkpoint of {grid[1]} x {grid[0]} would look the same"
        return grid, f"position table: {count} patches, taken as {grid[0]} x {grid[1]} and not resized{turned}"
    else:
        raise CheckpointError(
            f"the position table has {count} patches, the images {grid[0]} x {grid[1]}, and no shape tells "
            "their arrangement: give checkpoint_image_size (--checkpoint-image-size), the (height, width) of its "
            "training images"
        )
    resized = f"resized (bilinear) to {grid[0]} x {grid[1]}" if source != grid else "not resized"
    return source, f"position table: {count} patches, {source[0]} x {source[1]} ({why}), {resized}"


def _check_sizes(**sizes: tuple[int, int] | None) -> None:
    """Raise an InputError unless each is a pair (height, width) of whole pixels; only image_size may not be None."""
    for name, size in sizes.items():
        whole = isinstance(size, tuple | list) and len(size) == 2 and all(type(side) is int for side in size)
        is_default = size is None and name != "image_size"
        if not is_default and not (whole and size and all(1 <= side <= _MAX_SIDE for side in size)):
            raise InputError(
                f"{name} is {size!r}: give (height, width) in pixels, each 1 to {_MAX_SIDE}, such as (256, 128) or "
                f"--{name.replace('_', '-')} 256x128"
            )


def _check_numbers(*, num_cameras: int | None, sie_coefficient: float, sparse_ratio: float, beta: float) -> None:
    """Raise an InputError unless each is a number within its range."""
    if num_cameras is not None and not (type(num_cameras) is int and 1 <= num_cameras <= _MAX_CAMERAS):
        raise InputError(f"num_cameras is {num_cameras!r}: give a whole number, 1 to {_MAX_CAMERAS}, or None")
    ranges = (
        ("sie_coefficient", sie_coefficient, 0.0, 1e6),
        ("sparse_ratio", sparse_ratio, 0.0, 1.0),
        ("beta", beta, -math.ulp(0.0), 0.5),
    )
    for name, value, above, most in ranges:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and above < value <= most):
            allowed = f"in [0, {most:g}]" if above < 0 else f"above 0, {most:g} at most"
            raise InputError(f"{name} is {value!r}: give a number {allowed}")


def _check_patterns(ignore: object) -> None:
    """Raise an InputError for a plain string, because each of its letters would be a pattern, possibly `*`."""
    if not isinstance(ignore, tuple | list) or not all(isinstance(pattern, str) for pattern in ignore):
        raise InputError(f"ignore is {ignore!r}: give a tuple of patterns, such as ignore=('extra.*',)")


def _check_patches(facts: UpstreamFacts, **sizes: tuple[int, int] | None) -> None:
    """Raise an InputError if a side is not a multiple of the patch size of the file."""
    for name, size in sizes.items():
        if size is not None and any(side % facts.patch_size for side in size):
            raise InputError(
                f"{name} {size[0]} x {size[1]} is not a multiple of the patch size {facts.patch_size}: give "
                f"another {name} (--{name.replace('_', '-')})"
            )


def _camera_note(num_known: int, num_cameras: int) -> str:
    """Note on the change of the rows of the camera embedding.

    Raises:
        CheckpointError: the file has no embedding.
    """
    if not num_known:
        raise CheckpointError(
            f"num_cameras (--cameras) is {num_cameras}, but the file has no camera embedding: leave this argument out"
        )
    if num_cameras < num_known:
        return f"camera embedding: {num_known} rows reduced to {num_cameras}: the first {num_cameras} are kept"
    further = num_cameras - num_known
    extended = f"camera embedding: {num_known} rows extended to {num_cameras}"
    return f"{extended}: {further} more, each the mean of the {num_known}"


def _changed(rules: list[Rule], target: str, change: Callable[[Tensor], Tensor]) -> list[Rule]:
    """The rules, with one tensor changed by a further step."""

    def wrap(rule: Rule) -> Rule:
        return replace(rule, make=lambda tensors: change(rule.make(tensors)))

    return [wrap(rule) if rule.target == target else rule for rule in rules]


def _label_map(num_classes: int, num_cameras: int, data_format: str) -> LabelMap:
    digits = len(str(max(0, num_classes - 1)))
    identities = tuple(f"{index:0{digits}d}" for index in range(num_classes))
    first, width = (0, 1) if data_format == "msvr310" else (1, 4 if data_format == "rgbnt100" else 1)
    width = max(width, len(str(num_cameras)) if num_cameras > 9 else 1)
    return LabelMap(identities, tuple(f"{first + index:0{width}d}" for index in range(num_cameras)))
