"""Figures over missing modalities as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trireid.cli.console import FIGURES, PATTERNS

_SHOWN = FIGURES[:3]


def tables(figures: Mapping[str, Any]) -> list[str]:
    """The tables of `describe_cases` as Markdown, as far as there are any, figures in per cent."""
    shown = [_cases_table(figures["missing"])] if "missing" in figures else []
    matrices = figures.get("any_to_any", {"feature": {}})
    for name, values in matrices["feature"].items():
        for figure, label in (("mAP", "mAP"), ("rank1", "rank-1")):
            title = f"any to any, {label} of {PATTERNS[name]}; rows are what queries have, columns what the gallery has"
            body = [
                [subset, *map(_percent, row)] for subset, row in zip(matrices["subsets"], values[figure], strict=True)
            ]
            shown.append(_table(title, ["query", *matrices["subsets"]], body))
    return shown


def page(figures: Mapping[str, Any]) -> str:
    """All figures of a test as one Markdown text."""
    header = ["feature", *(label for label, _ in FIGURES)]
    body = [
        [PATTERNS.get(name, name), *(_percent(values.get(key)) for _, key in FIGURES)]
        for name, values in figures["feature"].items()
    ]
    counts = f"{figures['num_queries']} queries, {figures['num_gallery']} in the gallery"
    parts = [_table(f"test split: {counts}, {figures['checkpoint']}", header, body), *tables(figures)]
    return "\n\n".join([*parts, *(f"Note: {line}" for line in figures["messages"])]) + "\n"


def _cases_table(missing: Mapping[str, Any]) -> str:
    """Cases by rows, every pattern's mAP, mINP and rank-1 by columns, and the mean of the cases."""
    cases, mean = missing["cases"], missing["mean"]
    names = list(cases["none"]["feature"])
    header = ["withheld", "queries", "gallery"]
    header += [f"{label} {PATTERNS[name].split()[1]}" for name in names for label, _ in _SHOWN]
    rows = {case: (str(each["num_queries"]), str(each["num_gallery"]), each["feature"]) for case, each in cases.items()}
    if mean:
        rows[f"mean of {len(cases) - 1}"] = "", "", mean
    body = [
        [case, *counts, *(_percent(values[name][key]) for name in names for _, key in _SHOWN)]
        for case, (*counts, values) in rows.items()
    ]
    return _table("missing modalities, withheld from query and gallery", header, body)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table below its title."""
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
