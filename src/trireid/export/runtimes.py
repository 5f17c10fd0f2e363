"""The programs that run an exported file: ONNX Runtime, OpenVINO and torch, each as a function of named arrays."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trireid.embedding.onnx_runtime import open_session, run_session
from trireid.errors import InputError
from trireid.export.quiet import quiet_exporters

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Mapping[str, NDArray[Any]]], Arrays]
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "torch"}
_EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}


def require_packages(names: Sequence[str]) -> None:
    """Refuse an export before its long work where a package is not installed.

    Raises:
        InputError: with the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"export needs the package {name}, which is not installed: pip install 'trireid[{_EXTRAS[name]}]'"
            )


def open_runtime(name: str, path: Path, *, threads: int | None = None) -> Runner:
    """A function that runs a file on the CPU; `threads` None: as many as it likes (of torch: as it is set to).

    Raises:
        InputError: the runtime cannot run this file.
    """
    if name == "onnxruntime":
        session = open_session(path, providers=("CPUExecutionProvider",), threads=threads)
        return lambda inputs: run_session(session, inputs)
    return _open_torch(path) if name == "torch" else _open_openvino(path, threads)


def _open_torch(path: Path) -> Runner:
    import torch

    with quiet_exporters():
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        with torch.no_grad():
            found = module(**{name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in inputs.items()})
        return {name: each.numpy() for name, each in found.items()}

    return run


def _open_openvino(path: Path, threads: int | None) -> Runner:
    import openvino

    # Without the hint OpenVINO may compute in half precision on processors that can.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    try:
        model = core.read_model(path.read_bytes(), b"")
        names = [output.get_any_name() for output in model.outputs]
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise InputError(f"OpenVINO {openvino.__version__} cannot read the file ({_first_line(error)})") from error

    def run(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        found = compiled({name: np.ascontiguousarray(value) for name, value in inputs.items()})
        return {name: np.array(found[place]) for place, name in enumerate(names)}

    return run


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
