"""Items from several CSV files and folders. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trireid.embedding.item_folder import SUFFIXES, read_item_folder
from trireid.embedding.item_table import ItemList, read_item_table
from trireid.embedding.items import Item
from trireid.errors import DataError, InputError, printable
from trireid.files import is_file, is_folder


def read_inputs(paths: Sequence[Path], *, prefix_keys: bool = False) -> ItemList:
    """The items of CSV files and folders, in their order.

    Args:
        paths: of the inputs.
        prefix_keys: put the name of each input before its keys, as in `cam1/17`, so that equal names stay apart.

    Raises:
        DataError: an input cannot be read, or is an image.
        InputError: two inputs have an item of the same key.
    """
    parts = [_read(path) for path in paths]
    items: list[Item] = []
    owners: dict[str | None, Path] = {}
    for path, part in zip(paths, parts, strict=True):
        for item in part.items:
            named = replace(item, key=f"{path.absolute().stem}/{item.key}") if prefix_keys else item
            if named.key in owners:
                advice = (
                    "give different inputs" if prefix_keys else "put the names of the inputs before them: --prefix-keys"
                )
                raise InputError(
                    f"{printable(str(owners[named.key]))} and {printable(str(path))} both have {named.name}: keys are "
                    f"names within an input; {advice}, or use CSV files with a column key"
                )
            owners[named.key] = path
            items.append(named)
    return ItemList(tuple(items), tuple(line for part in parts for line in part.notes))


def _read(path: Path) -> ItemList:
    if is_folder(path):
        return read_item_folder(path)
    if is_file(path) and path.suffix.lower() in SUFFIXES:
        raise DataError(
            f"{path}: it is an image; give one item by --rgb, --nir and --tir, a folder with sub-folders of these "
            "names, or a CSV file"
        )
    if not path.exists() and not path.is_symlink():
        raise DataError(f"{path}: no such file or folder; give CSV files, or folders with sub-folders rgb, nir and tir")
    return read_item_table(path)
