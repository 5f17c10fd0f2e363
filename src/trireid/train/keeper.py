"""What a run saves: its state, its best and last checkpoint, and its metrics. The main process writes them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from trireid.config.schema import Config
from trireid.errors import RunError
from trireid.evaluation.evaluate import EvaluationResult
from trireid.evaluation.feature_files import save_features
from trireid.evaluation.features import RunModel
from trireid.models.centre import FeatureCentre
from trireid.models.reid import ReIDModel
from trireid.train.background import BackgroundWriter
from trireid.train.centring import training_means, uncentred
from trireid.train.checkpoint import Checkpoint, build_for, checkpoint_writer, load_checkpoint
from trireid.train.evaluating import (
    describe_data,
    describe_figures,
    describe_reranked,
    describe_result,
    evaluate_split,
    saved_features,
    selection_feature,
    selection_score,
)
from trireid.train.host_copy import HostCopy
from trireid.train.inputs import EvaluationSplit, TrainingInputs
from trireid.train.run_files import (
    BEST_FILE,
    LAST_FILE,
    OTHER_OUTPUT,
    RUN_METRICS,
    STATE_FILE,
    BestMetrics,
    EpochEntry,
    Figures,
    RunMetrics,
)
from trireid.train.runs import EpochLog, write_metrics
from trireid.train.selection_log import Draw, watch_selection
from trireid.train.state import TrainingState, save_state
from trireid.typed_json import checked

_log = logging.getLogger(__name__)

NUM_WEIGHT_COPIES = 8
"""Copies of the weights on the disk at most: last, best, and a state of three (weights and two moments of Adam)
with its successor beside it while that is written."""


def check_finite(model: nn.Module, epoch: int) -> None:
    """Refuse to save weights that are not finite.

    Raises:
        RunError: A weight is NaN or infinite.
    """
    state = model.state_dict()
    # Read in one piece: each reading waits for the device.
    finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()
    for name, is_finite in zip(state, finite, strict=True):
        if not is_finite:
            raise RunError(
                f"{name} is not finite after epoch {epoch}: lower train.lr and train.backbone_lr, set "
                "train.clip_grad_norm=1, or train with train.precision=fp32; earlier checkpoints are kept"
            )


class RunKeeper:
    """Evaluates, chooses and saves one run; a context manager, at whose end everything is written.

    All processes call the same methods: they share the evaluations, and only the main process ranks and writes.
    Checkpoints and states are copied to the host and written while training continues, see `BackgroundWriter`. Whenever
    the process is killed, these hold: `best` is whole and at least as new as the state; the state of an epoch is on the
    disk before the line of the next epoch. The error of a writing is raised at the end of an epoch.

    Args:
        config: resolved configuration, with the measured ranges of values.
        inputs: splits and label map.
        model: on the device of the accelerator, not wrapped.
        optimizer: not wrapped.
        accelerator: device, gradient scaler and process of the run.
        dtype: autocast type of evaluations; None: no autocast.
        progress: show bars.
        restored: the state from which the run is resumed; None: a new run.
        draw: makes pictures of the selection; None: no pictures.
    """

    def __init__(
        self,
        config: Config,
        inputs: TrainingInputs,
        *,
        model: ReIDModel,
        optimizer: Optimizer,
        accelerator: Accelerator,
        dtype: torch.dtype | None,
        progress: bool,
        restored: TrainingState | None,
        draw: Draw | None = None,
    ) -> None:
        self.config, self.inputs, self.folder = config, inputs, config.output
        self.model, self.optimizer, self.scaler = model, optimizer, accelerator.scaler
        self.device, self.dtype, self.progress = accelerator.device, dtype, progress
        is_main = accelerator.is_main_process
        self.draw = draw
        self.seconds = 0.0 if restored is None else restored.seconds
        self.untrained: Figures = {} if restored is None else restored.untrained
        # The file holds its own metrics, also where the run stopped between a new best and the next state.
        best = self.folder / BEST_FILE
        self.best_score: float | None = None
        if is_main and restored is not None and best.exists():
            self.best_score = selection_score(load_checkpoint(best).figures)
        self.run: RunModel | None = None  # how evaluations run the model; None: plain
        self._logged: set[str] = set()
        self.last_test: tuple[int, EvaluationResult | None] | None = None  # the result is on the main process
        last_epoch = 0 if restored is None else restored.epoch
        self.epochs = EpochLog(self.folder, last_epoch=last_epoch, trackers=config.train.trackers) if is_main else None
        self._writer = BackgroundWriter()
        self._centres: tuple[int, dict[str, Tensor]] | None = None  # of the model after this epoch

    def __enter__(self) -> RunKeeper:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Wait for the checkpoint that is being written, see `BackgroundWriter`."""
        self._writer.__exit__(kind, error, traceback)

    def measure_untrained(self) -> None:
        """Evaluate the untrained model on the test split, for comparison with the final metrics."""
        self._find_centre(0)
        result = self._evaluate(self.inputs.test)
        if result is None:
            return
        self.untrained = result.metrics
        _log.info("untrained: %s", describe_figures(self.untrained))

    def end_epoch(self, epoch: int, entry: EpochEntry, *, start: float) -> None:
        """Evaluate and save where the settings say so, and log the epoch.

        Args:
            epoch: the epoch that was trained.
            entry: its log entry; the metrics are added, and the time of evaluation and of copying a new best.
            start: `perf_counter()` at its beginning.
        """
        settings = self.config.train
        final = epoch == settings.epochs
        if final:
            self._find_centre(epoch, needed=True)
        if final or epoch % settings.evaluate_every == 0:
            begun = perf_counter()
            self._find_centre(epoch)
            entry["metrics"] = self.evaluate(epoch)
            entry["evaluation_seconds"] = perf_counter() - begun
            if settings.maps_every and (final or epoch % settings.maps_every == 0):
                self.watch(epoch, entry)
        self._writer.wait(replaceable=False)  # a kill costs no more logged epochs than lie between two states
        self.log(entry, seconds=perf_counter() - start)
        if final or epoch % settings.checkpoint_every == 0:
            self.save(epoch)
        if final:
            self._writer.wait()

    def evaluate(self, epoch: int) -> dict[str, Figures]:
        """Evaluate on the split that chooses `best`, and save the weights if they are the best so far.

        Returns:
            The metrics by split, for the log of the epoch; empty on all processes but the main one.
        """
        split = self.inputs.selection_split
        result = self._evaluate(split)
        if split.name == "test":
            self.last_test = (epoch, result)
        if result is None:
            return {}
        score = selection_score(result.metrics)
        _log.info("epoch %d, %s: %s", epoch, split.name, describe_figures(result.metrics))
        if self.best_score is None or score > self.best_score:
            check_finite(self.model, epoch)
            self.best_score = score
            write = self._checkpoint(BEST_FILE, epoch, note=f"best on {split.name}", figures=result.metrics)
            self._writer.start(write, replaceable=True)
        return {split.name: result.metrics}

    def watch(self, epoch: int, entry: EpochEntry) -> None:
        """Log the selection of a few test triplets: pictures, and statistics in the entry; only in the main process."""
        if self.epochs is None:
            return
        numbers, images = watch_selection(
            self.model, self.inputs.test, device=self.device, dtype=self.dtype, draw=self.draw
        )
        if numbers:
            entry["selection"] = numbers
            self.epochs.show(images, epoch=epoch)

    def log(self, entry: EpochEntry, *, seconds: float) -> None:
        """Write the line of an epoch."""
        self.seconds += seconds
        if self.epochs is not None:
            self.epochs.append({**entry, "seconds": seconds})

    def save(self, epoch: int) -> None:
        """Copy the last checkpoint and the state to resume from, and write them while training continues."""
        check_finite(self.model, epoch)
        if self.epochs is None:
            return
        copied, scaler = HostCopy(), self.scaler
        state = TrainingState(
            epoch=epoch,
            model=copied(dict(self.model.state_dict())),
            optimizer=copied(self.optimizer.state_dict()),
            scaler=copied(scaler.state_dict()) if scaler is not None else {},
            label_map=self.inputs.label_map.to_dict(),
            seconds=self.seconds,
            untrained=self.untrained,
            value_range=self.config.data.range.model_dump(),
        )
        # A run that is resumed after its last epoch does not write `last` again: the state comes after it.
        self._writer.start(self._checkpoint(LAST_FILE, epoch, note="last", weights=state.model))
        self._writer.start(partial(save_state, self.folder / STATE_FILE, state))

    def finish(self) -> RunMetrics:
        """Evaluate `last` and `best` on the test split and write the features and final metrics.

        Returns:
            The content of `metrics.json`; empty on all processes but the main one.
        """
        epoch, test = self.config.train.epochs, self.inputs.test
        if self.last_test is not None and self.last_test[0] == epoch:
            result = self.last_test[1]
        else:
            self._find_centre(epoch)
            result = self._evaluate(test)
        best = self._describe_best(result)
        if result is None or self.epochs is None:
            return {}
        save_features(self.folder, saved_features(result))
        found: RunMetrics = {
            **describe_result(result),
            **describe_reranked(result, settings=self.config.evaluate, device=self.device),
            **describe_data(self.inputs.index),
            "epoch": epoch,
            **self._describe_training(best),
        }
        metrics = checked(RUN_METRICS, found)
        self.epochs.close()
        write_metrics(self.folder, metrics)
        _log.info("last, test: %s", describe_figures(result.metrics))
        return metrics

    def _describe_training(self, best: BestMetrics) -> RunMetrics:
        """What metrics.json holds beside the evaluation of `last`."""
        described: RunMetrics = {"best": best}
        if self.untrained:
            described["untrained"] = {"feature": self.untrained}
        described["num_train"] = len(self.inputs.train_records)
        described["num_train_identities"] = len(self.inputs.label_map.identities)
        described["seed"] = self.config.train.seed
        described["train_seconds"] = self.seconds
        return described

    def _describe_best(self, last: EvaluationResult | None) -> BestMetrics:
        """The best checkpoint: its epoch, the split and metric that chose it, and its metrics on the test split."""
        best = self._centred_best()
        split = self.inputs.selection_split
        described = BestMetrics(
            epoch=best.epoch,
            chosen_on=split.name,
            chosen_by=f"{selection_feature(best.figures)} mAP",
            feature=best.figures,
        )
        if split.name == "test":
            return described
        if best.epoch != self.config.train.epochs:
            last = self._evaluate(self.inputs.test, build_for(best, self.config).to(self.device))
        described["feature"] = {} if last is None else last.metrics
        described["validation"] = best.figures
        return described

    def _centred_best(self) -> Checkpoint:
        """The best checkpoint; where it lacks the mean of its training features, that is found and written."""
        best = load_checkpoint(self.folder / BEST_FILE)
        if best.centre:
            return best
        plain = build_for(best, uncentred(self.config)).to(self.device)
        best = replace(best, centre=self._means(plain))
        if self.epochs is not None:
            checkpoint_writer(
                best.path,
                plain,
                config=best.config,
                label_map=best.label_map,
                epoch=best.epoch,
                note=best.note,
                figures=best.figures,
                advice=OTHER_OUTPUT,
                weights=best.model_state,
                centre=best.centre,
            )()
        return best

    def _find_centre(self, epoch: int, *, needed: bool = False) -> None:
        """Find the mean of the training features after an epoch, where it is `needed` or evaluations subtract it."""
        is_used = self.config.evaluate.centring == "train"
        if not (needed or is_used) or (self._centres is not None and self._centres[0] == epoch):
            return
        centre, self.model.centre = self.model.centre, None
        means = self._means(self.model)
        self._centres = epoch, means
        if is_used:
            self.model.centre = FeatureCentre(means).to(self.device) if centre is None else centre.set_means(means)

    def _means(self, model: ReIDModel) -> dict[str, Tensor]:
        test = self.inputs.test
        return training_means(
            model,
            self.inputs.plain_loader,
            transform=test.transform,
            device=self.device,
            dtype=self.dtype,
            num_shares=test.num_shares,
            progress=self.progress,
        )

    def _evaluate(self, split: EvaluationSplit, model: nn.Module | None = None) -> EvaluationResult | None:
        result = evaluate_split(
            self.model if model is None else model,
            split,
            settings=self.config.evaluate,
            device=self.device,
            dtype=self.dtype,
            progress=self.progress,
            run=self.run,
        )
        lines = [] if result is None else [(logging.INFO, result.rule.text)]
        lines += [(logging.WARNING, message) for message in (() if result is None else result.messages)]
        for level, message in lines:
            line = f"{split.name}: {message}"
            if line not in self._logged:
                self._logged.add(line)
                _log.log(level, "%s", line)
        return result

    def _checkpoint(
        self,
        name: str,
        epoch: int,
        *,
        note: str,
        figures: Figures | None = None,
        weights: dict[str, Tensor] | None = None,
    ) -> Callable[[], None]:
        """What writes a checkpoint of the weights of this moment."""
        return checkpoint_writer(
            self.folder / name,
            self.model,
            config=self.config,
            label_map=self.inputs.label_map,
            epoch=epoch,
            note=note,
            figures=figures,
            advice=OTHER_OUTPUT,
            weights=weights,
            centre=self._centres[1] if self._centres is not None and self._centres[0] == epoch else None,
        )
