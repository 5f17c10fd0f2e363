"""Features on disk, with labels and records, so that pages and pictures can be made without the model.

`features.safetensors` holds the numbers: `<side>/feature/<name>` `(n, d)`, `<side>/present`, `<side>/item` and
`<side>/label/<identity|camera|scene|item>`, side being query or gallery (gallery absent where queries are the
gallery). `records.json` holds the records of both sides, the protocol and how distances are made.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trireid.data.records import ImageSource, Record
from trireid.errors import InputError, RunError
from trireid.evaluation.features import JOINED_FEATURES, FeatureSet, joint_blocks
from trireid.evaluation.ranking import Ranking, Rerank, Side
from trireid.files import FEATURES_FILE, RECORDS_FILE, check_regular, replacing, write_text
from trireid.names import LARGEST_POWER
from trireid.typed_json import Count, Document, Share, Text, checked, read_object, shortened
from trireid.types import NUM_MODALITIES, Blocks, Exclusion, Labels, Protocol

FORMAT_VERSION = 1
SAVED_FEATURES = JOINED_FEATURES
"""The features that are written; `joint` is their concatenation and is made again when they are read."""


Modality = Annotated[int, Field(strict=True, ge=0, lt=NUM_MODALITIES)]


class _Source(Document):
    path: Text
    columns: list[Count] | None

    def source(self) -> ImageSource:
        return ImageSource(Path(self.path), None if self.columns is None else (self.columns[0], self.columns[1]))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.path or "\0" in self.path:
            raise ValueError(f"{shortened(self.path)} is no path")
        if self.columns is not None and not (len(self.columns) == 2 and self.columns[0] < self.columns[1]):
            raise ValueError("columns must be the first and one past the last")
        return self


class _Entry(Document):
    name: Text
    images: Annotated[list[_Source | None], Field(min_length=NUM_MODALITIES, max_length=NUM_MODALITIES)]
    identity: Text
    camera: Text | None
    scene: Text | None

    def record(self) -> Record:
        images = tuple(None if source is None else source.source() for source in self.images)
        return Record(self.name, images, identity=self.identity, camera=self.camera, scene=self.scene)


class _Protocol(Document):
    name: Text
    exclude: Exclusion


class _Rerank(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    k1: Annotated[int, Field(ge=1, le=10**6)]
    k2: Annotated[int, Field(ge=1, le=10**6)]
    lambda_value: Share


class _Description(Document):
    """The content of `records.json`."""

    protocol: _Protocol
    normalise: bool
    rerank: _Rerank | None
    adaptive_fusion: Annotated[float, Field(ge=0, le=LARGEST_POWER)] = 0.0
    query_is_gallery: bool
    blocks: dict[str, list[list[Modality]] | None] = Field(default={})
    query: list[_Entry]
    gallery: list[_Entry] = Field(default=[])


_DESCRIPTION = TypeAdapter(_Description)


def save_features(directory: Path, ranking: Ranking) -> None:
    """Write `features.safetensors` and `records.json` into a run folder, each whole or not at all.

    Raises:
        InputError: features, labels and records do not have the same length.
        RunError: the files cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, side in ranking.sides.items():
        if not len(side.features) == len(side.labels) == len(side.records):
            raise InputError(
                f"the {name} side has {len(side.features)} features, {len(side.labels)} labels and "
                f"{len(side.records)} records; these numbers must be equal"
            )
        tensors |= _side_tensors(name, side)
    description = {
        "version": FORMAT_VERSION,
        "protocol": asdict(ranking.protocol),
        "normalise": ranking.normalise,
        "rerank": None if ranking.rerank is None else asdict(ranking.rerank),
        "adaptive_fusion": ranking.adaptive_fusion,
        "query_is_gallery": ranking.query_is_gallery,
        "blocks": {name: ranking.query.features.blocks.get(name) for name in SAVED_FEATURES},
    } | {name: [_record_to_json(record) for record in side.records] for name, side in ranking.sides.items()}
    with replacing(directory / FEATURES_FILE) as temporary:
        save_file(tensors, temporary)
    write_text(directory / RECORDS_FILE, json.dumps(description, indent=1))


def load_features(directory: Path) -> Ranking:
    """Read what `save_features` wrote.

    Raises:
        RunError: a file is missing, damaged, or the two do not belong together.
    """
    features_path, records_path = directory / FEATURES_FILE, directory / RECORDS_FILE
    try:
        check_regular(features_path)
        tensors = load_file(features_path)
        content = read_object(records_path)
        if content.get("version") != FORMAT_VERSION:
            raise RunError(
                f"{records_path} has format version {shortened(content.get('version'))}; this version reads "
                f"{FORMAT_VERSION}, evaluate the run again"
            )
        description = checked(_DESCRIPTION, content)
        query = _read_side("query", tensors, description)
        gallery = query if description.query_is_gallery else _read_side("gallery", tensors, description)
        return Ranking(
            query=query,
            gallery=gallery,
            protocol=Protocol(description.protocol.name, description.protocol.exclude),
            normalise=description.normalise,
            rerank=None if description.rerank is None else Rerank(**description.rerank.model_dump()),
            adaptive_fusion=description.adaptive_fusion,
        )
    except FileNotFoundError as error:
        raise RunError(f"no saved features in {directory} ({error}); evaluate the run again") from error
    except (OSError, SafetensorError, ValueError, InputError) as error:
        raise RunError(
            f"{features_path.name} or {records_path.name} in {directory} is damaged ({error}); evaluate the run again"
        ) from error


def _side_tensors(name: str, side: Side) -> dict[str, Tensor]:
    """The tensors of one side under the names of the file."""
    features = {
        f"feature/{key}": side.features.features[key] for key in SAVED_FEATURES if key in side.features.features
    }
    labels = {f"label/{key}": value for key, value in vars(side.labels).items()}
    tensors = features | labels | {"present": side.features.present, "item": side.features.item}
    # A copy each: the file format refuses tensors that share memory.
    return {f"{name}/{key}": value.cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _read_side(name: str, tensors: dict[str, Tensor], description: _Description) -> Side:
    """One side out of the tensors and the description.

    Raises:
        ValueError: a tensor is missing or of another type or shape; one line.
    """
    records = description.gallery if name == "gallery" else description.query
    if not records:
        raise ValueError(f"it has no records of the {name}")

    def tensor(key: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """A tensor whose first axis counts the records; -1 stands for any width."""
        found = tensors.get(f"{name}/{key}")
        if found is None:
            raise ValueError(f"{name}/{key} is missing")
        fits = found.dim() == 1 + len(shape) and all(
            expected in (-1, width) for expected, width in zip(shape, found.shape[1:], strict=True)
        )
        if found.dtype != dtype or not fits:
            sizes = ", ".join(["n", *("D" if expected == -1 else str(expected) for expected in shape)])
            raise ValueError(f"{name}/{key} is {found.dtype} {tuple(found.shape)}; it must be {dtype} ({sizes})")
        if len(found) != len(records):
            raise ValueError(
                f"{FEATURES_FILE} and {RECORDS_FILE} do not belong together: {name}/{key} has {len(found)} rows for "
                f"{len(records)} records"
            )
        return found

    kept = [key for key in SAVED_FEATURES if f"{name}/feature/{key}" in tensors]
    if not kept:
        raise ValueError(f"{name}/feature/global is missing")
    features = {key: tensor(f"feature/{key}", torch.float32, -1) for key in kept}
    features["joint"] = torch.cat(list(features.values()), dim=-1)
    return Side(
        features=FeatureSet(
            features,
            tensor("present", torch.bool, NUM_MODALITIES),
            tensor("item", torch.int64),
            joint_blocks(_blocks_of(features, description.blocks), features),
        ),
        labels=Labels(**{key: tensor(f"label/{key}", torch.int64) for key in ("identity", "camera", "scene", "item")}),
        records=tuple(entry.record() for entry in records),
    )


def _blocks_of(features: dict[str, Tensor], described: dict[str, list[list[Modality]] | None]) -> dict[str, Blocks]:
    """What the blocks of each feature are made of. Features of older files without this entry are
    compared as a whole.

    Raises:
        ValueError: a feature does not divide into its blocks.
    """
    blocks = {}
    for key, each in described.items():
        if each is not None and key in features:
            width = features[key].shape[1]
            if not each or not all(each) or width % len(each):
                raise ValueError(f"blocks.{key} are {len(each)}, into which a feature of {width} does not divide")
            blocks[key] = tuple(map(tuple, each))
    return blocks


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
