"""Re-identification of objects seen by three spectra at once. The public names, each imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trireid.lazy import warn_renamed

if TYPE_CHECKING:
    from trireid.config.load import dump_config as dump_config
    from trireid.config.load import load_config as load_config
    from trireid.config.schema import Config as Config
    from trireid.data.readers import scan as scan
    from trireid.data.synthetic import write_synthetic as write_synthetic
    from trireid.embedding.aggregate import aggregate as aggregate
    from trireid.embedding.calibrating import calibrate as calibrate
    from trireid.embedding.embedder import Embedder as Embedder
    from trireid.embedding.embeddings import Embeddings as Embeddings
    from trireid.embedding.embeddings import ModelIdentity as ModelIdentity
    from trireid.embedding.embeddings import concatenate as concatenate
    from trireid.embedding.items import Item as Item
    from trireid.embedding.onnx import OnnxEmbedder as OnnxEmbedder
    from trireid.errors import TrireidError as TrireidError
    from trireid.evaluation.calibration import Calibration as Calibration
    from trireid.evaluation.evaluate import evaluate_model as evaluate_model
    from trireid.evaluation.expansion import average_query_expansion as average_query_expansion
    from trireid.evaluation.metrics import pairwise_distance as pairwise_distance
    from trireid.evaluation.metrics import rank_metrics as rank_metrics
    from trireid.evaluation.rerank import k_reciprocal as k_reciprocal
    from trireid.evaluation.search import search as search
    from trireid.export.onnx import export_onnx as export_onnx
    from trireid.export.program import export_torch as export_torch
    from trireid.gallery.filters import Filter as Filter
    from trireid.gallery.gallery import Gallery as Gallery
    from trireid.models.build import build_model as build_model
    from trireid.models.recorded import RecordedModel as RecordedModel
    from trireid.models.vit_parts import backbone_names as backbone_names
    from trireid.report.page import write_report as write_report
    from trireid.train.checkpoint import load_checkpoint as load_checkpoint
    from trireid.train.checkpoint import load_model as load_model
    from trireid.train.testing import evaluate_checkpoint as evaluate_checkpoint
    from trireid.types import MODALITIES as MODALITIES
    from trireid.types import Batch as Batch
    from trireid.types import Labels as Labels
    from trireid.types import Protocol as Protocol
    from trireid.types import ReIDOutput as ReIDOutput
    from trireid.types import Selection as Selection
    from trireid.upstream.checkpoint import load_upstream as load_upstream
    from trireid.upstream.checkpoint import read_upstream as read_upstream

_HOMES = {
    "Batch": "types",
    "Calibration": "evaluation.calibration",
    "Config": "config.schema",
    "Embedder": "embedding.embedder",
    "Embeddings": "embedding.embeddings",
    "Item": "embedding.items",
    "Filter": "gallery.filters",
    "Gallery": "gallery.gallery",
    "Labels": "types",
    "MODALITIES": "types",
    "ModelIdentity": "embedding.embeddings",
    "OnnxEmbedder": "embedding.onnx",
    "Protocol": "types",
    "ReIDOutput": "types",
    "RecordedModel": "models.recorded",
    "Selection": "types",
    "TrireidError": "errors",
    "aggregate": "embedding.aggregate",
    "average_query_expansion": "evaluation.expansion",
    "backbone_names": "models.vit_parts",
    "build_model": "models.build",
    "concatenate": "embedding.embeddings",
    "calibrate": "embedding.calibrating",
    "dump_config": "config.load",
    "evaluate_model": "evaluation.evaluate",
    "export_onnx": "export.onnx",
    "export_torch": "export.program",
    "k_reciprocal": "evaluation.rerank",
    "load_checkpoint": "train.checkpoint",
    "load_config": "config.load",
    "load_model": "train.checkpoint",
    "load_upstream": "upstream.checkpoint",
    "pairwise_distance": "evaluation.metrics",
    "rank_metrics": "evaluation.metrics",
    "read_upstream": "upstream.checkpoint",
    "scan": "data.readers",
    "search": "evaluation.search",
    "evaluate_checkpoint": "train.testing",
    "write_report": "report.page",
    "write_synthetic": "data.synthetic",
}
_PARTS = tuple(
    [
        "config",
        "data",
        "embedding",
        "errors",
        "evaluation",
        "export",
        "gallery",
        "losses",
        "models",
        "names",
        "report",
        "serve",
        "train",
        "types",
        "upstream",
        "visualize",
    ]
)
_RENAMED = {"test_checkpoint": "evaluate_checkpoint"}
"""Public names of 0.1.0 -> their names now; the old ones warn, and go with 0.3.0."""

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name or part when it is first used, so that `import trireid` stays quick."""
    if name == "__version__":
        from importlib.metadata import version

        return version("trireid")
    if name in _RENAMED:
        warn_renamed(f"trireid.{name}", f"trireid.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name in _HOMES:
        return getattr(import_module(f"trireid.{_HOMES[name]}"), name)
    if name in _PARTS:
        return import_module(f"trireid.{name}")
    raise AttributeError(f"module 'trireid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS])
