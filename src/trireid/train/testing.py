"""Evaluation of a checkpoint on its test split, as `trireid test` does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trireid.config.schema import Config
from trireid.data.range_settings import filled_ranges, with_ranges
from trireid.data.records import DatasetIndex
from trireid.errors import InputError, RunError
from trireid.evaluation.breakdown import break_down, check_columns
from trireid.evaluation.evaluate import EvaluationResult
from trireid.evaluation.features import RunModel
from trireid.evaluation.float8 import into_float8
from trireid.evaluation.ranking import Ranking
from trireid.evaluation.recorded_run import RecordedRun
from trireid.models.compiling import room_to_compile
from trireid.models.reid import ReIDModel
from trireid.train.centring import with_means
from trireid.train.checkpoint import Checkpoint, build_for, config_here, load_checkpoint
from trireid.train.compilation import choose_test_speed, compiled_if_possible
from trireid.train.device import autocast_dtype, make_accelerator, resolve_device, resolve_inference_precision
from trireid.train.evaluating import describe_data, describe_reranked, describe_result, evaluate_split, saved_features
from trireid.train.gathering import check_same
from trireid.train.inputs import EvaluationSplit, open_test, scan_index
from trireid.train.missing_table import check_cases, describe_cases
from trireid.train.run_files import CheckpointMetrics, SubsetTables
from trireid.train.runs import OF_A_MACHINE, setting_values


def evaluate_checkpoint(
    path: Path,
    *,
    config: Config | None = None,
    progress: bool = True,
    missing_cases: bool = False,
    any_to_any: bool = False,
    by: Sequence[str] = (),
    precision: str | None = None,
) -> CheckpointMetrics:
    """Evaluate a checkpoint on the test split, in the precision it was trained in or another.

    Args:
        path: a checkpoint file, or a run folder, whose last checkpoint is used.
        config: used instead of the configuration of the checkpoint, such as other data or withheld modalities; its
            model must be the same. None: that of the checkpoint.
        progress: show a bar.
        missing_cases, any_to_any: add the tables over withheld modalities, see `missing_table.describe_cases`; the
            configuration itself must withhold none.
        by: columns of the queries, such as `scene` or `camera`, that the metrics are also broken down by.
        precision: `fp32`, `bf16`, `fp16`, or `fp8` (the large products of the backbone in 8-bit floating point,
            calibrated by the first batch of the queries; one process); None: `train.precision` of the configuration.

    Returns:
        `{"feature": {"global" | "head" | "joint": {"mAP": ..., ...}}, "num_queries": ..., ...}`, metrics in [0, 1];
        the requested tables as `missing` and `any_to_any`; the metrics by column and value as `by`; with
        `evaluate.rerank` also `reranked`, the same metrics after re-ranking, with a `by` of its own. Several processes
        of a launcher share the work; the result is empty on all but the main one.

    Raises:
        ConfigError: The configuration withholds modalities, and a table over withheld modalities is requested.
        CheckpointError: The checkpoint is damaged or does not fit the configuration's model.
        DataError: Something is wrong with the data set.
        InputError: The queries have no such column, or the device, the backbone or several processes cannot compute in
            fp8.
    """
    how: dict[str, Any] = {"by": by, "precision": precision}
    tested = _run_test(path, config, progress=progress, missing=missing_cases, any_to_any=any_to_any, **how)
    result = tested.result
    if result is None:
        return {}
    return {
        "checkpoint": str(tested.checkpoint.path),
        "epoch": tested.checkpoint.epoch,
        "note": tested.checkpoint.note,
        **describe_result(result),
        **_describe_groups(result, by),
        **tested.cases,
        **describe_reranked(result, settings=tested.config.evaluate, device=tested.device, by=by),
        **describe_data(tested.index),
    }


def _describe_groups(result: EvaluationResult, by: Sequence[str]) -> CheckpointMetrics:
    """`{"by": ...}`, see `breakdown.break_down`; empty without columns."""
    return {"by": break_down(result.rankings, result.source.query.records, by)} if by else {}


def checkpoint_features(path: Path, *, config: Config | None = None, progress: bool = True) -> Ranking:
    """Extract the features of a checkpoint on the test split, ready to be ranked; arguments as `evaluate_checkpoint`.

    Raises:
        RunError: This is not the main process, which alone has the features.
    """
    tested = _run_test(path, config, progress=progress)
    if tested.result is None:
        raise RunError("only the main process has the features: run this in one process")
    return saved_features(tested.result)


@dataclass(frozen=True)
class _Tested:
    """A checkpoint and its evaluation; the result is None on all processes but the main one."""

    checkpoint: Checkpoint
    config: Config
    index: DatasetIndex
    split: EvaluationSplit
    device: torch.device
    result: EvaluationResult | None
    cases: SubsetTables


def _calibrate(model: ReIDModel, split: EvaluationSplit, *, device: torch.device) -> None:
    if split.num_shares > 1:
        raise InputError(
            "precision fp8 is calibrated by the first batch of one process, and several would round differently: test "
            "in one process, or use bf16"
        )
    into_float8(model, next(iter(split.query_loader)), device=device, transform=split.transform)


def _run_test(
    path: Path,
    config: Config | None,
    *,
    progress: bool,
    missing: bool = False,
    any_to_any: bool = False,
    by: Sequence[str] = (),
    precision: str | None = None,
) -> _Tested:
    """Evaluate a checkpoint; arguments and errors as `evaluate_checkpoint`."""
    checkpoint = load_checkpoint(path)
    config = config_here(checkpoint) if config is None else config
    config = with_ranges(config, filled_ranges(config.data.range, checkpoint.config.data.range))
    if missing or any_to_any:
        check_cases(config)
    device = resolve_device(config.train.device)
    chosen = resolve_inference_precision(precision or config.train.precision, device)
    accelerator = make_accelerator(device=device, precision="bf16" if chosen == "fp8" else chosen)
    device, dtype = accelerator.device, autocast_dtype(chosen)
    share = (accelerator.process_index, accelerator.num_processes)
    settings = {name: value for name, value in setting_values(config) if name not in OF_A_MACHINE}
    given = {**settings, "the checkpoint's epoch": checkpoint.epoch, "the precision": chosen}
    check_same(
        {**given, "--missing all": missing, "--any-to-any": any_to_any, "--by": ",".join(by)},
        num_processes=share[1],
        advice="start all of them with the same command",
    )
    index = scan_index(config, progress=progress)
    check_columns(index.query, by)
    if config.evaluate.centring == "train":
        checkpoint = with_means(checkpoint, config, index, device=device, dtype=dtype, share=share, progress=progress)
    model = build_for(checkpoint, config).to(device)
    split = open_test(config, index, checkpoint.label_map, device=device, share=share, progress=progress)
    if chosen == "fp8":
        _calibrate(model, split, device=device)
    check_same(split.fingerprint(), num_processes=share[1], advice="give all of them the same data set")
    with _fast_run(model, split, config=config, accelerator=accelerator, dtype=dtype) as run:
        how: dict[str, Any] = {"device": device, "dtype": dtype, "progress": progress}
        result = evaluate_split(model, split, settings=config.evaluate, run=run, **how)
        cases: SubsetTables = {}
        if missing or any_to_any:
            tables: dict[str, Any] = {"missing": missing, "any_to_any": any_to_any, "by": by}
            cases = describe_cases(model, split, result, config=config, **how, **tables)
    return _Tested(checkpoint, config, index, split, device, result, cases)


@contextmanager
def _fast_run(
    model: ReIDModel, split: EvaluationSplit, *, config: Config, accelerator: Accelerator, dtype: torch.dtype | None
) -> Iterator[RunModel | None]:
    """Compile a model and record its batches where that is worth it; how to run it meanwhile (None: plain)."""
    speed = choose_test_speed(config, accelerator, num_items=split.num_items)
    size = config.evaluate.batch_size
    speed = compiled_if_possible(model, speed, accelerator=accelerator, sizes={False: size})
    with room_to_compile(forgiving=True) if speed.compiled else nullcontext():
        yield RecordedRun(model, batch_size=size, dtype=dtype) if speed.recorded else None
