"""The page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trireid.data.records import Record
from trireid.errors import TrireidError
from trireid.evaluation.evaluate import EvaluationResult, evaluate_features, fused_spectra
from trireid.evaluation.verification import EqualError, equal_error, pair_distances, share_named
from trireid.files import write_text
from trireid.report.error_rates import error_section
from trireid.report.items import open_model, prepare, select_items, spread_records
from trireid.report.maps import item_maps, stages_of, statistics_table
from trireid.report.media import Plot, plot, render, triplet_picture
from trireid.report.queries import FEATURE, Ranked, ShownQuery, rank_saved, shown_queries
from trireid.report.run_folder import RunFolder, evaluated_records, parse_config, read_run
from trireid.report.tables import (
    COLUMNS,
    changed_settings,
    command_line,
    counts,
    flat,
    metric_groups,
    summary,
    warnings,
    what_was_trained,
)
from trireid.report.values import percent
from trireid.train.run_files import Environment, EpochEntry, RunMetrics
from trireid.visualize.curves import cmc_curves, distance_histogram, history_figures
from trireid.visualize.ranklist import caption
from trireid.visualize.triplets import shown_size

REASONS: dict[str, tuple[str, str]] = {
    "easiest": ("Easiest", "The highest average precision."),
    "hardest": ("Hardest", "The lowest average precision."),
    "confidently wrong": (
        "Most confidently wrong",
        "The first place is wrong, with the widest gap to the nearest right item.",
    ),
}
NUM_MAPS, NUM_COUNTED = 3, 16
"""Triplets whose maps are shown, and those that the statistics of the selection are taken over."""


def write_report(
    run_dir: Path, *, overrides: Sequence[str] = (), evaluate: bool = False, progress: bool = False
) -> Path:
    """Write the page of a run folder (`report.html`) or checkpoint (beside it), and return its path.

    The page says what is missing. Arguments as `run_folder.read_run`.

    Raises:
        RunError: there is no run, or the page cannot be written.
        TrireidError: an override is wrong, or the evaluation that was asked for cannot be made.
    """
    run = read_run(run_dir, overrides=overrides, evaluate=evaluate, progress=progress)
    write_text(run.page, render_page(run))
    return run.page


def render_page(run: RunFolder) -> str:
    """The page as HTML text."""
    notes = list(run.notes)
    metrics: RunMetrics = run.metrics or {}
    result, ranked = _rank(run, notes)
    if result is not None and not metrics.get("feature"):
        metrics = {**metrics, "feature": result.metrics}
    environment: Environment = run.environment or {}
    queries = {} if ranked is None else shown_queries(ranked)
    config = parse_config(run.config, notes)
    content: dict[str, Any] = {
        "title": run.name,
        "what": what_was_trained(config, imported=run.imported is not None),
        "summary": summary(metrics, weights=run.weights),
        "warnings": warnings(metrics),
        "columns": list(COLUMNS.values()),
        "rows": metric_groups(metrics, weights=run.weights),
        "counts": counts(metrics, run.saved, None if result is None else result.num_unmatched),
        "curves": _curves(run.history),
        "queries": [_section(reason, shown) for reason, shown in queries.items()],
        "command": command_line(environment.get("command")),
        "changed": [] if config is None else changed_settings(config),
        "config": run.config,
        "environment": flat({key: value for key, value in environment.items() if key != "command"}),
        "imported": run.imported,
        **_distances(result, ranked),
        **error_section(run.calibration, metrics),
        **_selection(run, queries, notes),
    }
    return render("report.jinja", {**content, "tiles": _tiles(metrics, content["equal"]), "notes": notes})


def _rank(run: RunFolder, notes: list[str]) -> tuple[EvaluationResult | None, Ranked | None]:
    """Rank the saved features again; say so where the metrics are not those of the run."""
    if run.saved is None:
        return None, None
    try:
        result, ranked = evaluate_features(run.saved), rank_saved(run.saved)
    except TrireidError as error:
        notes.append(f"the saved features cannot be ranked: {error}")
        return None, None
    known: RunMetrics = run.metrics or {}
    for name, values in known.get("feature", {}).items():
        found = result.metrics.get(name, {}).get("mAP")
        if found is not None and abs(found - values.get("mAP", found)) > 5e-4:
            notes.append(
                f"the saved features give {percent(found)} % mAP for {name}, metrics.json says "
                f"{percent(values['mAP'])} %: they are of different evaluations"
            )
    return result, ranked


def _curves(history: Sequence[EpochEntry]) -> list[Plot]:
    """Loss, learning rate and metrics by epoch, as far as something was recorded."""
    if not history:
        return []
    return [
        plot(title, figure, alt=f"{title} over {len(history)} epochs: {_line_names(figure)}")
        for title, figure in history_figures(history).items()
    ]


def _line_names(figure: Any) -> str:
    ends = (f"{line.get_label()} ends at {line.get_ydata()[-1]:.3g}" for line in figure.axes[0].get_lines())
    return ", ".join(ends) or "nothing recorded"


def _distances(result: EvaluationResult | None, ranked: Ranked | None) -> dict[str, Any]:
    """CMC, histogram of distances and the equal error, with a sentence where there is none."""
    if result is None or ranked is None:
        return {"cmc": None, "histogram": None, "equal": None, "named": None, "equal_note": ""}
    alt = "CMC curve: " + ", ".join(f"{name} R1 {percent(r.rank1)} %" for name, r in result.rankings.items())
    cmc = plot("Queries with a match among the first r, in %", cmc_curves(result.rankings), alt=alt)
    saved = ranked.saved
    same, different = pair_distances(ranked.distance, saved.query.labels, saved.gallery.labels, saved.protocol)
    equal, named, note = None, None, ""
    try:
        equal = equal_error(same, different)
        sides = saved.query.labels, saved.gallery.labels, saved.protocol
        named = share_named(ranked.distance, *sides, equal.threshold)
    except TrireidError as error:
        note = f"No threshold: {error}."
    if equal is not None and fused_spectra(saved, FEATURE):
        note = (
            "These distances are those of adaptive fusion. Galleries and services compare whole features, for which "
            "this threshold does not hold."
        )
    alt = f"Histogram of {len(same)} distances of the same identity and {len(different)} of different ones"
    alt += "" if equal is None else f", threshold {equal.threshold:.3f}"
    histogram = plot("Distances of pairs, joint feature", distance_histogram(same, different, equal), alt=alt)
    return {"cmc": cmc, "histogram": histogram, "equal": equal, "named": named, "equal_note": note}


def _tiles(metrics: RunMetrics, equal: EqualError | None) -> list[tuple[str, str]]:
    """The metrics that are read first: joint mAP, R1 and mINP, and the equal error rate."""
    feature = metrics.get("feature", {})
    first = feature.get("joint") or feature.get("global") or {}
    tiles = [(COLUMNS[key], percent(first[key])) for key in ("mAP", "rank1", "mINP") if key in first]
    return tiles + ([] if equal is None else [("equal error", percent(equal.rate))])


def _selection(run: RunFolder, queries: dict[str, list[ShownQuery]], notes: list[str]) -> dict[str, Any]:
    """Maps of some triplets, by preference of queries that are shown as lists too, and statistics over a few more."""
    empty: dict[str, Any] = {"maps": [], "maps_note": "", "statistics": None, "num_counted": 0}
    why: dict[str, str] = {shown[0].record.name: REASONS[reason][0] for reason, shown in queries.items() if shown}
    try:
        opened = open_model(run)
        records = evaluated_records(run)
        given = prepare(opened, _map_records(records, list(why)), notes)
        items = select_items(opened, given)
    except (TrireidError, OSError) as error:
        return empty | {"maps_note": f"No maps of kept patches: {error}."}
    if not stages_of(items):
        note = "This model selects no patches: it has no head `sdtps` and no `model.slimming`."
        return empty | {"maps_note": note}
    maps = [
        item_maps(item, size=opened.size, heading=why.get(item.record.name, "A query")) for item in items[:NUM_MAPS]
    ]
    return empty | {"maps": maps, "statistics": statistics_table(items), "num_counted": len(items)}


def _map_records(records: Sequence[Record], first: Sequence[str]) -> list[Record]:
    """The records named first, then others spread over all identities."""
    by_name = {record.name: record for record in records}
    chosen = [by_name[name] for name in first if name in by_name]
    others = [record for record in spread_records(records, NUM_COUNTED) if record not in chosen]
    return (chosen + others)[:NUM_COUNTED]


def _section(reason: str, queries: Sequence[ShownQuery]) -> dict[str, Any]:
    """The rank lists of one reason, ready for the template."""
    heading, explanation = REASONS[reason]
    return {"heading": heading, "explanation": explanation, "queries": [query_for_page(query) for query in queries]}


def query_for_page(query: ShownQuery) -> dict[str, Any]:
    """One query and its list: pictures, captions and marks."""
    size = shown_size(query.record, longest=112)
    entries = [
        {
            "rank": rank,
            "kind": "right" if entry.matches else "wrong",
            "sign": entry.sign,
            "picture": triplet_picture(entry.record, size, f"Place {rank}, {'right' if entry.matches else 'wrong'}"),
            "caption": caption(entry.record),
            "distance": f"{entry.distance:.3f}",
        }
        for rank, entry in enumerate(query.entries, start=1)
    ]
    return {
        "name": query.record.name,
        "caption": caption(query.record),
        "precision": percent(query.average_precision),
        "found": query.found,
        "picture": triplet_picture(query.record, size, "Query"),
        "entries": entries,
    }
