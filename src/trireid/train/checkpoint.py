"""Checkpoints: one safetensors file with the weights, the configuration and the label map. No pickle."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trireid.config.schema import LARGEST, Config
from trireid.data.labels import LabelMap
from trireid.errors import CheckpointError, InputError, printable
from trireid.files import ELSEWHERE, is_file, is_folder, replacing
from trireid.models.build import build_model
from trireid.models.centre import FeatureCentre
from trireid.models.positions import GRID_KEY, grid_text
from trireid.models.untrusted import checked_table, one_line
from trireid.models.weights import check_values
from trireid.train.host_copy import HostCopy
from trireid.train.run_files import LAST_FILE, Figures

if TYPE_CHECKING:
    from trireid.models.reid import ReIDModel

_log = logging.getLogger(__name__)

FORMAT_VERSION = "1"
_VERSION_KEY = "trireid_format"

_FIGURES: TypeAdapter[Figures] = TypeAdapter(dict[str, dict[str, float]])
_NAMES = TypeAdapter(dict[str, list[str]])
_COUNT: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=LARGEST)])

_CENTRE = "centre."
"""Begins the names of means of features, which stand beside the weights."""
_OF_THE_MACHINE = {
    "data": ("cache", "cache_folder", "workers"),
    "train": ("trackers", "compile", "cuda_graph", "recompute_blocks"),
}


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: the file.
        model_state: weights by name, on the CPU.
        config: resolved configuration of the run.
        label_map: training identities and cameras, in the order of the classifiers and camera embedding.
        epoch: last finished epoch; 0: untrained.
        note: why it was saved, such as `best on validation`.
        figures: metrics of these weights on the split that chose them; empty where none did.
        centre: mean of `global` and `head` over the training features, for `evaluate.centring=train`; empty: unknown.
    """

    path: Path
    model_state: dict[str, Tensor]
    config: Config
    label_map: LabelMap
    epoch: int
    note: str = ""
    figures: Figures = field(default_factory=dict)
    centre: dict[str, Tensor] = field(default_factory=dict)

    @property
    def made_for(self) -> str:
        """A description of what the weights depend on, for messages."""
        height, width = self.config.data.image_size
        return (
            f"backbone {self.config.model.backbone.name}, head {self.config.model.head}, "
            f"image size {height} x {width}, {len(self.label_map.identities)} identities, "
            f"{len(self.label_map.cameras)} cameras"
        )


def config_here(checkpoint: Checkpoint) -> Config:
    """The settings of a checkpoint, which may come from another person, for use on this machine.

    Settings of the machine (where files are written, how many workers start) are reset to their defaults.
    """
    default, changes = Config(), {"output": Config().output}
    for section, names in _OF_THE_MACHINE.items():
        theirs, ours = getattr(checkpoint.config, section), getattr(default, section)
        changes[section] = theirs.model_copy(update={name: getattr(ours, name) for name in names})
    cache_folder = checkpoint.config.data.cache_folder
    if cache_folder != default.data.cache_folder:
        _log.info(
            "data.cache_folder of the checkpoint (%s) is not used, since it belongs to the machine that trained it: "
            "give data.cache_folder=... to use a folder of this machine",
            printable(str(cache_folder)),
        )
    return checkpoint.config.model_copy(update=changes)


def checkpoint_writer(
    path: Path,
    model: nn.Module,
    *,
    config: Config,
    label_map: LabelMap,
    epoch: int,
    note: str = "",
    figures: Figures | None = None,
    advice: str = ELSEWHERE,
    weights: dict[str, Tensor] | None = None,
    centre: Mapping[str, Tensor] | None = None,
) -> Callable[[], None]:
    """Copy the weights and their description now, so that the model may change before they are written.

    Args:
        path: of the file.
        model: not wrapped (by DistributedDataParallel or a compiler), so that the names are its own.
        config, label_map, epoch, note, figures, centre: as the attributes of `Checkpoint`.
        advice: see `writing`.
        weights: a copy of its weights that was made before; None: make one.

    Returns:
        A function that writes the file, whole or not at all. It raises RunError where the folder cannot be written or
        the disk is full.
    """
    state: dict[str, Tensor] = HostCopy()(dict(model.state_dict())) if weights is None else weights
    means = {f"{_CENTRE}{name}": mean.detach().cpu() for name, mean in (centre or {}).items()}
    height, width = config.data.image_size
    patch_height, patch_width = state["backbone.vit.patch_embed.proj.weight"].shape[-2:]
    metadata = {
        _VERSION_KEY: FORMAT_VERSION,
        "config": config.model_dump_json(),
        "label_map": json.dumps(label_map.to_dict()),
        "epoch": str(epoch),
        "note": note,
        "figures": json.dumps(figures or {}),
        GRID_KEY: grid_text((height // patch_height, width // patch_width)),
    }

    def write() -> None:
        with replacing(path, advice=advice) as temporary:
            save_file({**state, **means}, temporary, metadata)

    return write


def save_checkpoint(
    path: Path,
    model: nn.Module,
    *,
    config: Config,
    label_map: LabelMap,
    epoch: int,
    note: str = "",
    figures: Figures | None = None,
) -> None:
    """Write a checkpoint now; arguments and errors as those of `checkpoint_writer`."""
    checkpoint_writer(path, model, config=config, label_map=label_map, epoch=epoch, note=note, figures=figures)()


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint from a file, or the last one of a run folder; its content is checked.

    Raises:
        CheckpointError: It does not exist, it is damaged, or trireid did not write it.
    """
    path = checkpoint_path(Path(path))
    try:
        space = path.stat().st_size
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_format(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({one_line(error)}): it is truncated or another format; copy it "
            "again, or train again"
        ) from error
    state = checked_table(tensors, path=path, space=space)
    try:
        return Checkpoint(
            path=path,
            model_state={name: value for name, value in state.items() if not name.startswith(_CENTRE)},
            config=Config.model_validate_json(metadata["config"]),
            label_map=LabelMap.from_dict(_NAMES.validate_json(metadata["label_map"], strict=True)),
            epoch=_COUNT.validate_json(metadata["epoch"], strict=True),
            note=printable(metadata["note"]),
            figures=_FIGURES.validate_json(metadata["figures"]),
            centre={name.removeprefix(_CENTRE): state[name] for name in state if name.startswith(_CENTRE)},
        )
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the description inside {path} cannot be read ({printable(_reason(error))}): was it written "
            "by another version of trireid? Use that version, or train again"
        ) from error


def check_fit(model: ReIDModel, checkpoint: Checkpoint) -> None:
    """Compare names, shapes and image size; the model may be on the `meta` device.

    Raises:
        CheckpointError: They differ; the message says in what, and what the checkpoint was made for.
    """
    differences = state_differences(checkpoint.model_state, model.state_dict())
    if model.backbone.image_size != checkpoint.config.data.image_size:
        # An image of swapped height and width has as many patches: its position table would load in the wrong order.
        height, width = model.backbone.image_size
        differences.insert(0, f"the model is for images of {height} x {width}")
    if differences:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model: {'; '.join(differences)}. It was made for "
            f"{checkpoint.made_for}: build the model for the same, or train again"
        )


def load_weights(model: ReIDModel, checkpoint: Checkpoint) -> None:
    """Fill a model with the weights of a checkpoint; every name and shape must fit, and the image size.

    Raises:
        CheckpointError: Names, shapes or image size differ, or the values are no weights.
    """
    check_fit(model, checkpoint)
    check_values(checkpoint.model_state, source=checkpoint.path)
    model.load_state_dict(checkpoint.model_state, strict=True)


def state_differences(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """The differences between two sets of weights as short phrases; empty where names and shapes agree."""
    missing = sorted(set(expected) - set(given))
    unexpected = sorted(set(given) - set(expected))
    shapes = [
        f"{name} is {tuple(given[name].shape)}, the model has {tuple(expected[name].shape)}"
        for name in sorted(set(given) & set(expected))
        if given[name].shape != expected[name].shape
    ]
    phrases = []
    if missing:
        phrases.append(f"{len(missing)} of the model's tensors are not in the file ({_some(missing)})")
    if unexpected:
        phrases.append(f"{len(unexpected)} tensors of the file are not in the model ({_some(unexpected)})")
    if shapes:
        phrases.append(f"{len(shapes)} tensors have another shape ({_some(shapes)})")
    return phrases


def load_model(path: Path | str, *, device: torch.device | str = "cpu") -> ReIDModel:
    """Load a trained model in evaluation mode.

    Args:
        path: a checkpoint file, or a run folder, whose last checkpoint is used.
        device: where the model is put.

    Raises:
        CheckpointError: It does not exist, it is damaged, or its weights do not fit its own configuration.
        InputError: The device does not exist on this machine.
    """
    found = usable_device(device)
    checkpoint = load_checkpoint(path)
    model = build_for(checkpoint, checkpoint.config)
    return model.to(found).eval()


def usable_device(device: torch.device | str) -> torch.device:
    """The device of an argument.

    Raises:
        InputError: torch does not know it, or this machine does not have it.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device is {device!r}: allowed are cpu, cuda, cuda:0 and so on") from error
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if (found.index or 0) >= count:
        seen = f"{count} CUDA device(s)" if count else "no CUDA device"
        raise InputError(f"device is {str(found)!r}, but torch sees {seen}: choose cpu, or one that exists")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(f"device is {str(found)!r}, which this torch cannot use: choose cpu or cuda") from error
    return found


def build_for(checkpoint: Checkpoint, config: Config) -> ReIDModel:
    """Build the model of a configuration and load the weights of a checkpoint.

    With `evaluate.centring=train` its features are centred. The settings may come from an untrusted file: no more
    memory is used than its weights need.

    Raises:
        CheckpointError: The weights do not fit, or the mean of the training features is needed and not there.
    """
    depth, num_tensors = config.model.backbone.depth, len(checkpoint.model_state)
    if depth is not None and depth > num_tensors:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model: its backbone has {depth} blocks, and the file {num_tensors} "
            "tensors"
        )
    build = partial(
        build_model,
        config.model,
        image_size=config.data.image_size,
        num_classes=len(checkpoint.label_map.identities),
        num_cameras=len(checkpoint.label_map.cameras),
        load_pretrained=False,
    )
    try:
        with torch.device("meta"):  # shapes without numbers
            check_fit(build(), checkpoint)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        raise CheckpointError(
            f"{checkpoint.path} was made for a model that cannot be built ({one_line(error)}): it is damaged"
        ) from error
    model = build()
    load_weights(model, checkpoint)
    if config.evaluate.centring == "train":
        model.centre = _centre(checkpoint, model)
    return model


def _centre(checkpoint: Checkpoint, model: ReIDModel) -> FeatureCentre:
    """The mean of a checkpoint as a part of its model.

    Raises:
        CheckpointError: there is none, or it does not fit.
    """
    if not checkpoint.centre:
        raise CheckpointError(
            f"{checkpoint.path} does not hold the mean of its training features, which evaluate.centring=train needs: "
            f"`trireid centre {checkpoint.path} --out FILE.safetensors` finds it from the training images, or use "
            "evaluate.centring=none"
        )
    expected = model.feature_widths()
    given = {name: tuple(mean.shape) for name, mean in checkpoint.centre.items()}
    if given != {name: (width,) for name, width in expected.items()}:
        raise CheckpointError(
            f"the means of features in {checkpoint.path} are of {given}, the model's features have {expected} numbers: "
            "the file is damaged; copy it again, or train again"
        )
    named = {f"{_CENTRE}{name}": mean for name, mean in checkpoint.centre.items()}
    check_values(named, source=checkpoint.path)
    return FeatureCentre(checkpoint.centre)


def checkpoint_path(path: Path) -> Path:
    """The checkpoint file of a path: the file itself, or the last checkpoint of a run folder.

    Raises:
        CheckpointError: It does not exist, or it is a pickle.
    """
    is_run = is_folder(path)
    file = path / LAST_FILE if is_run else path
    if not is_file(file):
        where = f"the run folder {path} holds no {LAST_FILE}" if is_run else f"{path} does not exist"
        raise CheckpointError(f"{where}: give a checkpoint (.safetensors), or the folder of a run that saved one")
    if file.suffix in (".pt", ".pth", ".pkl", ".bin"):
        raise CheckpointError(
            f"{file} is a pickle, which is not read here: give the .safetensors checkpoint of a trireid run, or turn a "
            "checkpoint of upstream into one with `trireid import`"
        )
    return file


def is_checkpoint(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a file is that of a trireid checkpoint, of any version."""
    return _VERSION_KEY in metadata


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise CheckpointError(
            f"{path} holds weights, but was not written by trireid: name it in model.backbone.pretrained to start "
            "from it, or give a checkpoint of a run"
        )
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {printable(version, limit=30)}, this version reads "
            f"{FORMAT_VERSION}: use the version of trireid that wrote it"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(".".join(map(str, fault["loc"])) + ": " + fault["msg"] for fault in error.errors())
    return repr(error)
