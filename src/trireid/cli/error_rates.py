"""`trireid calibrate`: thresholds with their error rates, from labelled features that the model was not trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trireid.cli.console import is_main_process, note, progress, say, show_table
from trireid.cli.options import refuse_contradiction
from trireid.errors import ConfigError
from trireid.evaluation.calibration import Calibration, Curve, PairRates
from trireid.evaluation.calibration_file import check_replaceable
from trireid.files import check_writable, is_file, is_folder
from trireid.names import Exclusion
from trireid.train.run_files import CALIBRATION_FILE

if TYPE_CHECKING:
    from trireid.config.schema import Config
    from trireid.embedding.embeddings import Embeddings

SHOWN_RATES = (0.1, 0.01, 0.001, 0.0001)


def run(
    source: Path,
    *,
    target_fmr: float,
    data: Path | None,
    overrides: Sequence[str],
    feature: str | None,
    centring: str | None,
    exclude: str | None,
    all_presences: bool,
    replicates: int,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> Calibration:
    """Calibrate a run or a file of embeddings, write the calibration and print its rates.

    Args:
        source: a run folder, a checkpoint, an exported file, or embeddings that `trireid embed` wrote.
        target_fmr: the false match rate that must be supported.
        data: a CSV file of other labelled items as `trireid embed` reads it, of a run; an exported file needs one.
        overrides: `section.setting=value`, of a run.
        feature: of a run; None: `joint`.
        centring: of a run, `none` or `train`; None: as its settings.
        exclude: which pairs do not count; None: as the data set's protocol, of embeddings `camera`.
        all_presences: also embed each subset of the modalities, of a run.
        replicates, seed: of the bootstrap.
        out: file to write; None: `calibration.json` in the run folder, or beside the file.
        as_json: print the result as JSON.

    Raises:
        TrireidError: the source cannot be read or embedded, its identities are too few, or the target is another file.
    """
    from trireid.embedding.calibrating import calibrate, check_settings

    check_settings(exclude or "camera", target_fmr, 0.95, replicates)
    target = out or (source / CALIBRATION_FILE if is_folder(source) else source.with_suffix(f".{CALIBRATION_FILE}"))
    check_replaceable(target)
    check_writable(target)
    given: dict[str, Any] = {"data": data, "overrides": overrides, "feature": feature, "all_presences": all_presences}
    given["centring"] = centring
    parts, about, rule, notes = _read(source, given, target_fmr)
    with progress("calibrating") as bar:
        settings: dict[str, Any] = {"target_fmr": target_fmr, "replicates": replicates, "seed": seed}
        rule = cast("Exclusion", exclude or rule)
        calibration = calibrate(*parts, exclude=rule, progress=bar.reach, **settings)
    calibration = replace(calibration, data=about, notes=(*notes, *calibration.notes))
    if is_main_process():
        calibration.save(target)
    for line in calibration.notes:
        note(line)
    if as_json:
        say(json.dumps(summary(calibration, target_fmr)))
    else:
        show(calibration, target_fmr)
        say(f"written: {target}")
    return calibration


Source = tuple["list[Embeddings]", str, str, tuple[str, ...]]
"""Embeddings, what they are of, the rule that goes with them, and notes."""


def _read(source: Path, given: dict[str, Any], target_fmr: float) -> Source:
    """Embeddings of whatever the source is."""
    from trireid.embedding.opening import is_exported

    if is_exported(source):
        return _exported(source, **given, target_fmr=target_fmr)
    if source.suffix == ".csv" or is_file(source.with_suffix(".csv")):
        return _saved(source, needs_model=any(given.values()))
    return _embedded(source, **given, target_fmr=target_fmr)


def _saved(source: Path, *, needs_model: bool) -> Source:
    """Embeddings that were written before.

    Raises:
        TrireidError: options need the model, or the files are missing or damaged.
    """
    from trireid.embedding.embeddings import Embeddings

    if needs_model:
        raise ConfigError(
            f"{source} holds embeddings: --data, --feature, --centring, --all-presences and settings need the model; "
            "give the run folder instead"
        )
    note("a calibration is only right for items that the model was not trained on; embeddings do not tell")
    return [Embeddings.load(source)], str(source), "camera", ()


def _embedded(
    source: Path,
    *,
    data: Path | None,
    overrides: Sequence[str],
    feature: str | None,
    centring: str | None,
    all_presences: bool,
    target_fmr: float,
) -> Source:
    """Embeddings of what a run was not trained on."""
    from trireid.config.load import override_config
    from trireid.embedding.calibrating import check_identities
    from trireid.embedding.embedder import Embedder
    from trireid.embedding.own_ranges import ranges_in
    from trireid.embedding.unseen import embed_presences, items_of_run, items_of_table
    from trireid.train.checkpoint import config_here, load_checkpoint

    refuse_contradiction("centring", centring, "evaluate.centring", overrides)
    checkpoint = load_checkpoint(source)
    config = override_config(config_here(checkpoint), overrides)
    found = items_of_table(data) if data is not None else items_of_run(checkpoint, config, progress=is_main_process())
    check_identities(len({item.identity for item in found.items}), target_fmr)
    embedder = Embedder(
        checkpoint,
        device=config.train.device,
        feature=feature or "joint",
        batch_size=config.evaluate.batch_size,
        ranges=ranges_in(overrides, config),
        centring=centring or _changed_centring(overrides, config),
    )
    parts = embed_presences(embedder, found.items, all_presences=all_presences, progress=is_main_process())
    return parts, found.about, found.exclude, found.notes


def _changed_centring(overrides: Sequence[str], config: Config) -> str | None:
    """`evaluate.centring` where a setting gives it."""
    given = any(each.partition("=")[0].strip() == "evaluate.centring" for each in overrides)
    return config.evaluate.centring if given else None


def _exported(
    source: Path,
    *,
    data: Path | None,
    overrides: Sequence[str],
    feature: str | None,
    centring: str | None,
    all_presences: bool,
    target_fmr: float,
) -> Source:
    """Embeddings of labelled items by an exported file, which knows no data set.

    Raises:
        TrireidError: no items are given, or settings are.
    """
    from trireid.embedding.calibrating import check_identities
    from trireid.embedding.opening import open_embedder, refuse_exported
    from trireid.embedding.unseen import embed_presences, items_of_table

    if data is None:
        refuse_exported(source, "a calibration without --data", "give --data FILE.csv with labelled items, or the run")
    if overrides:
        refuse_exported(source, "a setting KEY=VALUE", "leave it out, or give the run")
    assert data is not None
    found = items_of_table(data)
    check_identities(len({item.identity for item in found.items}), target_fmr)
    embedder = open_embedder(source, feature=feature or "joint", centring=centring)
    parts = embed_presences(embedder, found.items, all_presences=all_presences, progress=True)
    return parts, found.about, found.exclude, found.notes


def summary(calibration: Calibration, target: float) -> dict[str, Any]:
    """The rates that are shown, as JSON: by pair of presences, at the target and at round rates."""
    pairs = [
        {
            "first": rates.first,
            "second": rates.second,
            "num_identities": rates.num_identities,
            "num_same": rates.num_same,
            "num_different": rates.num_different,
            "lowest_fmr": rates.lowest,
            "at": [_at(rates, fmr) for fmr in sorted({target, *SHOWN_RATES}, reverse=True) if fmr >= rates.lowest],
        }
        for rates in calibration.rates
    ]
    about = {"fingerprint": calibration.fingerprint, "feature": calibration.feature, "data": calibration.data}
    return {**about, "target_fmr": target, "notes": list(calibration.notes), "pairs": pairs}


def _at(rates: PairRates, fmr: float) -> dict[str, Any]:
    place = rates.place(fmr)

    def values(curve: Curve) -> list[float]:
        return [float(each[place]) for each in (curve.rate, curve.low, curve.high)]

    identification = [
        {
            "query": each.query,
            "num_gallery": each.num_gallery,
            "fpir": values(each.false_positive),
            "fnir": values(each.false_negative),
        }
        for each in rates.identification
    ]
    return {
        "fmr": fmr,
        "cosine": float(rates.cosine[place]),
        "observed_fmr": values(rates.false_match),
        "fnmr": values(rates.false_non_match),
        "identification": identification,
    }


def show(calibration: Calibration, target: float) -> None:
    """Print the rates as tables, in percent."""
    rules = {"none": "no pair is excluded", "cross_camera": "pairs of one camera are excluded where it is known"}
    rule = rules.get(
        calibration.exclude, f"pairs of one identity and {calibration.exclude} are excluded where it is known"
    )
    size = f"{calibration.num_items} items of {calibration.num_identities} identities"
    say(f"model:   {calibration.description}, feature {calibration.feature}")
    say(f"data:    {calibration.data}: {size}; {rule}")
    supported = [rates for rates in calibration.rates if rates.lowest <= target]
    interval = f"[{100 * calibration.confidence:g} % intervals over identities]"
    show_table(
        f"thresholds for a false match rate (FMR) of {100 * target:g} %, {interval}",
        ["modalities", "identities", "pairs same", "different", "cosine from", "FMR %", "FNMR %"],
        [_threshold_row(rates, target) for rates in supported],
    )
    show_table(
        "false non-match rate (FNMR) in % by false match rate",
        ["modalities", *(f"FMR {100 * fmr:g} %" for fmr in SHOWN_RATES)],
        [[_pair(rates), *(_fnmr(rates, fmr) for fmr in SHOWN_RATES)] for rates in calibration.rates],
    )
    show_table(
        f"open-set identification at rank 1, at the thresholds for {100 * target:g} %",
        ["query in gallery", "gallery items", "FPIR %", "FNIR %"],
        [row for rates in supported for row in _identification_rows(rates, target)],
    )


def _threshold_row(rates: PairRates, target: float) -> list[str]:
    at = _at(rates, target)
    counts = (rates.num_identities, rates.num_same, rates.num_different)
    shares = _share(at["observed_fmr"]), _share(at["fnmr"])
    return [_pair(rates), *map(str, counts), f"{at['cosine']:.4f}", *shares]


def _fnmr(rates: PairRates, fmr: float) -> str:
    """A dash where the identities are too few."""
    return _share(_at(rates, fmr)["fnmr"]) if fmr >= rates.lowest else "-"


def _identification_rows(rates: PairRates, target: float) -> list[list[str]]:
    galleries = {rates.first: rates.second, rates.second: rates.first}
    return [
        [
            f"{each['query']} in {galleries[each['query']]}",
            str(each["num_gallery"]),
            _share(each["fpir"]),
            _share(each["fnir"]),
        ]
        for each in _at(rates, target)["identification"]
    ]


def _pair(rates: PairRates) -> str:
    return rates.first if rates.first == rates.second else f"{rates.first} - {rates.second}"


def _share(values: Sequence[float]) -> str:
    """A rate in percent with its interval."""
    rate, low, high = (f"{100 * value:.3g}" for value in values)
    return f"{rate} [{low}, {high}]"
