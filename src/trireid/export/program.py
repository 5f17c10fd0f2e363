"""A trained model as a program of `torch.export`: one file that torch runs without trireid."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trireid.embedding.onnx_metadata import METADATA_KEY
from trireid.errors import InputError, printable
from trireid.export.graph import ExportedModel
from trireid.export.images import check_images
from trireid.export.quiet import quiet_exporters
from trireid.export.tracing import any_batch, example_inputs
from trireid.export.writing import (
    Exported,
    Source,
    checked_modalities,
    num_steps,
    open_source,
    with_table,
    write_checked,
)
from trireid.train.checkpoint import Checkpoint
from trireid.train.progress import progress_bar

_RUNTIMES = ("torch",)


def export_torch(
    run_or_checkpoint: Checkpoint | Path | str,
    out: Path | str,
    *,
    modalities: Sequence[str] | None = None,
    half: bool = False,
    progress: bool = False,
) -> Exported:
    """Write a model as a program of `torch.export`, and its check as `OUT.parity.json`.

    Inputs, outputs, description and check are those of `export_onnx`. The description is the extra file `trireid`.

    Args:
        run_or_checkpoint: a run folder (its last checkpoint), a checkpoint file, or what `load_checkpoint` returned.
        out: the file to write, `.pt2`.
        modalities: fix the file to these; None: all three, and which of them an item has is told at run time.
        half: the ViT in half precision; inputs and features stay float32.
        progress: show a bar.

    Raises:
        InputError: a wrong argument, or torch cannot export the model.
        CheckpointError: the checkpoint is missing or damaged.
        ParityError: the file does not give what the model gives; it was not kept.
        RunError: the file cannot be written.
    """
    out = Path(out)
    chosen = checked_modalities(out, ".pt2", modalities)
    source = open_source(run_or_checkpoint, modalities=chosen, opset=None, half=half)
    shown = check_images(source.config)
    expected = source.cases(shown)
    with progress_bar("exporting and checking", enabled=progress, total=num_steps(expected, _RUNTIMES)) as bar:
        content, names = _program(source, shown.images[:2])
        bar.advance(1)
        about = source.description
        parity = write_checked(
            out, content, names, expected,
            runtimes=_RUNTIMES, source=source, description=about, images=shown.source, bar=bar,
        )  # fmt: skip
    return with_table(out, about, parity)


def _program(source: Source, example: Tensor) -> tuple[bytes, list[str]]:
    """The content of the file, and the names of its inputs.

    Raises:
        InputError: torch cannot export the model.
    """
    about = source.description
    given = example_inputs(about, source.places, example)
    graph = ExportedModel(source.model, modalities=source.places, selections=True, half=about.precision == "fp16")
    content = io.BytesIO()
    with quiet_exporters(), torch.no_grad():
        graph(**given)  # tables that the model keeps are made from numbers, not while it is traced
        try:
            program = torch.export.export(graph, (), kwargs=given, dynamic_shapes=any_batch(given), strict=False)
        except (RuntimeError, ValueError) as error:  # of torch: its errors of export have no base of their own
            reason = printable(str(error).strip().splitlines()[0], limit=200)
            raise InputError(f"torch {torch.__version__} cannot export this model ({reason})") from error
        torch.export.save(program, content, extra_files={METADATA_KEY: about.model_dump_json()})
    return content.getvalue(), list(given)
