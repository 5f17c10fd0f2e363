"""Figures and pixels as parts of a page: inline SVG that takes the colours of the page, images as data URIs."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from trireid.data.records import Record
from trireid.visualize.curves import INK
from trireid.visualize.ranklist import caption
from trireid.visualize.text import readable
from trireid.visualize.triplets import triplet_image

LONGEST = 256
"""Pixels of the longer side of a map: sharp on a screen of double density, small in the file."""


@dataclass(frozen=True)
class Plot:
    """A drawing inside the page.

    Attributes:
        title: what it is.
        svg: the drawing itself, which says to those who do not see it what it shows.
        note: a sentence below it.
    """

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        uri: the bytes as a data URI.
        alt: what it shows, for those who do not see it.
        width, height: in pixels, so that the page does not move while it is read.
    """

    uri: str
    alt: str
    width: int
    height: int


def render(template: str, content: Mapping[str, Any]) -> str:
    """A page as HTML text; everything in the content is escaped unless it is `Markup`."""
    environment = Environment(
        loader=PackageLoader("trireid", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(content)
    return text.encode(errors="backslashreplace").decode()  # file names may hold bytes that are no UTF-8


def plot(title: str, figure: Figure, *, alt: str, note: str = "") -> Plot:
    """A figure as inline SVG: text stays text, and the ink is that of the page, light or dark."""
    stream = io.StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}),
        readable(figure),
    ):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue()
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])  # HTML knows them, and needs no address
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    text = text.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    return Plot(title, Markup(text), note)  # matplotlib escapes what it writes


def picture(image: Image.Image, alt: str, *, quality: int = 86) -> Picture:
    """An image as a JPEG data URI."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="JPEG", quality=quality)
    uri = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(uri, alt, image.width, image.height)


def triplet_picture(record: Record, size: tuple[int, int], role: str) -> Picture:
    """An item's three spectra, one above the other; `role` says what it is on the page."""
    alt = f"{role}: {record.name}, {caption(record)}; rgb, nir and tir from top to bottom"
    return picture(triplet_image(record, size=size), alt)


def enlarged(image: Image.Image) -> Image.Image:
    """A map in whole multiples of its pixels, so that patches stay sharp."""
    factor = max(1, LONGEST // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
