from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import trireid.visualize.triplets
from trireid.data.records import ImageSource, Record
from trireid.visualize.ranklist import RIGHT_COLOR, WRONG_COLOR, RankEntry, caption, rank_list_figure
from trireid.visualize.triplets import GAP, shown_size, triplet_image

COLORS = {"rgb": (200, 0, 0), "nir": (0, 200, 0), "tir": (0, 0, 200)}


@pytest.fixture
def record(tmp_path):
    sources = []
    for name, color in COLORS.items():
        Image.new("RGB", (8, 16), color).save(tmp_path / f"{name}.png")
        sources.append(ImageSource(tmp_path / f"{name}.png"))
    return Record("000007_cam1", tuple(sources), identity="7", camera="1")


def rows_of(image, size):
    """The three spectra of a picture."""
    pixels = np.asarray(image)
    return [pixels[start : start + size[0]] for start in range(0, len(pixels), size[0] + GAP)]


def test_spectra_lie_in_the_order_of_the_modalities(record):
    size = (32, 16)
    rows = rows_of(triplet_image(record, size=size), size)
    assert len(rows) == 3
    for row, color in zip(rows, COLORS.values(), strict=True):
        assert row.shape == (32, 16, 3)
        assert (row == color).all()


def test_strip_columns_are_cut_out(tmp_path):
    strip = Image.new("RGB", (24, 8), (255, 0, 0))
    strip.paste((0, 255, 0), (8, 0, 16, 8))
    strip.paste((0, 0, 255), (16, 0, 24, 8))
    strip.save(tmp_path / "strip.png")
    sources = tuple(ImageSource(tmp_path / "strip.png", (first, first + 8)) for first in (0, 8, 16))
    rows = rows_of(triplet_image(Record("s", sources, "1"), size=(8, 8)), (8, 8))
    assert [tuple(row[4, 4]) for row in rows] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_absent_is_hatched_and_unreadable_is_crossed(record, tmp_path):
    broken = ImageSource(tmp_path / "gone.png")
    picture = triplet_image(Record("r", (None, broken, record.images[2]), "7"), size=(48, 40))
    hatched, crossed, read = rows_of(picture, (48, 40))
    ink = (110, 110, 110)
    assert (hatched == ink).all(-1).any(-1)[:12].all()  # lines in every row of the upper part
    assert tuple(crossed[0, 0]) == ink
    assert (crossed == ink).all(-1).sum() < (hatched == ink).all(-1).sum()
    assert (read == COLORS["tir"]).all()


def test_boxes_are_drawn_without_a_font(monkeypatch):
    monkeypatch.setattr(trireid.visualize.triplets.features, "check", lambda name: False)
    picture = triplet_image(Record("r", (None, None, None), "7"), size=(48, 40))
    monkeypatch.undo()
    written = triplet_image(Record("r", (None, None, None), "7"), size=(48, 40))
    assert picture.size == written.size
    assert (np.asarray(picture) != np.asarray(written)).any()


def test_names_that_look_like_formulas_are_drawn_as_they_are(record, tmp_path):
    odd = Record("a$_b", record.images, identity="$x^", camera="$")
    figure = rank_list_figure(odd, [RankEntry(odd, True, 0.5)], title="a$_b and $x")
    figure.savefig(tmp_path / "odd.png")
    assert (tmp_path / "odd.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(8, 16, (100, 50)), (16, 8, (50, 100)), (90, 9, (33, 100)), (8, 8, (100, 100))]
)
def test_shown_size_keeps_the_shape(tmp_path, width, height, expected):
    Image.new("RGB", (width, height)).save(tmp_path / "a.png")
    assert shown_size(Record("r", (None, ImageSource(tmp_path / "a.png"), None), "1"), longest=100) == expected


def test_shown_size_without_any_image_is_a_square(tmp_path):
    assert shown_size(Record("r", (None, ImageSource(tmp_path / "no.png"), None), "1"), longest=60) == (60, 60)


def test_caption_leaves_out_what_is_not_known():
    assert caption(Record("r", (), "7", camera="1", scene="003")) == "id 7 · cam 1 · scene 003"
    assert caption(Record("r", (), "7")) == "id 7"


def test_right_and_wrong_are_marked_by_colour_and_sign(record):
    entries = [RankEntry(record, True, 0.25), RankEntry(record, False, 0.5)]
    figure = rank_list_figure(record, entries, title="one query")
    assert isinstance(figure, Figure)
    query, right, wrong = figure.axes
    assert query.get_title() == "query"
    assert [label.get_text() for label in query.get_yticklabels()] == ["rgb", "nir", "tir"]
    assert (right.get_title(), wrong.get_title()) == ("✓ 1", "✗ 2")
    assert (right.title.get_color(), wrong.title.get_color()) == (RIGHT_COLOR, WRONG_COLOR)
    assert "cam 1" in right.get_xlabel()
    assert "0.250" in right.get_xlabel()


def test_an_empty_list_says_so(record):
    figure = rank_list_figure(record, [])
    assert "no item" in figure.axes[1].texts[0].get_text()
