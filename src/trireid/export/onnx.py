"""A trained model as one ONNX file, which is kept only if it gives what the model gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from trireid.config.schema import Config
from trireid.data.range_settings import known_ranges
from trireid.embedding.embeddings import ModelIdentity
from trireid.embedding.identity import model_identity
from trireid.embedding.onnx_metadata import FeatureDescription, OnnxDescription, Precision
from trireid.errors import InputError, printable
from trireid.export.graph import FEATURES, needs_two
from trireid.export.images import check_images
from trireid.export.parity import BATCHES, TOLERANCE, Case, Parity, ParityError, cases, check_parity
from trireid.export.quantising import CALIBRATION_ITEMS, quantised, quantised_fingerprint
from trireid.export.runtimes import open_runtime, require_packages
from trireid.export.tracing import DEFAULT_OPSET, OPSETS, trace
from trireid.files import replacing
from trireid.models.reid import ReIDModel
from trireid.names import ModalityName
from trireid.train.checkpoint import Checkpoint, build_for, config_here, load_checkpoint
from trireid.train.progress import Bar, progress_bar

_ORDER: tuple[ModalityName, ...] = get_args(ModalityName)
LARGEST_FILE = 2 * 10**9
"""Bytes: one file of the format holds 2 GiB."""
Check = Literal["openvino"]


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: of the file.
        parity_path: of the table of the check, as JSON.
        description: what the file says about itself.
        parity: the check.
    """

    path: Path
    parity_path: Path
    description: OnnxDescription
    parity: Parity


def export_onnx(
    run_or_checkpoint: Checkpoint | Path | str,
    out: Path | str,
    *,
    modalities: Sequence[str] | None = None,
    opset: int | None = None,
    half: bool = False,
    int8: bool = False,
    check: Sequence[Check] = (),
    progress: bool = False,
) -> Exported:
    """Write a model as an ONNX file, and its check as `OUT.parity.json`.

    The file takes normalised `images` `(B, M, 3, H, W)` float32 for any B, `present` `(B, M)` bool, and `camera` `(B,)`
    int64 where the model has a camera embedding; it gives `global`, `head`, `joint` and the kept `patches/NAME`.

    Args:
        run_or_checkpoint: a run folder (its last checkpoint), a checkpoint file, or what `load_checkpoint` returned.
        out: the file to write, `.onnx`.
        modalities: fix the file to these; `images` then holds them alone, and there is no `present`. None: all three,
            and which of them an item has is told at run time.
        opset: of ONNX; None: 18.
        half: weights and computation in half precision; inputs and features stay float32.
        int8: matrix products in 8-bit integers, with ranges measured on 64 training images; features within 0.1 of
            their length, and a fingerprint of their own.
        check: run it in `openvino` as well.
        progress: show a bar.

    Raises:
        InputError: a wrong argument, a package that is not installed, an opset that cannot hold the model.
        CheckpointError: the checkpoint is missing or damaged.
        ParityError: the file does not give what the model gives; it was not kept.
        RunError: the file cannot be written.
    """
    out = Path(out)
    chosen = _checked_arguments(out, modalities, opset, check, half=half, int8=int8)
    given = run_or_checkpoint
    checkpoint = given if isinstance(given, Checkpoint) else load_checkpoint(given)
    model = build_for(checkpoint, config_here(checkpoint)).eval()
    _check_size(model, half=half)
    description = describe(checkpoint, model, modalities=chosen, opset=opset or DEFAULT_OPSET, half=half)
    description = _as_int8(description) if int8 else description
    shown = check_images(checkpoint.config)
    places = None if chosen is None else tuple(_ORDER.index(name) for name in chosen)
    num_cameras = len(description.cameras or ())
    expected = list(cases(model, shown.images, modalities=places, fewest=description.fewest, num_cameras=num_cameras))
    total = 1 + (1 + len(check)) * len(expected) * len(BATCHES)
    with progress_bar("exporting and checking", enabled=progress, total=total) as bar:
        proto = trace(model, description, places=places, example=shown.images[:2])
        content, names = proto.SerializeToString(), [each.name for each in proto.graph.input]
        if int8:
            measured = check_images(checkpoint.config, count=CALIBRATION_ITEMS, training=True).images
            content = quantised(content, measured, names=names, places=places)
        bar.advance(1)
        parity = _write_checked(
            out, content, names, expected, runtimes=("onnxruntime", *check), places=places,
            tolerance=TOLERANCE[description.precision], source=shown.source, bar=bar,
        )  # fmt: skip
    return _with_table(out, description, parity)


def _as_int8(description: OnnxDescription) -> OnnxDescription:
    own = quantised_fingerprint(description.fingerprint)
    return description.model_copy(update={"precision": "int8", "fingerprint": own})


def _with_table(out: Path, description: OnnxDescription, parity: Parity) -> Exported:
    """Write the table of the check beside the file."""
    parity_path = out.with_name(f"{out.name}.parity.json")
    about = {"file": out.name, **description.model_dump(mode="json", include=_IN_TABLE), **parity.to_dict()}
    with replacing(parity_path) as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    return Exported(out, parity_path, description, parity)


def _write_checked(
    out: Path,
    content: bytes,
    names: Sequence[str],
    expected: Sequence[Case],
    *,
    runtimes: Sequence[str],
    places: tuple[int, ...] | None,
    tolerance: float,
    source: str,
    bar: Bar,
) -> Parity:
    """Write a file, and keep it if it passes the check.

    Raises:
        ParityError: it does not; nothing of it is left.
        RunError: it cannot be written.
    """
    with replacing(out) as temporary:
        temporary.write_bytes(content)
        parity = check_parity(
            expected,
            {name: open_runtime(name, temporary) for name in runtimes},
            names=names,
            modalities=places,
            tolerance=tolerance,
            images=source,
            bar=bar,
        )
        if parity.faults:
            raise ParityError(parity)
    return parity


_IN_TABLE = {"version", "fingerprint", "description", "modalities", "opset", "precision"}


def describe(
    checkpoint: Checkpoint, model: ReIDModel, *, modalities: tuple[ModalityName, ...] | None, opset: int, half: bool
) -> OnnxDescription:
    """What the file of a model says about itself; arguments as those of `export_onnx`.

    Raises:
        InputError: the model cannot be fixed to these modalities.
    """
    config = checkpoint.config
    identities = _identities(checkpoint, model)
    reads = tuple(name for name in config.data.modalities if modalities is None or name in modalities)
    if modalities is not None and set(modalities) - set(config.data.modalities):
        raise InputError(
            f"modalities is {','.join(modalities)}, but the model was trained with {','.join(config.data.modalities)} "
            "alone: choose from these"
        )
    precision: Precision = "fp16" if half else "fp32"
    return OnnxDescription(
        version=version("trireid"),
        fingerprint=identities["joint"].fingerprint,
        description=identities["joint"].description,
        features={name: FeatureDescription(blocks=each.blocks, width=each.width) for name, each in identities.items()},
        modalities=_ORDER if modalities is None else modalities,
        has_present=modalities is None,
        reads=reads,
        fewest=2 if needs_two(model) else 1,
        cameras=None if model.backbone.camera_embedding is None else tuple(checkpoint.label_map.cameras),
        **_preprocessing(config),
        opset=opset,
        precision=precision,
    )


def _identities(checkpoint: Checkpoint, model: ReIDModel) -> dict[str, ModelIdentity]:
    names = ("global", "joint") if model.head is None else (*FEATURES, "joint")
    return {name: model_identity(checkpoint, model, feature=name) for name in names}


def _preprocessing(config: Config) -> dict[str, Any]:
    data = config.data
    return {
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
        "ranges": dict(zip(_ORDER, known_ranges(data.range), strict=True)),
    }


def _checked_arguments(
    out: Path, modalities: Sequence[str] | None, opset: int | None, check: Sequence[str], *, half: bool, int8: bool
) -> tuple[ModalityName, ...] | None:
    """The modalities in their order, or None.

    Raises:
        InputError: an argument is wrong, or a package is missing.
    """
    if out.suffix != ".onnx":
        raise InputError(f"the file to write is {printable(str(out))}: its name must end in .onnx")
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise InputError(f"opset is {opset}; the exporter writes opsets {OPSETS[0]} to {OPSETS[1]}")
    if half and int8:
        raise InputError("half and int8 are two precisions: choose one")
    unknown = [name for name in check if name != "openvino"]
    if unknown:
        raise InputError(f"check is {printable(str(unknown[0]), limit=60)!r}; allowed is openvino")
    if modalities is not None and (isinstance(modalities, str) or not modalities or set(modalities) - set(_ORDER)):
        raise InputError(f"modalities is {printable(str(modalities), limit=60)}: name one or more of rgb, nir, tir")
    require_packages(["onnx", "onnxscript", "onnxruntime", *check])
    return None if modalities is None else tuple(name for name in _ORDER if name in modalities)


def _check_size(model: ReIDModel, *, half: bool) -> None:
    size = sum(each.numel() for each in model.parameters()) * (2 if half else 4)
    if size > LARGEST_FILE:
        raise InputError(
            f"the weights have {size / 1e9:.1f} GB, and an ONNX file holds {LARGEST_FILE / 1e9:.0f} GB: "
            "use half precision (--half), or a smaller backbone"
        )
