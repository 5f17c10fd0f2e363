"""Keeps what exporters print and warn about off the terminal; their errors become errors of trireid."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

NOISY = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxruntime", "root")
"""Loggers that report each step of an export."""


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence warnings, log lines and prints of the libraries that export and check."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in NOISY]
    before = [logger.level for logger in loggers]
    silent = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
