"""Writes safetensors files without holding the interpreter.

The writer of the safetensors library before version 0.8 keeps all other threads of Python from running until the file
is on the disk, which stops the training that goes on meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: the length of the header, the header, then all values, the widest type first.

    Args:
        path: of the file.
        tensors: by name, on the CPU.
        metadata: texts that describe them.

    Raises:
        OSError: it cannot be written.

    Source: the description of the format in the documentation of safetensors.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in ordered:
        value = tensors[name]
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            # Lets other threads run while the system takes the bytes, which a copy into Python's own would not.
            file.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
