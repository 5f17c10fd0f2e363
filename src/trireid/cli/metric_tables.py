"""Metrics by columns of the queries and with missing modalities as Markdown tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from trireid.cli.console import METRICS, PATTERNS, metric_columns, reranked_title, with_errors
from trireid.errors import printable
from trireid.report.values import percent

_SHOWN = METRICS[:3]

PAGE_START = "**test split: "
"""A page of a test begins with it."""
_REASONS = {
    "empty": "no query or no gallery item is left",
    "unmatched": "no query has a match",
    "unshared": "no query shares with a gallery item a modality that the feature compares, so that only the order of "
    "the files would rank them",
}
"""Why a ranking has no metrics."""


def tables(metrics: Mapping[str, Any]) -> list[str]:
    """The tables by column and those of `describe_cases`, if any, as Markdown in percent."""
    shown = [_groups_table(f"by {column} of the query", groups) for column, groups in metrics.get("by", {}).items()]
    again = metrics.get("reranked", {}).get("by", {})
    shown += [_groups_table(f"by {column} of the query, re-ranked", groups) for column, groups in again.items()]
    if "missing" in metrics:
        shown += [_cases_table(metrics["missing"]), *_groups_of_cases(metrics["missing"])]
    return shown + (_matrices(metrics["any_to_any"]) if "any_to_any" in metrics else [])


def _groups_table(title: str, groups: Mapping[str, Any]) -> str:
    """One row per value of a column; mAP, mINP and rank-1 of every pattern in the columns."""
    names = list(next((each["feature"] for each in groups.values() if each["feature"]), {}))
    header = [title.split()[1], "queries", *_labels(names)]
    body = [
        [
            value,
            _counted(each["num_queries"], each["num_unmatched"]),
            *(percent(each["feature"].get(name, {}).get(key), absent="-") for name in names for _, key in _SHOWN),
        ]
        for value, each in groups.items()
    ]
    reasons = {"unmatched" for each in groups.values() if not each["feature"]}
    return _table(title, header, body) + _footnote(reasons)


def _groups_of_cases(missing: Mapping[str, Any]) -> list[str]:
    """The mAP of the last pattern by value of a column, cases in the columns; one table per column."""
    cases = {case: each["by"] for case, each in missing["cases"].items() if "by" in each}
    shown = []
    for column, groups in next(iter(cases.values()), {}).items():
        name = list(missing["cases"]["none"]["feature"])[-1]
        body = [
            [
                value,
                *(
                    percent(found[column].get(value, {}).get("feature", {}).get(name, {}).get("mAP"), absent="-")
                    for found in cases.values()
                ),
            ]
            for value in groups
        ]
        title = (
            f"missing modalities, mAP of {PATTERNS[name]} by {column} of the query; columns: withheld{_how(missing)}"
        )
        shown.append(_table(title, [column, *cases], body))
    return shown


def _labels(names: Sequence[str]) -> list[str]:
    return [f"{label} {PATTERNS[name].split()[1]}" for name in names for label, _ in _SHOWN]


def page(metrics: Mapping[str, Any]) -> str:
    """All metrics of a test as one Markdown text."""
    counts = f"{metrics['num_queries']} queries, {metrics['num_gallery']} in the gallery"
    parts = [_features_table(f"{PAGE_START[2:]}{counts}, {metrics['checkpoint']}", with_errors(metrics))]
    if "reranked" in metrics:
        parts.append(_features_table(reranked_title("test split", metrics), metrics["reranked"]["feature"]))
    parts += tables(metrics)
    rule = [metrics["rule"]["text"]] if "rule" in metrics else []
    rule += [note] if (note := metrics.get("verification", {}).get("note")) else []
    return "\n\n".join([*parts, *rule, *(f"Note: {line}" for line in metrics["messages"])]) + "\n"


def _features_table(title: str, features: Mapping[str, Mapping[str, float | None]]) -> str:
    """One row per feature."""
    columns = metric_columns(features)
    body = [
        [PATTERNS.get(name, name), *(percent(values.get(key), absent="-") for _, key in columns)]
        for name, values in features.items()
    ]
    return _table(title, ["feature", *(label for label, _ in columns)], body)


def _cases_table(missing: Mapping[str, Any]) -> str:
    """One row per case and one for their mean; mAP, mINP and rank-1 of every pattern in the columns."""
    cases, mean, num_cases = missing["cases"], missing["mean"], missing["num_cases"]
    names = list(cases["none"]["feature"])
    header = ["withheld", "queries", "gallery", *_labels(names)]
    rows = {
        case: (_counted(each["num_queries"], each["num_unmatched"]), str(each["num_gallery"]), each["feature"])
        for case, each in cases.items()
    }
    if mean:
        fewest, most = min(num_cases.values()), max(num_cases.values())
        rows[f"mean of {most}" if fewest == most else f"mean of {fewest} to {most}"] = "", "", mean
    body = [
        [case, *counts, *(percent(values[name][key], absent="-") for name in names for _, key in _SHOWN)]
        for case, (*counts, values) in rows.items()
    ]
    table = _table(f"missing modalities, withheld from query and gallery{_how(missing)}", header, body)
    reasons = {
        _reason(each["num_queries"], each["num_gallery"], each["num_unmatched"])
        for each in cases.values()
        if any(each["feature"][name]["mAP"] is None for name in names)
    }
    counted = f"; the mean is over the cases, of {len(cases) - 1}, that have metrics" if mean else ""
    return table + _footnote(reasons, counted) + _notes(missing)


def _matrices(found: Mapping[str, Any]) -> list[str]:
    """One table per feature and metric, queries in rows and galleries in columns; one of counts if they differ."""
    subsets, queries, galleries = found["subsets"], found["num_queries"], found["num_gallery"]
    sides = f"rows: modalities that queries may have; columns: those that the gallery may have{_how(found)}"
    header = ["query", *subsets]
    shown = []
    for name, values in found["feature"].items():
        for metric, label in (("mAP", "mAP"), ("rank1", "rank-1")):
            body = [
                [subset, *(percent(value, absent="-") for value in row)]
                for subset, row in zip(subsets, values[metric], strict=True)
            ]
            reasons = {
                _reason(queries[i], galleries[j], found["num_unmatched"][i][j])
                for i, row in enumerate(values[metric])
                for j, value in enumerate(row)
                if value is None
            }
            shown.append(_table(f"any to any, {label} of {PATTERNS[name]}; {sides}", header, body) + _footnote(reasons))
    counts = [
        [_counted(number, each) for each in row] for number, row in zip(queries, found["num_unmatched"], strict=True)
    ]
    if len({each for row in counts for each in row}) > 1 or any(map(any, found["num_unmatched"])):
        body = [[subset, *row] for subset, row in zip(subsets, counts, strict=True)]
        shown.append(_table(f"any to any, queries that count (have a match); {sides}", header, body))
    shown[-1] += _notes(found)
    return shown


def _how(found: Mapping[str, Any]) -> str:
    """The end of a title, if withheld modalities are given to the model as zeros."""
    return ", withheld modalities as images of zeros" if found["missing_as"] == "zeros" else ""


def _counted(num_queries: int, num_unmatched: int) -> str:
    """How many queries the metrics are of."""
    return f"{num_queries - num_unmatched} of {num_queries}" if num_unmatched else str(num_queries)


def _reason(num_queries: int, num_gallery: int, num_unmatched: int) -> str:
    """The key of `_REASONS` for a ranking without metrics."""
    if not num_queries or not num_gallery:
        return "empty"
    return "unmatched" if num_unmatched == num_queries else "unshared"


def _footnote(reasons: Collection[str], addition: str = "") -> str:
    """What a dash in the table means; empty if it has none."""
    why = ", or ".join(text for reason, text in _REASONS.items() if reason in reasons)
    return f"\n\n`-`: {why}{addition}." if why else ""


def _notes(found: Mapping[str, Any]) -> str:
    """What a reader must know about single cases; results of earlier versions have none."""
    return "".join(f"\n\nNote: {line}" for line in found.get("notes", []))


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table below its title."""
    head, *body = ("| " + " | ".join(map(_cell, row)) + " |" for row in (header, *rows))
    return "\n".join(
        [f"**{printable(title, limit=None)}**", "", head, "|---" + "|---:" * (len(header) - 1) + "|", *body]
    )


def _cell(text: str) -> str:
    """A value of a data set may hold what ends a cell or a row."""
    return printable(text, limit=None).replace("|", "\\|")
