"""ONNX Runtime: files opened and run, its errors in one line. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trireid.errors import CheckpointError, InputError, printable

Arrays = dict[str, NDArray[Any]]
_QUIET = 4
"""Only what ends the process is written to the terminal; everything else comes as an error."""


def open_session(path: Path | str, *, providers: Sequence[str] | None = None, threads: int | None = None) -> Any:
    """A session of ONNX Runtime.

    Args:
        path: of the file.
        providers: names of execution providers, the first that can is used; None: CUDA where it is there, else the CPU.
        threads: of the CPU; None: as many as there are cores.

    Raises:
        InputError: onnxruntime is not installed, or has no such provider.
        CheckpointError: it is no ONNX file, or one that this version cannot run.
    """
    runtime = _runtime()
    known = available_providers()
    if providers is None:
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
    unknown = [name for name in providers if name not in known]
    if unknown:
        raise InputError(
            f"ONNX Runtime has no provider {printable(str(unknown[0]), limit=60)} here: choose from {', '.join(known)}"
        )
    options = runtime.SessionOptions()
    options.log_severity_level = _QUIET
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(path), options, providers=list(providers))
    except errors_of_runtime() as error:
        raise CheckpointError(
            f"{path} cannot be opened by ONNX Runtime {runtime.__version__} ({_reason(error)}): it is damaged or no "
            "ONNX file, or needs a newer ONNX Runtime; export it again, with a lower --opset if the file is whole"
        ) from error
    return session


def available_providers() -> list[str]:
    """The execution providers that this ONNX Runtime was built with.

    Raises:
        InputError: onnxruntime is not installed.
    """
    return list(_runtime().get_available_providers())


def run_session(session: Any, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
    """Run a session on named arrays; `outputs` None: all of them.

    Raises:
        InputError: what ONNX Runtime refused.
    """
    names = [each.name for each in session.get_outputs()] if outputs is None else list(outputs)
    try:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except errors_of_runtime() as error:
        raise InputError(f"ONNX Runtime could not run the model ({_reason(error)})") from error


def errors_of_runtime() -> tuple[type[Exception], ...]:
    """The errors of ONNX Runtime, which have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded",
             "NoModel", "NoSuchFile", "NotImplemented", "RuntimeException")  # fmt: skip
    found = [getattr(state, name) for name in names if hasattr(state, name)]
    return (*found, ValueError, RuntimeError)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "an ONNX file needs the package onnxruntime, which is not installed: pip install 'trireid[onnx]'"
        ) from error
    return onnxruntime


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()), limit=200)
