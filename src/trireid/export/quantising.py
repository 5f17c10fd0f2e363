"""An exported file in 8-bit integers: its matrix products, with ranges measured on real images."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trireid.export.quiet import quiet_exporters

CALIBRATION_ITEMS = 64
_BATCH = 8


def quantised(content: bytes, images: Tensor, *, names: Sequence[str], places: Sequence[int] | None) -> bytes:
    """The content of a float32 file with its matrix products in 8-bit integers.

    Weights have a range for each output channel, activations one range each (ONNX Runtime's static quantisation).

    Args:
        content: of the file.
        images: `(B, M, 3, H, W)` normalised images of complete items, which set the ranges of activations.
        names: inputs of the file.
        places: indices of the modalities that the file is fixed to, or None.
    """
    with tempfile.TemporaryDirectory(prefix="trireid-") as folder, quiet_exporters():
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
            """Hands out the batches one after the other."""

            def __init__(self) -> None:
                self._batches = _batches(images, names, places)

            def get_next(self) -> dict[str, Any] | None:
                return next(self._batches, None)

        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(content)
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        return target.read_bytes()


def quantised_fingerprint(fingerprint: str) -> str:
    """The fingerprint of the vectors of such a file, which do not mix with those of the float model in a gallery."""
    return hashlib.sha256(f"{fingerprint} int8".encode()).hexdigest()


def _batches(images: Tensor, names: Sequence[str], places: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    for part in images.split(_BATCH):
        shown = part if places is None else part[:, list(places)]
        given = {
            "images": shown.numpy(),
            "present": np.ones(tuple(part.shape[:2]), dtype=bool),
            "camera": torch.full((len(part),), -1).numpy(),
        }
        yield {name: given[name] for name in names}
