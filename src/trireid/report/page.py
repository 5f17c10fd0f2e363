"""The page of a run: one HTML file that needs nothing else, made from the run folder alone."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from trireid.data.records import Record
from trireid.errors import TrireidError
from trireid.evaluation.evaluate import EvaluationResult, evaluate_features
from trireid.evaluation.saved import SavedFeatures
from trireid.files import write_text
from trireid.report.queries import ShownQuery, shown_queries
from trireid.report.run_folder import RunFolder, read_run
from trireid.visualize.curves import cmc_curves, training_curves
from trireid.visualize.ranklist import caption
from trireid.visualize.triplets import shown_size, triplet_image

PAGE_FILE = "report.html"
COLUMNS: dict[str, str] = {"mAP": "mAP", "mINP": "mINP", "rank1": "R1", "rank5": "R5", "rank10": "R10"}
REASONS: dict[str, tuple[str, str]] = {
    "easiest": ("Easiest", "the highest average precision"),
    "hardest": ("Hardest", "the lowest average precision"),
    "confidently wrong": (
        "Most confidently wrong",
        "the first place is wrong, with the widest gap to the nearest right item",
    ),
}


@dataclass(frozen=True)
class Row:
    """One line of the table of figures: which weights, which feature, and the figures in percent."""

    weights: str
    feature: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        uri: the bytes as a data URI.
        alt: what it shows, for those who do not see it.
    """

    uri: str
    alt: str


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder and return its path; what is missing there is said on the page.

    Raises:
        RunError: the folder holds no run, or the page cannot be written.
    """
    path = run_dir / PAGE_FILE
    write_text(path, render_page(read_run(run_dir)))
    return path


def render_page(run: RunFolder) -> str:
    """The page as HTML text."""
    notes = list(run.notes)
    result = _evaluate(run, notes)
    template = files("trireid.report").joinpath("page.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=run.path.resolve().name,
        summary=summary(run.metrics or {}),
        warnings=_warnings(run.metrics or {}),
        columns=list(COLUMNS.values()),
        rows=figure_rows(run.metrics or {}),
        counts=_counts(run.metrics or {}, result, run.saved),
        curves=_curve_pictures(run, result),
        queries=_query_sections(run.saved, result),
        command=_command((run.environment or {}).get("command")),
        config=run.config,
        environment=_flat(run.environment or {}),
        notes=notes,
    )


def figure_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """The table of figures: last, best and untrained weights by feature, in percent."""
    best = metrics.get("best") or {}
    best_name = f"best (epoch {best.get('epoch', '?')}, chosen on {best.get('chosen_on', '?')})"
    sources = {
        "last": metrics,
        "last, re-ranked": metrics.get("reranked") or {},
        best_name: best,
        "untrained": metrics.get("untrained") or {},
    }
    return [
        Row(weights, feature, tuple(_percent(values.get(key)) for key in COLUMNS))
        for weights, source in sources.items()
        for feature, values in (source.get("feature") or {}).items()
    ]


def summary(metrics: Mapping[str, Any]) -> str:
    """The page's first sentence."""
    figures = (metrics.get("feature") or {}).get("joint")
    if figures is None:
        return "This run has no final figures yet."
    text = (
        f"Joint feature of the last epoch: mAP {_percent(figures.get('mAP'))} %, R1 {_percent(figures.get('rank1'))} %"
    )
    untrained = ((metrics.get("untrained") or {}).get("feature") or {}).get("joint")
    if untrained is not None:
        text += f"; the same model untrained: mAP {_percent(untrained.get('mAP'))} %"
    return text + "."


def _warnings(metrics: Mapping[str, Any]) -> list[str]:
    """What must be known before the figures are believed."""
    messages = [str(message) for message in metrics.get("messages") or []]
    if (metrics.get("best") or {}).get("chosen_on") == "test":
        messages.append(
            "The epoch of `best` was chosen on the test set, so its figures are optimistic; "
            "hold out identities with data.val_ids to choose it fairly."
        )
    return messages


def _percent(value: Any) -> str:
    """A share as percent with one decimal, a dash where there is none."""
    return f"{100 * value:.1f}" if isinstance(value, int | float) else "–"


def _evaluate(run: RunFolder, notes: list[str]) -> EvaluationResult | None:
    """Rank the saved features again; say so where the figures are not those of the run."""
    if run.saved is None:
        return None
    saved = run.saved
    try:
        result = evaluate_features(
            saved.query.features,
            None if saved.query_is_gallery else saved.gallery.features,
            query_labels=saved.query.labels,
            gallery_labels=None if saved.query_is_gallery else saved.gallery.labels,
            protocol=saved.protocol,
            normalise=saved.normalise,
            rerank=saved.rerank,
        )
    except TrireidError as error:
        notes.append(f"the saved features cannot be ranked: {error}")
        return None
    for name, values in ((run.metrics or {}).get("feature") or {}).items():
        found = result.metrics.get(name, {}).get("mAP")
        if found is not None and abs(found - values.get("mAP", found)) > 5e-4:
            notes.append(
                f"the saved features give {_percent(found)} % mAP for {name}, metrics.json says "
                f"{_percent(values['mAP'])} %: they are of different evaluations"
            )
    return result


def _counts(metrics: Mapping[str, Any], result: EvaluationResult | None, saved: SavedFeatures | None) -> dict[str, str]:
    """Items and queries by name."""
    counts = {
        "queries": metrics.get("num_queries") if result is None else result.num_queries,
        "queries without a match (left out)": (
            metrics.get("num_unmatched") if result is None else result.num_unmatched
        ),
        "gallery items": metrics.get("num_gallery") if result is None else result.num_gallery,
    }
    shown = {name: str(value) for name, value in counts.items() if value is not None}
    if saved is not None:
        rule = {
            "none": "the item itself",
            "camera": "same identity and camera",
            "scene": "same identity and scene",
            "cross_camera": "same camera",
        }
        shown["protocol"] = f"{saved.protocol.name} (excluded: {rule[saved.protocol.exclude]})"
    return shown


def _curve_pictures(run: RunFolder, result: EvaluationResult | None) -> list[Picture]:
    """Training curves and CMC, as far as there is something to draw."""
    pictures = []
    if run.history:
        alt = f"Loss terms, learning rates and mAP over {len(run.history)} epochs"
        pictures.append(Picture(_svg_uri(training_curves(run.history)), alt))
    if result is not None:
        alt = "CMC curve: " + ", ".join(f"{name} R1 {_percent(r.rank1)} %" for name, r in result.rankings.items())
        pictures.append(Picture(_svg_uri(cmc_curves(result.rankings)), alt))
    return pictures


def _query_sections(saved: SavedFeatures | None, result: EvaluationResult | None) -> list[dict[str, Any]]:
    """The rank lists by reason, ready for the template."""
    if saved is None or result is None:
        return []
    return [
        {
            "heading": REASONS[reason][0],
            "explanation": REASONS[reason][1],
            "queries": [_query_for_page(query) for query in queries],
        }
        for reason, queries in shown_queries(saved).items()
    ]


def _query_for_page(query: ShownQuery) -> dict[str, Any]:
    """One query and its list: pictures, captions and marks."""
    size = shown_size(query.record, longest=112)
    entries = [
        {
            "rank": rank,
            "kind": "right" if entry.matches else "wrong",
            "sign": entry.sign,
            "picture": _triplet(entry.record, size, f"Place {rank}, {'right' if entry.matches else 'wrong'}"),
            "caption": caption(entry.record),
            "distance": f"{entry.distance:.3f}",
        }
        for rank, entry in enumerate(query.entries, start=1)
    ]
    return {
        "name": query.record.name,
        "caption": caption(query.record),
        "precision": _percent(query.average_precision),
        "picture": _triplet(query.record, size, "Query"),
        "entries": entries,
    }


def _triplet(record: Record, size: tuple[int, int], role: str) -> Picture:
    """An item's three spectra as a picture of the page."""
    buffer = io.BytesIO()
    triplet_image(record, size=size).save(buffer, format="JPEG", quality=85)
    uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, f"{role}: {record.name}, {caption(record)}; rgb, nir and tir from top to bottom")


def _svg_uri(figure: Figure) -> str:
    """A figure as an SVG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _command(command: Any) -> str | None:
    """The command line of a run, given as its words or as text; the program without its folder."""
    if isinstance(command, list) and command:
        return shlex.join([Path(str(command[0])).name, *map(str, command[1:])])
    return command if isinstance(command, str) else None


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted names and texts."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return flat
