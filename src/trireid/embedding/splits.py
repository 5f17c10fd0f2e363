"""Items from the data set that a run was made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from trireid.config.load import override_config
from trireid.data.records import ImageSource, Record
from trireid.embedding.item_table import ItemList
from trireid.embedding.items import Box, Item
from trireid.errors import DataError, InputError, printable
from trireid.names import MODALITIES
from trireid.train.checkpoint import config_here, load_checkpoint
from trireid.train.inputs import scan_index

SPLITS = ("train", "query", "gallery", "test")


def split_items(run: Path, split: str, overrides: Sequence[str] = ()) -> ItemList:
    """The items of a split of a run's data set, with identity, camera and scene.

    Args:
        run: a run folder or a checkpoint.
        split: `train`, `query`, `gallery`, or `test` for query and gallery together, each item once.
        overrides: settings to change, such as `data.root=images`.

    Raises:
        InputError: the split has another name.
        DataError: the data set cannot be read.
        ConfigError: a setting does not exist or has no such value.
    """
    if split not in SPLITS:
        raise InputError(f"the split is '{printable(split, limit=40)}': choose {', '.join(SPLITS)}")
    config = override_config(config_here(load_checkpoint(run)), overrides)
    try:
        index = scan_index(config)
    except DataError as error:
        where = f"--set data.root=FOLDER of `trireid embed {printable(str(run))} --split {split}`"
        raise DataError(str(error).replace("set data.root", f"set data.root ({where})", 1)) from error
    sides = {"train": (index.train,), "query": (index.query,), "gallery": (index.gallery,)}
    records = list(dict.fromkeys(record for side in sides.get(split, (index.query, index.gallery)) for record in side))
    names = {record.name for record in records}
    items = [record_item(record) for record in records]
    if len(names) < len(records):  # the same name in query and gallery, for other images
        items = [replace(item, key=f"{item.key}:{number}") for number, item in enumerate(items)]
    return ItemList(tuple(items))


def record_item(record: Record) -> Item:
    """A record of a data set as an item; its key is the record's name."""
    sources: Sequence[ImageSource | None] = record.images
    named = {name: source for name, source in zip(MODALITIES, sources, strict=True) if source is not None}
    boxes = {name: _columns(source) for name, source in named.items() if source.columns is not None}
    return Item(
        {name: str(source.path) for name, source in named.items()},
        key=record.name,
        identity=record.identity,
        camera=record.camera,
        scene=record.scene,
        box=boxes or None,
    )


def _columns(source: ImageSource) -> Box:
    """A range of columns as a box."""
    assert source.columns is not None
    with Image.open(source.path) as image:  # reads the header alone
        return (source.columns[0], 0, source.columns[1], image.height)
