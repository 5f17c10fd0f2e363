"""A trained model as one ONNX file, which is kept only if it gives what the model gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from trireid.embedding.onnx_metadata import OnnxDescription
from trireid.errors import InputError, printable
from trireid.export.images import check_images
from trireid.export.quantising import CALIBRATION_ITEMS, quantised, quantised_fingerprint
from trireid.export.runtimes import require_packages
from trireid.export.tracing import DEFAULT_OPSET, OPSETS, trace
from trireid.export.writing import Exported, checked_modalities, num_steps, open_source, with_table, write_checked
from trireid.models.reid import ReIDModel
from trireid.names import ModalityName
from trireid.train.checkpoint import Checkpoint
from trireid.train.progress import progress_bar

LARGEST_FILE = 2 * 10**9
"""Bytes: one file of the format holds 2 GiB."""
Check = Literal["openvino"]


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
    source = open_source(run_or_checkpoint, modalities=chosen, opset=opset or DEFAULT_OPSET, half=half)
    _check_size(source.model, half=half)
    description = _as_int8(source.description) if int8 else source.description
    shown = check_images(source.config)
    expected, runtimes = source.cases(shown), ("onnxruntime", *check)
    with progress_bar("exporting and checking", enabled=progress, total=num_steps(expected, runtimes)) as bar:
        proto = trace(source.model, description, places=source.places, example=shown.images[:2])
        content, names = proto.SerializeToString(), [each.name for each in proto.graph.input]
        if int8:
            measured = check_images(source.config, count=CALIBRATION_ITEMS, training=True).images
            content = quantised(content, measured, names=names, places=source.places)
        bar.advance(1)
        parity = write_checked(
            out, content, names, expected,
            runtimes=runtimes, source=source, description=description, images=shown.source, bar=bar,
        )  # fmt: skip
    return with_table(out, description, parity)


def _as_int8(description: OnnxDescription) -> OnnxDescription:
    own = quantised_fingerprint(description.fingerprint)
    return description.model_copy(update={"precision": "int8", "fingerprint": own})


def _checked_arguments(
    out: Path, modalities: Sequence[str] | None, opset: int | None, check: Sequence[str], *, half: bool, int8: bool
) -> tuple[ModalityName, ...] | None:
    """The modalities in their order, or None.

    Raises:
        InputError: an argument is wrong, or a package is missing.
    """
    chosen = checked_modalities(out, ".onnx", modalities)
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise InputError(f"opset is {opset}; the exporter writes opsets {OPSETS[0]} to {OPSETS[1]}")
    if half and int8:
        raise InputError("half and int8 are two precisions: choose one")
    unknown = [name for name in check if name != "openvino"]
    if unknown:
        raise InputError(f"check is {printable(str(unknown[0]), limit=60)!r}; allowed is openvino")
    require_packages(["onnx", "onnxscript", "onnxruntime", *check])
    return chosen


def _check_size(model: ReIDModel, *, half: bool) -> None:
    size = sum(each.numel() for each in model.parameters()) * (2 if half else 4)
    if size > LARGEST_FILE:
        raise InputError(
            f"the weights have {size / 1e9:.1f} GB, and an ONNX file holds {LARGEST_FILE / 1e9:.0f} GB: "
            "use half precision (--half), or a smaller backbone"
        )
