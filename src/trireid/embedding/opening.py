"""A model that embeds, by its path: a run, a checkpoint, or a file that `trireid export` wrote. Files need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trireid.embedding.streaming import StreamingEmbedder
from trireid.errors import InputError, printable

EXPORTED_SUFFIX = ".onnx"
_NO_CUDA = (
    "device is cuda, and ONNX Runtime has no CUDA here: use auto or cpu, or install onnxruntime-gpu in place of "
    "onnxruntime on a machine with a GPU"
)
_PROVIDERS: dict[str, tuple[str, ...] | None] = {
    "auto": None,
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
}


def is_exported(path: Path | str) -> bool:
    """Whether a path is that of an exported file: its name tells, as it must end in `.onnx`."""
    return Path(path).suffix == EXPORTED_SUFFIX


def refuse_exported(path: Path | str, option: str, remedy: str) -> None:
    """Refuse an option that needs the run, where an exported file is given.

    Raises:
        InputError: it is one.
    """
    if is_exported(path):
        raise InputError(f"{option} needs a run, and {printable(str(path))} is an exported file: {remedy}")


def open_embedder(
    path: Path | str,
    *,
    device: Any = "auto",
    feature: str = "joint",
    batch_size: int | None = None,
    precision: str | None = None,
    ranges: Mapping[str, Any] | None = None,
    centring: str | None = None,
) -> StreamingEmbedder:
    """`OnnxEmbedder` of a file whose name ends in `.onnx`, `Embedder` of everything else.

    Args:
        path: a run folder (its last checkpoint), a checkpoint, or an exported file.
        device: `auto`, `cpu` or `cuda`; of a run any device of torch.
        feature: `global`, `head` or `joint`.
        batch_size: items that go through the model together; None: as the run says, or 32.
        precision: of a run; None: as the run says.
        ranges, centring: of a run, see `Embedder`.

    Raises:
        CheckpointError: the checkpoint or file is missing or damaged.
        ConfigError, InputError: it has no such feature or device, or a file is given a precision or ranges.
    """
    if not is_exported(path):
        from trireid.embedding.embedder import Embedder

        return Embedder(
            path,
            device=device,
            feature=feature,
            batch_size=batch_size,
            precision=precision,
            ranges=ranges,
            centring=centring,
        )
    from trireid.embedding.onnx import BATCH_SIZE, OnnxEmbedder
    from trireid.embedding.onnx_runtime import available_providers

    if precision is not None:
        refuse_exported(path, "a precision", "its precision was chosen at the export, with --half or --int8")
    if centring is not None:
        refuse_exported(path, "centring", "it was chosen at the export, by evaluate.centring of the checkpoint")
    if ranges:
        refuse_exported(path, "a range of values", "its ranges are those of the run")
    name = str(device)
    if name not in _PROVIDERS:
        raise InputError(f"device is {printable(name, limit=40)!r}; an exported file runs on auto, cpu or cuda")
    size = BATCH_SIZE if batch_size is None else batch_size
    if name == "cuda" and "CUDAExecutionProvider" not in available_providers():
        raise InputError(_NO_CUDA)
    embedder = OnnxEmbedder(path, feature=feature, batch_size=size, providers=_PROVIDERS[name])
    if name == "cuda" != embedder.device:  # ONNX Runtime was built for CUDA, and goes on without it where it finds none
        raise InputError(_NO_CUDA)
    return embedder
