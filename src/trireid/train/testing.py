"""A checkpoint on its test split: what `trireid test` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trireid.config.schema import Config
from trireid.data.records import DatasetIndex
from trireid.evaluation.evaluate import EvaluationResult
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.train.device import autocast_dtype, make_accelerator, resolve_device, resolve_precision
from trireid.train.evaluating import describe_reranked, evaluate_split
from trireid.train.inputs import open_test, scan_index


def test_checkpoint(
    path: Path,
    *,
    config: Config | None = None,  # noqa: PT028 - not a test, in spite of its name
    progress: bool = True,  # noqa: PT028
) -> dict[str, Any]:
    """Evaluate a checkpoint on the test split, in the precision it was trained in.

    Args:
        path: a checkpoint file, or a run folder, whose last checkpoint is taken.
        config: another configuration than the checkpoint's own, such as other data or withheld modalities; its
            model must be the same.
        progress: show a bar.

    Returns:
        `{"feature": {"global" | "head" | "joint": {"mAP": ..., ...}}, "num_queries": ..., ...}`, figures in [0, 1];
        with `evaluate.rerank` also `reranked`, with the same figures after re-ranking. Empty on all processes
        of a launcher but the main one; they share the work.

    Raises:
        CheckpointError: The checkpoint is damaged or does not fit the configuration's model.
        DataError: Something is wrong with the data set.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint.config if config is None else config
    device = resolve_device(config.train.device)
    precision = resolve_precision(config.train.precision, device)
    accelerator = make_accelerator(device=device, precision=precision)
    device, dtype = accelerator.device, autocast_dtype(precision)
    share = (accelerator.process_index, accelerator.num_processes)
    model = build_for(checkpoint, config).to(device)
    index = scan_index(config, progress=progress)
    split = open_test(config, index, checkpoint.label_map, device=device, share=share, progress=progress)
    result = evaluate_split(model, split, settings=config.evaluate, device=device, dtype=dtype, progress=progress)
    if result is None:
        return {}
    return {
        "checkpoint": str(checkpoint.path),
        "epoch": checkpoint.epoch,
        "note": checkpoint.note,
        **describe_result(result),
        **describe_reranked(result, split, settings=config.evaluate, device=device),
        **describe_data(index),
    }


test_checkpoint.__test__ = False  # type: ignore[attr-defined]  # the name starts with test, but pytest is not meant


def describe_result(result: EvaluationResult) -> dict[str, Any]:
    """The figures of an evaluation and what one must know to read them, as plain data for JSON."""
    return {
        "feature": result.metrics,
        "num_queries": result.num_queries,
        "num_gallery": result.num_gallery,
        "num_unmatched": result.num_unmatched,
        "messages": list(result.messages),
    }


def describe_data(index: DatasetIndex) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "data": str(index.root),
        "protocol": index.protocol.name,
        "exclude": index.protocol.exclude,
        "num_left_out": len(index.faults),
    }
