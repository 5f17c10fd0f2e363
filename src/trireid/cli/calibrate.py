"""The options of `trireid calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FEATURES", help="A run folder or checkpoint, an exported .onnx file, or embeddings."
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, e.g. data.root=path/to/images.")
    ] = None,
    target_fmr: Annotated[
        float,
        typer.Option("--target-fmr", help="Lowest false match rate that the data must support, above 0 and up to 1."),
    ] = 0.001,
    data: Annotated[
        Path | None,
        typer.Option(help="CSV file of labelled items not used in training; default: the run's held-out identities."),
    ] = None,
    feature: Annotated[str | None, typer.Option(help="Feature of a run: global, head or joint; default joint.")] = None,
    centring: Annotated[
        str | None,
        typer.Option(help="For a run: train (subtract the mean training feature) or none; default: as the run."),
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(
            help="Pairs that do not count: camera, scene, cross_camera or none; default: the data set's rule."
        ),
    ] = None,
    all_presences: Annotated[
        bool, typer.Option("--all-presences", help="Calibrate each pair of subsets of the modalities, by withholding.")
    ] = False,
    replicates: Annotated[int, typer.Option(help="Bootstrap samples of the identities.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: calibration.json in the run folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find the thresholds for false match rates, with false non-match rates and confidence intervals."""
    from trireid.cli.error_rates import run

    run(
        source,
        target_fmr=target_fmr,
        data=data,
        overrides=settings or [],
        feature=feature,
        centring=centring,
        exclude=exclude,
        all_presences=all_presences,
        replicates=replicates,
        seed=seed,
        out=out,
        as_json=as_json,
    )
