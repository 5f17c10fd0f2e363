"""`trireid show`: single pictures of a run. Each command imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trireid.cli.console import note, progress, say
from trireid.errors import RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trireid.data.records import Record
    from trireid.report.items import ModelInput, OpenModel
    from trireid.report.run_folder import RunFolder

show_app = typer.Typer(
    name="show",
    no_args_is_help=True,
    help="Draw figures of a run: kept patches, rank lists, Grad-CAM, features in two dimensions.",
)


class Format(StrEnum):
    """File formats of a picture."""

    png = "png"
    pdf = "pdf"


class Method(StrEnum):
    """Projections of features to two dimensions."""

    tsne = "tsne"
    pca = "pca"


Run = Annotated[Path, typer.Argument(help="A run folder, or a .safetensors checkpoint.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, e.g. data.root=path/to/images.")
]
Ids = Annotated[
    list[str] | None,
    typer.Option("--ids", help="Identities or names of queries, separated by commas; repeat as needed."),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the figures; default: pictures in the run folder.")]
FormatOption = Annotated[Format, typer.Option("--format", help="File format.")]
Evaluate = Annotated[
    bool, typer.Option("--evaluate", help="Run the model on the test split if the run has no saved features.")
]
Count = Annotated[int, typer.Option("--n", min=1, help="Number of triplets to draw; with --ids, of each identity.")]


@show_app.command()
def patches(
    run: Run,
    settings: Overrides = None,
    ids: Ids = None,
    n: Count = 3,
    out: Out = None,
    format: FormatOption = Format.png,
) -> None:
    """Draw the scores of each cut, the patches it kept and dropped, and the weights of the slots of SDTPS."""
    from trireid.report.items import select_items
    from trireid.visualize.patches import patches_figure, slots_figure

    opened, folder, given = _open_items(run, settings, ids, n)
    save = _saver(out or folder.pictures, format)
    for item in select_items(opened, given):
        if not item.selection:
            raise RunError(
                f"the model of {run} selects no patches (no head sdtps and no model.slimming): there is no map to draw"
            )
        name = item.record.name
        save(f"patches_{name}", patches_figure(item.record, item.selection, size=opened.size, title=name))
        chosen = item.selection.get("sdtps")
        if chosen is not None and chosen.weights is not None:
            title = f"{name}: weights of the slots of SDTPS"
            save(f"slots_{name}", slots_figure(item.record, chosen, size=opened.size, title=title))


@show_app.command()
def ranks(
    run: Run,
    settings: Overrides = None,
    ids: Ids = None,
    n: Annotated[
        int, typer.Option("--n", min=1, help="Number of queries of each kind; with --ids, of each identity.")
    ] = 3,
    top: Annotated[int, typer.Option(min=1, help="Gallery items per list.")] = 10,
    feature: Annotated[str, typer.Option(help="Feature: joint, global or head.")] = "joint",
    out: Out = None,
    format: FormatOption = Format.png,
    evaluate: Evaluate = False,
) -> None:
    """Draw rank lists of the easiest, hardest and most confidently wrong queries, or of those named by --ids."""
    from trireid.evaluation.evaluate import fused_spectra
    from trireid.report.items import named_records
    from trireid.report.queries import rank_saved, shown_queries
    from trireid.report.run_folder import read_run, saved_features_of
    from trireid.visualize.ranklist import rank_list_figure

    folder = read_run(run, overrides=settings or [], evaluate=evaluate, progress=True)
    saved = saved_features_of(folder)
    save = _saver(out or folder.pictures, format)
    ranked = rank_saved(saved, feature=feature)
    if fused_spectra(saved, feature):
        note(f"ranked by adaptive fusion, power {saved.adaptive_fusion:g} (evaluate.adaptive_fusion of the run)")
    if ids:
        rows = [saved.query.records.index(record) for record in named_records(saved.query.records, _split(ids), n)]
        queries = {"query": [ranked.shown(row, top=top) for row in rows]}
    else:
        queries = shown_queries(ranked, num_queries=n, top=top)
    for reason, shown in queries.items():
        if not shown:
            note(f"there is no {reason} query")
        for query in shown:
            kind = "" if ids else f", {reason}"
            title = f"{query.record.name}{kind}: average precision {query.average_precision:.2f}"
            figure = rank_list_figure(query.record, query.entries, title=title)
            save(f"ranks_{reason.replace(' ', '_')}_{query.record.name}", figure)


@show_app.command()
def gradcam(
    run: Run,
    settings: Overrides = None,
    ids: Ids = None,
    n: Count = 3,
    after_block: Annotated[
        int | None,
        typer.Option(min=1, help="Block of the backbone whose output is explained; default: the last but one."),
    ] = None,
    out: Out = None,
    format: FormatOption = Format.png,
) -> None:
    """Draw, by Grad-CAM, where a query resembles its matches; without saved features, what makes its feature long."""
    from trireid.report.items import matching_feature
    from trireid.visualize.gradcam import grad_cam, grad_cam_figure

    opened, folder, given = _open_items(run, settings, ids, n)
    save = _saver(out or folder.pictures, format)
    for row, record in enumerate(given.records):
        reference = None if folder.saved is None else matching_feature(folder.saved, record)
        with progress(f"Grad-CAM of {record.name}", counted=False):
            heat = grad_cam(
                opened.model,
                given.images[row : row + 1],
                present=given.present[row : row + 1],
                camera=given.camera[row : row + 1],
                reference=reference,
                after_block=after_block,
            )
        what = "length of its feature" if reference is None else "similarity to its matches"
        save(f"gradcam_{record.name}", grad_cam_figure(record, heat, title=f"{record.name}: {what}"))


@show_app.command()
def tsne(
    run: Run,
    settings: Overrides = None,
    ids: Ids = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of identities, spread evenly over all of them.")] = 12,
    method: Annotated[Method, typer.Option(help="Projection.")] = Method.tsne,
    feature: Annotated[str, typer.Option(help="Feature: joint, global or head.")] = "joint",
    seed: Annotated[int, typer.Option(min=0, help="Random seed of t-SNE.")] = 0,
    out: Out = None,
    format: FormatOption = Format.png,
    evaluate: Evaluate = False,
) -> None:
    """Draw the features of the queries in two dimensions, coloured by identity and marked by camera."""
    from trireid.report.items import named_records, spread_records
    from trireid.report.queries import feature_of
    from trireid.report.run_folder import read_run, saved_features_of
    from trireid.visualize.embedding import embed_in_plane, embedding_figure

    folder = read_run(run, overrides=settings or [], evaluate=evaluate, progress=True)
    side = saved_features_of(folder).query
    chosen = named_records(side.records, _split(ids), 1) if ids else spread_records(side.records, n)
    identities = {record.identity for record in chosen}
    rows = [row for row, record in enumerate(side.records) if record.identity in identities]
    with progress(method.value, counted=False):
        points = embed_in_plane(feature_of(side, feature)[rows], method=method.value, seed=seed)
    records = [side.records[row] for row in rows]
    names, cameras = [record.identity for record in records], [record.camera for record in records]
    title = f"{folder.name}: {feature} feature of {len(rows)} queries, {method.value}"
    save = _saver(out or folder.pictures, format)
    save(f"{method.value}_{feature}", embedding_figure(points, names, cameras, title=title))


def _open_items(
    run: Path, settings: Sequence[str] | None, ids: Sequence[str] | None, n: int
) -> tuple[OpenModel, RunFolder, ModelInput]:
    """The model of a run and the triplets to draw; a note names each image that cannot be read."""
    from trireid.report.items import named_records, open_model, prepare, spread_records
    from trireid.report.run_folder import evaluated_records, read_run

    folder = read_run(run, overrides=settings or [])
    opened = open_model(folder)
    records = evaluated_records(folder)
    chosen: list[Record] = named_records(records, _split(ids), n) if ids else spread_records(records, n)
    notes: list[str] = []
    given = prepare(opened, chosen, notes)
    for line in notes:
        note(line)
    return opened, folder, given


def _split(ids: Sequence[str] | None) -> list[str]:
    """Names separated by commas, of options given once or more."""
    return [name.strip() for each in ids or () for name in each.split(",") if name.strip()]


def _saver(folder: Path, format: Format) -> Callable[[str, Figure], None]:
    """A function that writes a figure under a name, completely or not at all, and prints its path."""
    from trireid.files import file_name, replacing
    from trireid.visualize.text import readable

    def save(name: str, figure: Figure) -> None:
        path = folder / f"{file_name(name)}.{format.value}"
        with replacing(path) as temporary, readable(figure):
            if format is Format.png:
                figure.savefig(temporary, format="png", facecolor="white", pil_kwargs={"optimize": True})
            else:
                figure.savefig(temporary, format="pdf", facecolor="white")
        say(f"written: {path}")

    return save
