"""One query and the first places of its list as a figure, right and wrong marked by colour and sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trireid.data.records import Record
from trireid.types import MODALITIES
from trireid.visualize.text import shown
from trireid.visualize.triplets import shown_size, triplet_image

RIGHT_COLOR, WRONG_COLOR, QUERY_COLOR = "#1b7f3b", "#c62828", "#555555"
RIGHT_SIGN, WRONG_SIGN = "\N{CHECK MARK}", "\N{BALLOT X}"


@dataclass(frozen=True)
class RankEntry:
    """One place of a list.

    Attributes:
        record: the gallery item.
        matches: whether it is right.
        distance: what it was ranked by.
    """

    record: Record
    matches: bool
    distance: float

    @property
    def sign(self) -> str:
        """Check mark or cross."""
        return RIGHT_SIGN if self.matches else WRONG_SIGN


def caption(record: Record) -> str:
    """Identity and where it was seen, one line: `id 12 · cam 1 · scene 3`, unknown ones left out."""
    parts = [f"id {record.identity}"]
    parts += [] if record.camera is None else [f"cam {record.camera}"]
    parts += [] if record.scene is None else [f"scene {record.scene}"]
    return " · ".join(parts)


def rank_list_figure(query: Record, entries: Sequence[RankEntry], *, title: str = "") -> Figure:
    """Draw a query (left) and its list, each item as its three spectra from top to bottom.

    Args:
        query: the query's record; its images are read.
        entries: the list, nearest first, without the items that the protocol excludes.
        title: written above.

    Returns:
        A figure of 1 + len(entries) columns; nothing is saved.
    """
    size = shown_size(query, longest=128)
    num_columns = 1 + max(len(entries), 1)
    picture_height = len(MODALITIES) * size[0]
    inches = 1.1 if size[1] <= size[0] else 1.6
    figure = Figure(
        figsize=(inches * num_columns, inches * picture_height / size[1] + 0.9), layout="constrained", dpi=110
    )
    axes = figure.subplots(1, num_columns, squeeze=False)[0]
    _draw(axes[0], query, size=size, color=QUERY_COLOR, heading="query", below=caption(query))
    for rank, (axis, entry) in enumerate(zip(axes[1:], entries, strict=False), start=1):
        _draw(
            axis,
            entry.record,
            size=size,
            color=RIGHT_COLOR if entry.matches else WRONG_COLOR,
            heading=f"{entry.sign} {rank}",
            below=f"{caption(entry.record)} · {entry.distance:.3f}",
        )
    if not entries:
        axes[1].set_axis_off()
        axes[1].text(0.5, 0.5, "no item\nmay be seen", ha="center", va="center")
    spectra = [(index + 0.5) * picture_height / len(MODALITIES) for index in range(len(MODALITIES))]
    axes[0].set_yticks(spectra, MODALITIES, fontsize=8)
    figure.suptitle(shown(title), fontsize=10, parse_math=False)
    return figure


def _draw(axis: Axes, record: Record, *, size: tuple[int, int], color: str, heading: str, below: str) -> None:
    """One item in its frame."""
    axis.imshow(triplet_image(record, size=size))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.tick_params(length=0)
    # matplotlib brings this font along; another might lack the signs.
    axis.set_title(heading, color=color, fontsize=12, fontweight="bold", fontfamily="DejaVu Sans")
    axis.set_xlabel(shown(below).replace(" · ", "\n"), fontsize=7, parse_math=False)
    for spine in axis.spines.values():
        spine.set(edgecolor=color, linewidth=3)
