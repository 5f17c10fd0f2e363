"""Figures over missing modalities as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from trireid.cli.console import FIGURES, PATTERNS

_SHOWN = FIGURES[:3]

_REASONS = {
    "empty": "nothing is left of queries or gallery",
    "unmatched": "no query has a match",
    "unshared": "no pair of query and gallery shares a modality that the feature compares, so that the order of the "
    "files would decide",
}
"""Why a ranking has no figures."""


def tables(figures: Mapping[str, Any]) -> list[str]:
    """The tables of `describe_cases` as Markdown, as far as there are any, figures in per cent."""
    shown = [_cases_table(figures["missing"])] if "missing" in figures else []
    return shown + (_matrices(figures["any_to_any"]) if "any_to_any" in figures else [])


def page(figures: Mapping[str, Any]) -> str:
    """All figures of a test as one Markdown text."""
    header = ["feature", *(label for label, _ in FIGURES)]
    body = [
        [PATTERNS.get(name, name), *(_percent(values.get(key)) for _, key in FIGURES)]
        for name, values in figures["feature"].items()
    ]
    counts = f"{figures['num_queries']} queries, {figures['num_gallery']} in the gallery"
    parts = [_table(f"test split: {counts}, {figures['checkpoint']}", header, body), *tables(figures)]
    rule = [figures["rule"]["text"]] if "rule" in figures else []
    return "\n\n".join([*parts, *rule, *(f"Note: {line}" for line in figures["messages"])]) + "\n"


def _cases_table(missing: Mapping[str, Any]) -> str:
    """Cases by rows, every pattern's mAP, mINP and rank-1 by columns, and the mean of the cases."""
    cases, mean, num_cases = missing["cases"], missing["mean"], missing["num_cases"]
    names = list(cases["none"]["feature"])
    header = ["withheld", "queries", "gallery"]
    header += [f"{label} {PATTERNS[name].split()[1]}" for name in names for label, _ in _SHOWN]
    rows = {
        case: (_counted(each["num_queries"], each["num_unmatched"]), str(each["num_gallery"]), each["feature"])
        for case, each in cases.items()
    }
    if mean:
        fewest, most = min(num_cases.values()), max(num_cases.values())
        rows[f"mean of {most}" if fewest == most else f"mean of {fewest} to {most}"] = "", "", mean
    body = [
        [case, *counts, *(_percent(values[name][key]) for name in names for _, key in _SHOWN)]
        for case, (*counts, values) in rows.items()
    ]
    table = _table(f"missing modalities, withheld from query and gallery{_how(missing)}", header, body)
    reasons = {
        _reason(each["num_queries"], each["num_gallery"], each["num_unmatched"])
        for each in cases.values()
        if any(each["feature"][name]["mAP"] is None for name in names)
    }
    counted = f"; the mean is over those of the {len(cases) - 1} cases that have figures" if mean else ""
    return table + _footnote(reasons, counted)


def _matrices(found: Mapping[str, Any]) -> list[str]:
    """Queries by rows, galleries by columns: a table a feature and figure, and one of counts where they differ."""
    subsets, queries, galleries = found["subsets"], found["num_queries"], found["num_gallery"]
    sides = f"rows are what queries have at most, columns what the gallery has at most{_how(found)}"
    header = ["query", *subsets]
    shown = []
    for name, values in found["feature"].items():
        for figure, label in (("mAP", "mAP"), ("rank1", "rank-1")):
            body = [[subset, *map(_percent, row)] for subset, row in zip(subsets, values[figure], strict=True)]
            reasons = {
                _reason(queries[i], galleries[j], found["num_unmatched"][i][j])
                for i, row in enumerate(values[figure])
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
    return shown


def _how(found: Mapping[str, Any]) -> str:
    """What the model sees of what is withheld, where it is not told."""
    return ", what is withheld as images of zeros" if found["missing_as"] == "zeros" else ""


def _counted(num_queries: int, num_unmatched: int) -> str:
    """How many queries the figures are of."""
    return f"{num_queries - num_unmatched} of {num_queries}" if num_unmatched else str(num_queries)


def _reason(num_queries: int, num_gallery: int, num_unmatched: int) -> str:
    """The key of `_REASONS` of a ranking without figures."""
    if not num_queries or not num_gallery:
        return "empty"
    return "unmatched" if num_unmatched == num_queries else "unshared"


def _footnote(reasons: Collection[str], addition: str = "") -> str:
    """What a dash means, below the table; nothing where there is none."""
    why = ", or ".join(text for reason, text in _REASONS.items() if reason in reasons)
    return f"\n\n`-`: {why}{addition}." if why else ""


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table below its title."""
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
