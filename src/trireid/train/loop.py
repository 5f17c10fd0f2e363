"""The training of one run, top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from trireid.config.load import advice, dump_changes, dump_config
from trireid.config.schema import Config, TrainConfig
from trireid.data.labels import LabelMap
from trireid.data.loader import set_epoch
from trireid.data.range_settings import with_ranges
from trireid.data.reading import ImageError
from trireid.errors import RunError
from trireid.evaluation.recorded_run import RecordedRun
from trireid.models.build import build_model, check_model, check_published_weights
from trireid.models.compiling import room_to_compile
from trireid.models.reid import ReIDModel
from trireid.models.speed_choice import Speed
from trireid.names import Precision
from trireid.train.compilation import choose_speed, compiled_if_possible
from trireid.train.device import (
    autocast_dtype,
    deterministic_algorithms,
    make_accelerator,
    resolve_device,
    resolve_precision,
    seed_epoch,
)
from trireid.train.environment import describe_environment
from trireid.train.epoch import make_gradients, train_epoch
from trireid.train.gathering import check_batch_size, check_same, lost_process, synchronise_statistics
from trireid.train.gradient_mean import GradientMean
from trireid.train.inputs import TrainingInputs, check_blinding, check_root, open_inputs
from trireid.train.keeper import NUM_WEIGHT_COPIES, RunKeeper
from trireid.train.optim import ParameterGroups, build_optimizer, group_lr_factor, parameter_groups, set_lr
from trireid.train.progress import progress_bar
from trireid.train.recording import record_steps
from trireid.train.run_files import CONFIG_FILE, STATE_FILE, EpochEntry, RunMetrics
from trireid.train.runs import (
    OF_A_MACHINE,
    claim_run_folder,
    only_run,
    read_metrics,
    require_space,
    setting_values,
    write_start,
)
from trireid.train.selection_log import Draw
from trireid.train.starting import fill_from, start_checkpoint
from trireid.train.state import TrainingState, find_state, restore
from trireid.train.trackers import check_trackers
from trireid.types import Batch

_log = logging.getLogger(__name__)


def train(
    config: Config,
    *,
    resume: bool = False,
    progress: bool = True,
    measure_untrained: bool = False,
    draw: Draw | None = None,
    brief: bool = False,
) -> RunMetrics:
    """Train and evaluate one run; every process of a launcher calls it.

    The run folder `config.output` gets `config.yaml`, `environment.json`, `metrics.jsonl` (one line per epoch),
    TensorBoard events, `last.safetensors`, `best.safetensors`, `state/` to resume from, `features.safetensors` and
    `records.json` (of `last` on the test split), and at the end `metrics.json`.

    Args:
        config: resolved configuration.
        resume: continue the run of this folder from its last saved state; a finished run is left as it is.
        progress: show bars (the main process only).
        measure_untrained: evaluate the model on the test split before training, too.
        brief: log only the settings that differ from the defaults.
        draw: makes pictures of the selection, such as `visualize.selections.selection_pictures`; None: no pictures.

    Returns:
        The content of `metrics.json`, metrics in [0, 1]; empty on all processes but the main one.

    Raises:
        ConfigError: The batch cannot be shared by this number of processes, or they have different settings or data.
        RunError: The folder cannot be used or another run uses it, the disk is full, the loss is not finite, or
            another process of the run ended.
        TrireidError: Another fault of the data, the settings or the start weights.
    """
    check_trackers(config.train.trackers)
    device = resolve_device(config.train.device)
    precision = resolve_precision(config.train.precision, device)
    accelerator = make_accelerator(device=device, precision=precision)
    shown = progress and accelerator.is_main_process
    options = _Options(precision, resume, progress=shown, untrained=measure_untrained, draw=draw, brief=brief)
    _check_start(config, accelerator, resume=resume)
    try:
        return _train_in_folder(config, accelerator, options)
    except ImageError as error:
        # An error of a loader's worker and its traceback hold each other, and accelerate holds the loaders. Unless both
        # are undone, the workers are left to the garbage collector, which takes 5 s for each.
        error.__traceback__ = None
        accelerator.free_memory()
        raise
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not lost_process(error):
            raise
        raise RunError(
            f"process {accelerator.process_index} of the run stops because another one did: see the message of that "
            "one, then start all of them again with --resume"
        ) from error


@dataclass(frozen=True)
class _Options:
    """How `train` was called; see there."""

    precision: Precision
    resume: bool
    progress: bool
    untrained: bool
    draw: Draw | None
    brief: bool


def _check_start(config: Config, accelerator: Accelerator, *, resume: bool) -> None:
    """Refuse what can be refused before anything that takes time; errors as `train`."""
    check_batch_size(config.data.batch_size, accelerator.num_processes)
    check_blinding(config)
    check_model(config.model, image_size=config.data.image_size, load_pretrained=not resume)
    if not resume:
        check_root(config)
        check_published_weights(config.model, image_size=config.data.image_size)
        start_checkpoint(config)


def _train_in_folder(config: Config, accelerator: Accelerator, options: _Options) -> RunMetrics:
    """Train in the run folder, which no other run may use meanwhile; errors as `train`."""
    main = accelerator.is_main_process
    _check_same_settings(config, accelerator, options)
    with _own_folder(config, resume=options.resume) if main else nullcontext():
        accelerator.wait_for_everyone()
        finished = read_metrics(config.output)
        if finished is not None:
            _log.info("the run in %s is finished already: nothing to resume", config.output)
            return finished
        accelerator.wait_for_everyone()  # no process may write the final metrics before all have looked for them
        if main:
            _log_settings(config, resume=options.resume, brief=options.brief)
        deterministic = deterministic_algorithms(accelerator.device)
        with deterministic:
            return _train(config, accelerator, options)


def _check_same_settings(config: Config, accelerator: Accelerator, options: _Options) -> None:
    """Refuse processes that have different settings: they would wait for each other, or train different models."""
    settings = {name: value for name, value in setting_values(config) if name not in OF_A_MACHINE}
    given = {
        **settings,
        "the precision": options.precision,
        "--resume": options.resume,
        "an evaluation before training": options.untrained,
    }
    check_same(given, num_processes=accelerator.num_processes, advice="start all of them with the same command")


@contextmanager
def _own_folder(config: Config, *, resume: bool) -> Iterator[None]:
    """Claim the run folder and lock it against other runs while the block runs; errors as `claim_run_folder`."""
    claim_run_folder(config.output, config, resume=resume)
    with only_run(config.output):
        # Between the first check and the lock, another run may have started and finished.
        claim_run_folder(config.output, config, resume=resume)
        yield


def _log_settings(config: Config, *, resume: bool, brief: bool) -> None:
    """Log the settings, and warn of those that are probably a mistake."""
    if brief:
        _log.info("settings that differ from the defaults (all: %s):\n%s", CONFIG_FILE, dump_changes(config).rstrip())
    else:
        _log.info("settings:\n%s", dump_config(config).rstrip())
    for line in advice(config):
        _log.warning(line)
    if resume and not (config.output / STATE_FILE).exists():
        _log.warning("%s holds no state to resume from yet: the run starts from the first epoch", config.output)


def _train(config: Config, accelerator: Accelerator, options: _Options) -> RunMetrics:
    """Train in a claimed run folder, from reading the data to the final metrics."""
    share = (accelerator.process_index, accelerator.num_processes)
    with open_inputs(config, device=accelerator.device, share=share, progress=options.progress) as inputs:
        check_same(inputs.fingerprint(), num_processes=share[1], advice="give all of them the same data set")
        return _train_on(inputs, config, accelerator, options)


def _train_on(inputs: TrainingInputs, config: Config, accelerator: Accelerator, options: _Options) -> RunMetrics:
    """Train on opened data."""
    settings, device, main = config.train, accelerator.device, accelerator.is_main_process
    precision, progress = options.precision, options.progress
    seed_epoch(settings.seed, 0)
    state = find_state(config.output / STATE_FILE)
    first = 1 if state is None else state.epoch + 1
    speed = choose_speed(config, accelerator, precision=precision, inputs=inputs, epochs=settings.epochs + 1 - first)
    model = _make_model(config, inputs.label_map, fresh=state is None).to(device)
    optimizer = _make_optimizer(model.parameter_groups(), settings)
    if state is not None:
        _restore(state, model, optimizer, inputs, accelerator)
    if main:
        _start_folder(config, model, accelerator=accelerator, precision=precision)
    keeper = RunKeeper(
        with_ranges(config, inputs.value_range),  # for the checkpoints; `config.yaml` holds what was set
        inputs,
        model=model,
        optimizer=optimizer,
        accelerator=accelerator,
        dtype=autocast_dtype(precision),
        progress=progress,
        restored=state,
        draw=options.draw,
    )
    if options.untrained and state is None:
        keeper.measure_untrained()
    loader = accelerator.prepare_data_loader(inputs.loader)
    model.backbone.cuts_in_training = first > settings.dense_epochs
    model.backbone.recompute_blocks = settings.recompute_blocks
    speed = compiled_if_possible(
        model,
        speed,
        accelerator=accelerator,
        sizes={True: config.data.batch_size // accelerator.num_processes, False: config.evaluate.batch_size},
    )
    if speed.recorded and device.type == "cuda" and accelerator.num_processes == 1:
        keeper.run = RecordedRun(model, batch_size=config.evaluate.batch_size, dtype=autocast_dtype(precision))
    run_epoch = _prepare(model, optimizer, loader, inputs, accelerator=accelerator, settings=settings, speed=speed)

    with room_to_compile(forgiving=True) if speed.compiled else nullcontext(), keeper:
        for epoch in range(first, settings.epochs + 1):
            start = perf_counter()
            seed_epoch(settings.seed, epoch, process=accelerator.process_index)
            set_epoch(loader, epoch)
            model.backbone.cuts_in_training = epoch > settings.dense_epochs
            entry: EpochEntry = {"epoch": epoch, "lr": set_lr(optimizer, partial(_factor, epoch, settings))}
            with progress_bar(f"epoch {epoch}/{settings.epochs}", total=len(loader), enabled=progress) as bar:
                entry |= run_epoch(epoch=epoch, bar=bar)
            keeper.end_epoch(epoch, entry, start=start)
            accelerator.wait_for_everyone()
        metrics = keeper.finish()
        accelerator.wait_for_everyone()
    return metrics


def _restore(
    state: TrainingState, model: ReIDModel, optimizer: Optimizer, inputs: TrainingInputs, accelerator: Accelerator
) -> None:
    """Restore a state, if it is of the same data; errors as `restore`."""
    restore(
        state,
        model=model,
        optimizer=optimizer,
        scaler=accelerator.scaler,
        label_map=inputs.label_map,
        value_range=inputs.value_range.model_dump(),
    )


def _make_model(config: Config, label_map: LabelMap, *, fresh: bool) -> ReIDModel:
    """The model of a run, with its start weights where it is fresh."""
    model = build_model(
        config.model,
        image_size=config.data.image_size,
        num_classes=len(label_map.identities),
        num_cameras=len(label_map.cameras),
        load_pretrained=fresh,
    )
    checkpoint = start_checkpoint(config) if fresh else None
    if checkpoint is not None:
        for line in fill_from(model, checkpoint, config=config, label_map=label_map):
            _log.info(line)
    return model


def _prepare(
    model: ReIDModel,
    optimizer: Optimizer,
    loader: DataLoader[Batch],
    inputs: TrainingInputs,
    *,
    accelerator: Accelerator,
    settings: TrainConfig,
    speed: Speed,
) -> Callable[..., EpochEntry]:
    """`train_epoch` of a model, prepared for its processes, and recorded where that was chosen."""
    if accelerator.num_processes > 1:
        synchronise_statistics(model)
    complete = inputs.complete and settings.modality_dropout == 0
    possible = accelerator.device.type == "cuda" and complete
    mean = GradientMean(model) if speed.recorded and possible and accelerator.num_processes > 1 else None
    trained = accelerator.prepare_model(model, evaluation_mode=mean is not None)  # then it is not wrapped
    stepper = accelerator.prepare_optimizer(optimizer)
    gradients = partial(
        make_gradients,
        model=trained,
        accelerator=accelerator,
        settings=settings,
        transform=inputs.transform,
        complete=complete,
        mean=mean,
    )
    return partial(
        train_epoch,
        trained,
        loader,
        stepper,
        gradients=record_steps(
            gradients, model, requested=speed.recorded or settings.cuda_graph is True, possible=possible
        ),
        accelerator=accelerator,
        settings=settings,
    )


def _make_optimizer(groups: ParameterGroups, settings: TrainConfig) -> Optimizer:
    named = parameter_groups(
        groups,
        lr=settings.lr,
        backbone_lr=settings.backbone_lr,
        bias_lr_factor=settings.bias_lr_factor,
        classifier_lr_factor=settings.classifier_lr_factor,
        backbone_bias_lr_factor=settings.backbone_bias_lr_factor,
        camera_lr=settings.backbone_lr if settings.camera_lr_from == "backbone" else settings.lr,
        layer_decay=settings.layer_decay,
    )
    return build_optimizer(
        named, name=settings.optimizer, weight_decay=settings.weight_decay, momentum=settings.momentum
    )


def _factor(epoch: int, settings: TrainConfig, own_lr: float) -> float:
    return group_lr_factor(
        epoch,
        own_lr,
        base_lr=settings.lr,
        epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        warmup_factor=settings.warmup_factor,
        warmup_from=settings.warmup_from,
        final_lr_factor=settings.final_lr_factor,
        final_lr_from=settings.final_lr_from,
        cosine_under_warmup=settings.cosine_under_warmup,
        lr_noise=settings.lr_noise,
    )


def _start_folder(config: Config, model: nn.Module, *, accelerator: Accelerator, precision: Precision) -> None:
    """Check the free space, and write the settings and the environment."""
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    require_space(config.output, NUM_WEIGHT_COPIES * weights)
    environment = describe_environment(
        device=accelerator.device,
        precision=precision,
        num_processes=accelerator.num_processes,
        seed=config.train.seed,
    )
    write_start(config.output, config, environment)
