"""What the model selected of a few triplets, as the maps and statistics of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from trireid.data.records import Record
from trireid.models.selection import fused_weights
from trireid.models.selection_statistics import selection_statistics
from trireid.report.items import SelectedItem, joined
from trireid.report.media import Picture, enlarged, picture
from trireid.report.values import percent
from trireid.types import MODALITIES, Selection
from trireid.visualize.patches import Pixels, finite_limits, heat_image, patch_states, slot_maps, state_image
from trireid.visualize.ranklist import caption
from trireid.visualize.triplets import spectrum_image

SLOTS_SHOWN = 6
STATISTICS = ("overlap", "entropy")


@dataclass(frozen=True)
class MapRow:
    """One step of a cut on every modality: its name, a sentence, and the maps in the order of the modalities."""

    name: str
    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class ItemMaps:
    """One triplet with the maps of every step, and those of single slots.

    Attributes:
        heading: why it is shown.
        name: of the record.
        caption: who is on it.
        rows: image, then scores and choice of each cut.
        slots: weights of single slots; empty where nothing is aggregated.
        portrait: images are higher than wide.
    """

    heading: str
    name: str
    caption: str
    rows: tuple[MapRow, ...]
    slots: tuple[MapRow, ...]
    portrait: bool


def item_maps(item: SelectedItem, *, size: tuple[int, int], heading: str) -> ItemMaps:
    """The maps of one triplet; `size` is (height, width) that the model saw."""
    record = item.record
    images = [np.asarray(spectrum_image(source, size)) for source in record.images]
    rows = [_row("image", record, images, [""] * len(images))]
    for name, selection in item.selection.items():
        rows += _cut_rows(name, selection, record, images, present=item.present)
    chosen = item.selection.get("sdtps")
    slots = [] if chosen is None or chosen.weights is None else _slot_rows(chosen, record, images)
    return ItemMaps(heading, record.name, caption(record), tuple(rows), tuple(slots), portrait=size[0] > size[1])


def statistics_table(items: Sequence[SelectedItem]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and lines, one per cut, of what the selections of some triplets have in common, in percent."""
    present = torch.cat([item.present for item in items])
    header: list[str] = []
    lines = []
    for stage in items[0].selection:
        values = selection_statistics(joined([item.selection[stage] for item in items]), present)
        header = [name.replace("/", " ") for name in values]
        lines.append((stage, *(percent(value) for value in values.values())))
    return header, lines


def _cut_rows(
    name: str, selection: Selection, record: Record, images: Sequence[Pixels], *, present: torch.Tensor
) -> list[MapRow]:
    """Scores, choice and, where there are slots, mean weights of one cut."""
    scores, mask = selection.scores[0], selection.mask[0]  # (M, N)
    states, weights = patch_states(selection)[0], fused_weights(scores, mask)
    limits = finite_limits(scores[present[0]])
    heats = [heat_image(image, scores[row], grid=selection.grid, limits=limits) for row, image in enumerate(images)]
    kept = [state_image(image, states[row], weights[row], grid=selection.grid) for row, image in enumerate(images)]
    ranges = ["{:.2f} to {:.2f}".format(*finite_limits(scores[row])) for row in range(len(images))]
    numbers = [f"{int(mask[row].sum())} of {mask.shape[1]}" for row in range(len(images))]
    rows = [_row(f"{name} scores", record, heats, ranges), _row(f"{name} kept", record, kept, numbers)]
    if selection.weights is not None:
        mean = slot_maps(selection)[0].mean(dim=1).masked_fill(~mask, -torch.inf)  # (M, N)
        drawn = [heat_image(image, mean[row], grid=selection.grid) for row, image in enumerate(images)]
        rows.append(_row(f"{name} slot weight", record, drawn, [f"up to {percent(float(v.max()))} %" for v in mean]))
    return rows


def _slot_rows(selection: Selection, record: Record, images: Sequence[Pixels]) -> list[MapRow]:
    """Weights of the first single slots."""
    maps = slot_maps(selection)[0].masked_fill(~selection.mask[0].unsqueeze(1), -torch.inf)  # (M, A, N)
    rows = []
    for slot in range(min(SLOTS_SHOWN, maps.shape[1])):
        drawn = [heat_image(image, maps[row, slot], grid=selection.grid) for row, image in enumerate(images)]
        rows.append(_row(f"slot {slot + 1}", record, drawn, [f"up to {percent(float(v[slot].max()))} %" for v in maps]))
    return rows


def _row(name: str, record: Record, images: Sequence[Pixels], captions: Sequence[str]) -> MapRow:
    """One step; absent modalities show their box and no numbers."""
    pictures, words = [], []
    for modality, source, pixels, text in zip(MODALITIES, record.images, images, captions, strict=True):
        shown = pixels if source is not None else np.asarray(spectrum_image(None, pixels.shape[:2]))
        what = f"{name} of {record.name}, {modality}" + (f": {text}" if text and source is not None else "")
        alt = what if source is not None else f"{record.name} has no {modality}"
        pictures.append(picture(enlarged(Image.fromarray(shown)), alt))
        words.append(text if source is not None else "absent")
    return MapRow(name, tuple(pictures), tuple(words))


def stages_of(items: Sequence[SelectedItem]) -> Mapping[str, Selection]:
    """The stages of the first triplet; empty where the model selects nothing."""
    return items[0].selection if items else {}
