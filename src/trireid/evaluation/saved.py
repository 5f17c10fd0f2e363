"""Features on disk, with who is on each item, so that pages and pictures can be made without the model.

`features.safetensors` holds the numbers: `<side>/feature/<name>` `(n, d)`, `<side>/present`, `<side>/item` and
`<side>/label/<identity|camera|scene|item>`, side being query or gallery (gallery absent where queries are the
gallery). `records.json` holds the records of both sides, the protocol and how distances are made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trireid.data.records import ImageSource, Record
from trireid.errors import InputError, RunError
from trireid.evaluation.evaluate import Rerank
from trireid.evaluation.features import JOINED_FEATURES, FeatureSet, joint_blocks
from trireid.files import replacing, write_text
from trireid.types import Labels, Protocol

FEATURES_FILE = "features.safetensors"
RECORDS_FILE = "records.json"
FORMAT_VERSION = 1
SAVED_FEATURES = JOINED_FEATURES
"""What is written; `joint` is these two side by side and is put together again when read."""


@dataclass(frozen=True)
class SavedSide:
    """One side of a ranking: features, labels and records, row for row."""

    features: FeatureSet
    labels: Labels
    records: tuple[Record, ...]


@dataclass(frozen=True)
class SavedFeatures:
    """All that a ranking needs. `gallery` is the same object as `query` where the queries are the gallery."""

    query: SavedSide
    gallery: SavedSide
    protocol: Protocol
    normalise: bool = True
    rerank: Rerank | None = None

    @property
    def query_is_gallery(self) -> bool:
        """True where one set is query and gallery at once."""
        return self.query is self.gallery


def save_features(directory: Path, saved: SavedFeatures) -> None:
    """Write `features.safetensors` and `records.json` into a run folder, each whole or not at all.

    Raises:
        InputError: features, labels and records do not have the same length.
        RunError: the files cannot be written.
    """
    sides = {"query": saved.query} | ({} if saved.query_is_gallery else {"gallery": saved.gallery})
    tensors: dict[str, Tensor] = {}
    for name, side in sides.items():
        if not len(side.features) == len(side.labels) == len(side.records):
            raise InputError(
                f"the {name} side has {len(side.features)} features, {len(side.labels)} labels and "
                f"{len(side.records)} records; they must be as many"
            )
        tensors |= _side_tensors(name, side)
    description = {
        "version": FORMAT_VERSION,
        "protocol": asdict(saved.protocol),
        "normalise": saved.normalise,
        "rerank": None if saved.rerank is None else asdict(saved.rerank),
        "query_is_gallery": saved.query_is_gallery,
        "blocks": {name: saved.query.features.blocks.get(name) for name in SAVED_FEATURES},
    } | {name: [_record_to_json(record) for record in side.records] for name, side in sides.items()}
    with replacing(directory / FEATURES_FILE) as temporary:
        save_file(tensors, temporary)
    write_text(directory / RECORDS_FILE, json.dumps(description, indent=1))


def load_features(directory: Path) -> SavedFeatures:
    """Read what `save_features` wrote.

    Raises:
        RunError: a file is missing, damaged, or the two do not belong together.
    """
    features_path, records_path = directory / FEATURES_FILE, directory / RECORDS_FILE
    try:
        tensors = load_file(features_path)
        description = json.loads(records_path.read_text(encoding="utf-8"))
        if description["version"] != FORMAT_VERSION:
            raise RunError(
                f"{records_path} has format version {description['version']}; this version reads {FORMAT_VERSION}, "
                f"evaluate the run again"
            )
        query = _read_side("query", tensors, description)
        same = description["query_is_gallery"]
        rerank = description["rerank"]
        saved = SavedFeatures(
            query=query,
            gallery=query if same else _read_side("gallery", tensors, description),
            protocol=Protocol(**description["protocol"]),
            normalise=description["normalise"],
            rerank=None if rerank is None else Rerank(**rerank),
        )
    except FileNotFoundError as error:
        raise RunError(f"no saved features in {directory} ({error}); evaluate the run again") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{features_path.name} or {records_path.name} in {directory} is damaged "
            f"({type(error).__name__}: {error}); evaluate the run again"
        ) from error
    for side in (saved.query, saved.gallery):
        if not len(side.features) == len(side.labels) == len(side.records):
            raise RunError(f"{features_path} and {records_path} do not belong together; evaluate the run again")
    return saved


def _side_tensors(name: str, side: SavedSide) -> dict[str, Tensor]:
    """The tensors of one side under the names of the file."""
    features = {
        f"feature/{key}": side.features.features[key] for key in SAVED_FEATURES if key in side.features.features
    }
    labels = {f"label/{key}": value for key, value in vars(side.labels).items()}
    tensors = features | labels | {"present": side.features.present, "item": side.features.item}
    # A copy each: the file format refuses tensors that share memory.
    return {f"{name}/{key}": value.cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _read_side(name: str, tensors: dict[str, Tensor], description: dict[str, Any]) -> SavedSide:
    """One side out of the tensors and the description."""
    kept = {key: tensors[f"{name}/feature/{key}"] for key in SAVED_FEATURES if f"{name}/feature/{key}" in tensors}
    features = kept | {"joint": torch.cat(list(kept.values()), dim=-1)}
    # Files of before this entry rank as they did: features as a whole, what is absent as zeros.
    described = {key: each for key, each in description.get("blocks", {}).items() if each is not None}
    blocks = joint_blocks({key: tuple(map(tuple, each)) for key, each in described.items()}, features)
    return SavedSide(
        features=FeatureSet(features, tensors[f"{name}/present"], tensors[f"{name}/item"], blocks),
        labels=Labels(**{key: tensors[f"{name}/label/{key}"] for key in ("identity", "camera", "scene", "item")}),
        records=tuple(_record_from_json(entry) for entry in description[name]),
    )


def _record_to_json(record: Record) -> dict[str, Any]:
    """A record as plain data; image paths absolute, so that the page finds them from any folder."""
    return {
        "name": record.name,
        "identity": record.identity,
        "camera": record.camera,
        "scene": record.scene,
        "images": [
            None if source is None else {"path": str(source.path.absolute()), "columns": source.columns}
            for source in record.images
        ],
    }


def _record_from_json(entry: dict[str, Any]) -> Record:
    """A record out of plain data."""

    def source(data: dict[str, Any] | None) -> ImageSource | None:
        if data is None:
            return None
        columns: Sequence[int] | None = data["columns"]
        return ImageSource(Path(data["path"]), None if columns is None else (columns[0], columns[1]))

    return Record(
        name=entry["name"],
        images=tuple(source(image) for image in entry["images"]),
        identity=entry["identity"],
        camera=entry["camera"],
        scene=entry["scene"],
    )
