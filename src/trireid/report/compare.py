"""Several runs on one page: metrics, settings and curves side by side, and the queries on which they differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trireid.errors import InputError, TrireidError
from trireid.evaluation.evaluate import fused_spectra
from trireid.evaluation.verification import equal_error, pair_distances
from trireid.files import check_own, real_path, starts_with, write_text
from trireid.report.media import Plot, plot, render
from trireid.report.page import query_for_page
from trireid.report.queries import FEATURE, Ranked, differing_queries, query_precision, rank_saved
from trireid.report.run_folder import RunFolder, parse_config, read_run
from trireid.report.same_data import differences
from trireid.report.tables import COLUMNS, differing_settings
from trireid.report.values import percent
from trireid.train.run_files import EpochEntry, RunMetrics
from trireid.visualize.curves import cmc_curves, compared_figures

_log = logging.getLogger(__name__)

FEATURES = ("joint", "global", "head")
NUM_QUERIES = 6


def write_comparison(
    paths: Sequence[Path],
    target: Path,
    *,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
    progress: bool = False,
) -> Path:
    """Write the page of several runs and return its path; overrides, evaluate and progress as `run_folder.read_run`.

    Raises:
        InputError: fewer than two runs, or one is given twice.
        RunError: a folder holds no run, or the page cannot be written.
    """
    if len(paths) < 2:
        raise InputError(f"a comparison needs two runs or more, given {len(paths)}")
    if len({real_path(path) for path in paths}) < len(paths):
        raise InputError("a run is given twice; give each once")
    check_own(target, kind="page of trireid", is_own=lambda path: starts_with(path, "<!DOCTYPE html>"))
    runs = [read_run(path, overrides=overrides, evaluate=evaluate, progress=progress) for path in paths]
    write_text(target, render_comparison(runs))
    return target


def render_comparison(runs: Sequence[RunFolder]) -> str:
    """The page as HTML text: of runs on different data without metrics, rank lists and distances."""
    named = dict(zip(_names(runs), runs, strict=True))
    notes = [f"{name}: {note}" for name, run in named.items() for note in run.notes]
    apart = differences(named)
    if apart:
        _log.warning("the metrics of these runs cannot be compared: %s", "; ".join(apart))
    ranked = {} if apart else _rank(named, notes)
    configs = {name: parse_config(run.config, notes) for name, run in named.items()}
    known = [config for config in configs.values() if config is not None]
    histories = {name: run.history for name, run in named.items() if run.history}
    content = {
        "title": " and ".join(named) if len(named) == 2 else f"{len(named)} runs",
        "names": list(named),
        "columns": list(COLUMNS.values()),
        "apart": apart,
        "fusion": "" if apart else _fusion(ranked),
        "rows": [] if apart else _metric_lines(named, ranked),
        "equal": _equal_errors(named, ranked),
        "settings": differing_settings(known) if len(known) == len(named) else [],
        "settings_note": "" if len(known) == len(named) else "The settings of a run are not known, see below.",
        "curves": _plots(histories, ranked),
        "pairs": _pairs(ranked),
        "queries": _queries(ranked, notes),
        "notes": notes,
    }
    return render("compare.jinja", content)


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """The shortest names that tell the runs apart: folder names, with those above where they are alike."""
    parts = [real_path(run.path).parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("a run is given twice; give each once")


def _rank(runs: Mapping[str, RunFolder], notes: list[str]) -> dict[str, Ranked]:
    ranked = {}
    for name, run in runs.items():
        if run.saved is not None:
            try:
                ranked[name] = rank_saved(run.saved)
            except TrireidError as error:
                notes.append(f"{name}: the saved features cannot be ranked: {error}")
    return ranked


def _fusion(ranked: Mapping[str, Ranked]) -> str:
    """A sentence where adaptive fusion compares the items of one run otherwise than those of another; else empty."""
    saved = {name: each.saved for name, each in ranked.items()}
    shown = {
        name: f"adaptive fusion, power {each.adaptive_fusion:g}" if fused_spectra(each, FEATURE) else "whole features"
        for name, each in saved.items()
    }
    if len(set(shown.values())) < 2:
        return ""
    return f"The runs compare items in different ways: {'; '.join(f'{name}: {how}' for name, how in shown.items())}"


def _metric_lines(runs: Mapping[str, RunFolder], ranked: Mapping[str, Ranked]) -> list[dict[str, Any]]:
    """One line per feature and run, the best of each column marked."""
    lines: list[dict[str, Any]] = []
    for feature in FEATURES:
        values = {name: _metrics_of(run, ranked.get(name), feature) for name, run in runs.items()}
        if any(values.values()):
            best = {key: max(own.get(key, -1.0) for own in values.values() if own) for key in COLUMNS}
            for name, own in values.items():
                cells = [((own or {}).get(key), best[key]) for key in COLUMNS]
                metrics = [(percent(value), value is not None and value == most > 0) for value, most in cells]
                lines.append({"feature": feature, "run": name, "values": metrics})
    return lines


def _metrics_of(run: RunFolder, ranked: Ranked | None, feature: str) -> Mapping[str, float] | None:
    """Metrics of one feature: those that the run left, else those of its features."""
    metrics: RunMetrics = run.metrics or {}
    known = metrics.get("feature", {}).get(feature)
    if known or ranked is None or feature not in ranked.saved.query.features.features:
        return known
    return rank_saved(ranked.saved, feature=feature).ranking.as_dict()


def _equal_errors(runs: Mapping[str, RunFolder], ranked: Mapping[str, Ranked]) -> list[tuple[str, str, str]]:
    """(run, equal error rate in percent, its threshold)."""
    lines = []
    for name in runs:
        rate = threshold = "–"
        if name in ranked:
            own, saved = ranked[name], ranked[name].saved
            pairs = pair_distances(own.distance, saved.query.labels, saved.gallery.labels, saved.protocol)
            if all(len(each) for each in pairs):
                equal = equal_error(*pairs)
                rate, threshold = percent(equal.rate), f"{equal.threshold:.3f}"
        lines.append((name, rate, threshold))
    return lines


def _plots(histories: Mapping[str, Sequence[EpochEntry]], ranked: Mapping[str, Ranked]) -> list[Plot]:
    plots = []
    if histories:
        for title, figure in compared_figures(histories).items():
            plots.append(plot(title, figure, alt=f"{title} by epoch of {', '.join(histories)}"))
    if ranked:
        rankings = {name: each.ranking for name, each in ranked.items()}
        alt = "CMC curve: " + ", ".join(f"{name} R1 {percent(ranking.rank1)} %" for name, ranking in rankings.items())
        plots.append(plot("Queries with a match among the first r, in %", cmc_curves(rankings), alt=alt))
    return plots


def _pairs(ranked: Mapping[str, Ranked]) -> list[tuple[str, str, int, int, int]]:
    """(run, other run, queries that the first ranks better, that the other does, as well as each other)."""
    precision = {name: query_precision(each) for name, each in ranked.items()}
    lines = []
    names = list(precision)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            common = precision[first].keys() & precision[second].keys()
            better = sum(precision[first][name] > precision[second][name] for name in common)
            worse = sum(precision[first][name] < precision[second][name] for name in common)
            lines.append((first, second, better, worse, len(common) - better - worse))
    return lines


def _queries(ranked: Mapping[str, Ranked], notes: list[str]) -> list[dict[str, Any]]:
    """The lists of the queries on which the runs differ most, each in every run."""
    if len(ranked) < 2:
        return []
    sets = [set(query_precision(each)) for each in ranked.values()]
    common = set.intersection(*sets)
    if len(common) < max(map(len, sets)):
        notes.append(f"the runs have {len(common)} queries with a match in common, of up to {max(map(len, sets))}")
    shown = []
    for name in differing_queries(ranked, num_queries=NUM_QUERIES):
        lists = []
        for run, each in ranked.items():
            row = [record.name for record in each.saved.query.records].index(name)
            lists.append({"run": run, **query_for_page(each.shown(row))})
        shown.append({"name": name, "caption": lists[0]["caption"], "lists": lists})
    return shown
