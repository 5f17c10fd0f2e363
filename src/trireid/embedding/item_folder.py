"""Items from a folder with one sub-folder per modality, whose files are matched by their names without ending."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trireid.embedding.item_table import ItemList
from trireid.embedding.items import Item
from trireid.errors import DataError, printable
from trireid.names import MODALITIES

FOLDERS = {
    "rgb": ("rgb", "vis", "visible"),
    "nir": ("nir", "ni"),
    "tir": ("tir", "ti", "th", "thermal"),
}
"""Names of the sub-folders, in upper or lower case, with those of the published data sets."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".npy"})


def read_item_folder(folder: Path) -> ItemList:
    """Items of a folder such as `rgb/17.jpg`, `nir/17.jpg`, `tir/17.png`; their keys are the names, here `17`.

    Sub-folders of a modality are part of the name. Files without partners are items with fewer modalities.

    Raises:
        DataError: there is no sub-folder of a modality, no image, two images of one name, or no two modalities have a
            name in common.
    """
    places = _places(folder)
    found = {name: _images(place) for name, place in places.items()}
    notes = [f"{folder}: {count} other files are not read" for count in [sum(c for _, c in found.values())] if count]
    images = {name: paths for name, (paths, _) in found.items() if paths}
    if not images:
        listed = ", ".join(place.name for place in places.values())
        raise DataError(f"{folder}: there is no image in {listed}; formats are {', '.join(sorted(SUFFIXES))}")
    keys = sorted(set().union(*images.values()))
    items = tuple(Item({name: paths[key] for name, paths in images.items() if key in paths}, key=key) for key in keys)
    alone = sum(len(item.images) == 1 for item in items)
    if len(images) > 1 and alone == len(items):
        raise DataError(
            f"{folder}: no image of {', '.join(places[name].name for name in images)} has a partner: the images of one "
            f"item must have the same name, such as {places[next(iter(images))].name}/17.jpg and "
            f"{places[list(images)[1]].name}/17.jpg"
        )
    fewer = sum(len(item.images) < len(images) for item in items)
    if fewer:
        notes.append(f"{folder}: {fewer} of {len(items)} items have no image of some modality; the rest is used")
    return ItemList(items, tuple(notes))


def _places(folder: Path) -> dict[str, Path]:
    """The sub-folder of each modality that has one."""
    try:
        children = sorted(each for each in folder.iterdir() if each.is_dir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); give a folder of images") from error
    places: dict[str, Path] = {}
    for modality in MODALITIES:
        fitting = [each for each in children if each.name.lower() in FOLDERS[modality]]
        if len(fitting) > 1:
            names = " and ".join(each.name for each in fitting)
            raise DataError(f"{folder}: {names} are both for {modality}; keep one of them")
        if fitting:
            places[modality] = fitting[0]
    if not places:
        known = "; ".join(f"{name}: {', '.join(names)}" for name, names in FOLDERS.items())
        inside = ", ".join(printable(each.name, limit=40) for each in children[:5]) or "no sub-folder"
        raise DataError(
            f"{folder}: it has {inside}, and none for a modality; name the sub-folders so ({known}), or give a CSV file"
        )
    return places


def _images(place: Path) -> tuple[Mapping[str, str], int]:
    """The images of a modality by name without ending, and the number of other files."""
    paths: dict[str, str] = {}
    others = 0
    for parent, folders, files in os.walk(place, followlinks=True):
        folders.sort()
        for file in sorted(files):
            path = Path(parent, file)
            if file.startswith(".") or path.suffix.lower() not in SUFFIXES:
                others += 1
                continue
            key = path.relative_to(place).with_suffix("").as_posix()
            if key in paths:
                raise DataError(f"{paths[key]} and {path} have the same name without ending; keep one of them")
            paths[key] = str(path)
    return paths, others
