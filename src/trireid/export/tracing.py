"""A model as the graph of an ONNX file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trireid.embedding.onnx_metadata import METADATA_KEY, OnnxDescription
from trireid.errors import InputError, printable
from trireid.export.graph import ExportedModel
from trireid.export.quiet import quiet_exporters
from trireid.models.reid import ReIDModel

OPSETS = (18, 25)
"""The lowest and the highest opset of ONNX that the exporter of torch writes."""
DEFAULT_OPSET = 18


def trace(model: ReIDModel, description: OnnxDescription, *, places: tuple[int, ...] | None, example: Tensor) -> Any:
    """The model as an ONNX `ModelProto` with its description.

    Args:
        model: in evaluation mode, on the CPU, float32; it has run once.
        description: goes into the metadata.
        places: indices of the modalities that the file is fixed to, or None.
        example: `(B, M, 3, H, W)`, B >= 2.

    Raises:
        InputError: the exporter cannot write this model in this opset.
    """
    import onnx

    given = example_inputs(description, places, example)
    graph = ExportedModel(model, modalities=places, selections=True, half=description.precision == "fp16")
    with torch.no_grad():
        names = list(ExportedModel(model, modalities=places, selections=True)(**given))
    with quiet_exporters(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph,
                (),
                kwargs=given,
                dynamic_shapes=any_batch(given),
                input_names=list(given),
                output_names=names,
                opset_version=description.opset,
                dynamo=True,
                optimize=False,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise InputError(
                f"the exporter of torch {torch.__version__} cannot write this model in opset {description.opset} "
                f"({printable(str(error).strip().splitlines()[0], limit=200)})"
            ) from error
        assert program is not None
        _fold_constants(program.model)
        proto = program.model_proto
    written = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    if written != description.opset:
        raise InputError(
            f"opset {description.opset} cannot hold the model with the packages installed here (it would be "
            f"{written}): use --opset {DEFAULT_OPSET}"
        )
    onnx.helper.set_model_props(proto, {METADATA_KEY: description.model_dump_json()})
    return proto


def example_inputs(description: OnnxDescription, places: tuple[int, ...] | None, example: Tensor) -> dict[str, Tensor]:
    """The inputs of a file by name, for images `(B, M, 3, H, W)` of complete items; see `trace`."""
    given = {"images": example if places is None else example[:, list(places)]}
    if description.has_present:
        given["present"] = torch.ones(example.shape[:2], dtype=torch.bool)
    if description.cameras is not None:
        given["camera"] = torch.zeros(len(example), dtype=torch.int64)
    return given


def any_batch(names: Iterable[str]) -> dict[str, dict[int, Any]]:
    """Tells the exporter of torch that the first axis of each input is the number of items, and any."""
    batch = torch.export.Dim("batch", min=1, max=2**20)
    return {name: {0: batch} for name in names}


def _fold_constants(model: Any) -> None:
    """Compute what does not depend on an input, in place.

    The exporter's own optimisation also takes numbers below 1e-8 for 0: it drops the small numbers that are added to
    a divisor, and a modality without guides then gives 0 / 0.
    """
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
