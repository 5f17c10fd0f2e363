"""What all exports share: what a file says about its model, its check, and writing it only if it passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from trireid.config.schema import Config
from trireid.data.range_settings import known_ranges
from trireid.embedding.embeddings import ModelIdentity
from trireid.embedding.identity import model_identity
from trireid.embedding.onnx_metadata import FeatureDescription, OnnxDescription, Precision
from trireid.embedding.own_centring import with_own_centring
from trireid.errors import InputError, printable
from trireid.export.graph import FEATURES, needs_two
from trireid.export.images import CheckImages
from trireid.export.parity import BATCHES, TOLERANCE, Case, Parity, ParityError, cases, check_parity
from trireid.export.runtimes import open_runtime
from trireid.files import replacing
from trireid.models.reid import ReIDModel
from trireid.names import ModalityName
from trireid.train.checkpoint import Checkpoint, build_for, config_here, load_checkpoint
from trireid.train.progress import Bar

_ORDER: tuple[ModalityName, ...] = get_args(ModalityName)
_IN_TABLE = {"version", "fingerprint", "description", "modalities", "opset", "precision"}


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: of the file.
        parity_path: of the table of the check, as JSON.
        description: what the file says about itself.
        parity: the check.
    """

    path: Path
    parity_path: Path
    description: OnnxDescription
    parity: Parity


@dataclass(frozen=True)
class Source:
    """A model that is to be exported.

    Attributes:
        model: in evaluation mode, on the CPU, float32.
        config: of its run.
        description: of the file.
        places: indices of the modalities that the file is fixed to, or None.
    """

    model: ReIDModel
    config: Config
    description: OnnxDescription
    places: tuple[int, ...] | None

    def cases(self, images: CheckImages) -> list[Case]:
        """What the model gives for images, for every presence."""
        about = self.description
        num_cameras = len(about.cameras or ())
        return list(
            cases(self.model, images.images, modalities=self.places, fewest=about.fewest, num_cameras=num_cameras)
        )


def open_source(
    given: Checkpoint | Path | str, *, modalities: tuple[ModalityName, ...] | None, opset: int | None, half: bool
) -> Source:
    """The model of a run or checkpoint; arguments and errors as those of `export_onnx`."""
    checkpoint = given if isinstance(given, Checkpoint) else load_checkpoint(given)
    checkpoint = with_own_centring(checkpoint, None)
    model = build_for(checkpoint, config_here(checkpoint)).eval()
    description = describe(checkpoint, model, modalities=modalities, opset=opset, half=half)
    places = None if modalities is None else tuple(_ORDER.index(name) for name in modalities)
    return Source(model, checkpoint.config, description, places)


def num_steps(expected: Sequence[Case], runtimes: Sequence[str]) -> int:
    """Of the bar: writing the file, and each comparison."""
    return 1 + len(runtimes) * len(expected) * len(BATCHES)


def checked_modalities(out: Path, suffix: str, modalities: Sequence[str] | None) -> tuple[ModalityName, ...] | None:
    """The modalities in their order, or None.

    Raises:
        InputError: the name of the file has another ending, or a modality does not exist.
    """
    if out.suffix != suffix:
        other = f", or the format be that of {out.suffix} (--to)" if out.suffix in (".onnx", ".pt2") else ""
        raise InputError(f"the file to write is {printable(str(out))}: its name must end in {suffix}{other}")
    if modalities is None:
        return None
    if isinstance(modalities, str) or not modalities or set(modalities) - set(_ORDER):
        raise InputError(f"modalities is {printable(str(modalities), limit=60)}: name one or more of rgb, nir, tir")
    return tuple(name for name in _ORDER if name in modalities)


def with_table(out: Path, description: OnnxDescription, parity: Parity) -> Exported:
    """Write the table of the check beside the file."""
    parity_path = out.with_name(f"{out.name}.parity.json")
    about = {"file": out.name, **description.model_dump(mode="json", include=_IN_TABLE), **parity.to_dict()}
    with replacing(parity_path) as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    return Exported(out, parity_path, description, parity)


def write_checked(
    out: Path,
    content: bytes,
    names: Sequence[str],
    expected: Sequence[Case],
    *,
    runtimes: Sequence[str],
    source: Source,
    description: OnnxDescription,
    images: str,
    bar: Bar,
) -> Parity:
    """Write a file, and keep it if it passes the check.

    Raises:
        ParityError: it does not; nothing of it is left.
        RunError: it cannot be written.
    """
    with replacing(out) as temporary:
        temporary.write_bytes(content)
        parity = check_parity(
            expected,
            {name: open_runtime(name, temporary) for name in runtimes},
            names=names,
            modalities=source.places,
            tolerance=TOLERANCE[description.precision],
            images=images,
            bar=bar,
        )
        if parity.faults:
            raise ParityError(parity)
    return parity


def describe(
    checkpoint: Checkpoint,
    model: ReIDModel,
    *,
    modalities: tuple[ModalityName, ...] | None,
    opset: int | None,
    half: bool,
) -> OnnxDescription:
    """What the file of a model says about itself; arguments as those of `export_onnx`.

    Raises:
        InputError: the model cannot be fixed to these modalities.
    """
    config = checkpoint.config
    identities = _identities(checkpoint, model)
    reads = tuple(name for name in config.data.modalities if modalities is None or name in modalities)
    if modalities is not None and set(modalities) - set(config.data.modalities):
        raise InputError(
            f"modalities is {','.join(modalities)}, but the model was trained with {','.join(config.data.modalities)} "
            "alone: choose from these"
        )
    precision: Precision = "fp16" if half else "fp32"
    return OnnxDescription(
        version=version("trireid"),
        fingerprint=identities["joint"].fingerprint,
        description=identities["joint"].description,
        centring=identities["joint"].centring,
        features={name: FeatureDescription(blocks=each.blocks, width=each.width) for name, each in identities.items()},
        modalities=_ORDER if modalities is None else modalities,
        has_present=modalities is None,
        reads=reads,
        fewest=2 if needs_two(model) else 1,
        cameras=None if model.backbone.camera_embedding is None else tuple(checkpoint.label_map.cameras),
        **_preprocessing(config),
        opset=opset,
        precision=precision,
    )


def _identities(checkpoint: Checkpoint, model: ReIDModel) -> dict[str, ModelIdentity]:
    names = ("global", "joint") if model.head is None else (*FEATURES, "joint")
    return {name: model_identity(checkpoint, model, feature=name) for name in names}


def _preprocessing(config: Config) -> dict[str, Any]:
    data = config.data
    return {
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
        "ranges": dict(zip(_ORDER, known_ranges(data.range), strict=True)),
    }
