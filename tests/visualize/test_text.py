"""Names of people's data in figures: as they are, in a font that has them, or said once where there is none."""

import io
import logging
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from trireid.visualize import text as text_module
from trireid.visualize.curves import line_figure
from trireid.visualize.embedding import embedding_figure
from trireid.visualize.text import readable, shown

NAMES = ["$\\frac{", "_hidden", "$x^2$", "a\nb\x1b[31m", "broken\udcff", "100 %"]


def svg_of(figure):
    stream = io.StringIO()
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}), readable(figure):
        figure.savefig(stream, format="svg")
    return stream.getvalue()


def test_names_are_no_formulas_and_none_is_left_out():
    points = np.arange(2.0 * len(NAMES)).reshape(-1, 2)
    drawn = [
        svg_of(embedding_figure(points, NAMES, NAMES, title=NAMES[0])),
        svg_of(line_figure({name: ([1.0, 2.0], [0.1, 0.2]) for name in NAMES}, logarithmic=True)),
    ]
    for svg in drawn:
        for name in ("$\\frac{", "_hidden", "$x^2$", "a\\nb\\x1b[31m", "broken\\udcff", "100 %"):
            assert f">{name}</text>" in svg, name
    assert ">$" not in drawn[1].replace(">$\\frac", "").replace(
        ">$x", ""
    )  # the powers of ten of a logarithmic axis are formulas still
    assert shown("张三 é") == "张三 é"


@pytest.fixture
def fresh():
    text_module._said.clear()
    text_module._fonts_for.cache_clear()
    yield
    text_module._said.clear()
    text_module._fonts_for.cache_clear()


def titled(title):
    figure = Figure()
    figure.suptitle(title)
    return figure


def test_letters_that_no_font_has_are_said_once_and_without_source_lines(fresh, monkeypatch, caplog):
    monkeypatch.setattr(text_module, "fontManager", type("None", (), {"ttflist": []}))
    with caplog.at_level(logging.WARNING, logger="trireid"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for title in ("张三", "李四"):
            with readable(titled(title)):
                pass
            with readable(figure := titled(title)):
                figure.savefig(io.BytesIO())
    assert [record.message.partition(":")[0] for record in caplog.records] == ["no installed font has the letters 三张"]


def test_a_font_that_has_the_letters_is_added(fresh, monkeypatch):
    class Entry:
        style, weight = "normal", 400

        def __init__(self, name):
            self.name = self.fname = name

    entries = [Entry("Other"), Entry("Noto Sans CJK SC"), Entry("Latin")]
    monkeypatch.setattr(text_module, "fontManager", type("Some", (), {"ttflist": entries}))
    letters = {"Other": frozenset("张三é"), "Noto Sans CJK SC": frozenset("张三"), "Latin": frozenset("a")}
    monkeypatch.setattr(text_module, "_letters_of", lambda path: letters.get(path, frozenset("ab ")))
    figure = titled("a 张三")
    with readable(figure):
        pass
    assert figure._suptitle.get_fontfamily()[-1] == "Noto Sans CJK SC"
    assert "Other" not in figure._suptitle.get_fontfamily()
