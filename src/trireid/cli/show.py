"""`trireid show`: single pictures of a run. Commands and options here; what is heavy is imported when one runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    help="Draw single pictures of a run: kept patches, rank lists, Grad-CAM, features in a plane.",
)


class Format(StrEnum):
    """File formats of a picture."""

    png = "png"
    pdf = "pdf"


class Method(StrEnum):
    """Ways to bring features into a plane."""

    tsne = "tsne"
    pca = "pca"


Run = Annotated[Path, typer.Argument(help="A run folder, or a .safetensors checkpoint.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, e.g. data.root=path/to/images.")
]
Ids = Annotated[
    list[str] | None, typer.Option("--ids", help="Identities or names of queries, by commas; repeat as needed.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the pictures (`pictures` in the run folder).")]
FormatOption = Annotated[Format, typer.Option("--format", help="png or pdf.")]
Evaluate = Annotated[
    bool, typer.Option("--evaluate", help="Run the model over the test set where the run has no saved features.")
]
Count = Annotated[int, typer.Option("--n", min=1, help="Triplets to draw, or of each of --ids.")]


@show_app.command()
def patches(
    run: Run,
    settings: Overrides = None,
    ids: Ids = None,
    n: Count = 3,
    out: Out = None,
    format: FormatOption = Format.png,
) -> None:
    """Draw which patches each cut scored, kept and dropped, and what the slots of SDTPS are made of."""
    from trireid.report.items import select_items
    from trireid.visualize.patches import patches_figure, slots_figure

    opened, folder, given = _open_items(run, settings, ids, n)
    save = _saver(out or folder.pictures, format)
    for item in select_items(opened, given):
        if not item.selection:
            raise RunError(f"{run} selects no patches: it has no head sdtps and no model.slimming, so nothing is drawn")
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
    n: Annotated[int, typer.Option("--n", min=1, help="Queries of each kind, or of each of --ids.")] = 3,
    top: Annotated[int, typer.Option(min=1, help="Places of each list.")] = 10,
    feature: Annotated[str, typer.Option(help="joint, global or head.")] = "joint",
    out: Out = None,
    format: FormatOption = Format.png,
    evaluate: Evaluate = False,
) -> None:
    """Draw rank lists in the three spectra: of the easiest, hardest and most confidently wrong queries, or of --ids."""
    from trireid.report.items import named_records
    from trireid.report.queries import rank_saved, shown_queries
    from trireid.report.run_folder import read_run, saved_features_of
    from trireid.visualize.ranklist import rank_list_figure

    folder = read_run(run, overrides=settings or [], evaluate=evaluate, progress=True)
    saved = saved_features_of(folder)
    save = _saver(out or folder.pictures, format)
    ranked = rank_saved(saved, feature=feature)
    if ids:
        rows = [saved.query.records.index(record) for record in named_records(saved.query.records, _split(ids), n)]
        queries = {"query": [ranked.shown(row, top=top) for row in rows]}
    else:
        queries = shown_queries(ranked, num_queries=n, top=top)
    for reason, shown in queries.items():
        if not shown:
            note(f"no query is {reason}")
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
        int | None, typer.Option(min=1, help="Block of the ViT whose output is weighed (the last but one).")
    ] = None,
    out: Out = None,
    format: FormatOption = Format.png,
) -> None:
    """Draw what speaks for the likeness of a query to its right matches (where features are saved), by Grad-CAM."""
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
        what = "the length of its feature" if reference is None else "its likeness to its right matches"
        save(f"gradcam_{record.name}", grad_cam_figure(record, heat, title=f"{record.name}: {what}"))


@show_app.command()
def tsne(
    run: Run,
    settings: Overrides = None,
    ids: Ids = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Identities, evenly over all of them.")] = 12,
    method: Annotated[Method, typer.Option(help="tsne or pca.")] = Method.tsne,
    feature: Annotated[str, typer.Option(help="joint, global or head.")] = "joint",
    seed: Annotated[int, typer.Option(min=0, help="Of t-SNE's start.")] = 0,
    out: Out = None,
    format: FormatOption = Format.png,
    evaluate: Evaluate = False,
) -> None:
    """Draw the features of the queries in a plane, coloured by identity, marked by camera."""
    from trireid.report.items import named_records, spread_records
    from trireid.report.queries import feature_of
    from trireid.report.run_folder import read_run, saved_features_of
    from trireid.visualize.embedding import embed_in_plane, embedding_figure

    folder = read_run(run, overrides=settings or [], evaluate=evaluate, progress=True)
    side = saved_features_of(folder).query
    chosen = named_records(side.records, _split(ids), 1) if ids else spread_records(side.records, n)
    wanted = {record.identity for record in chosen}
    rows = [row for row, record in enumerate(side.records) if record.identity in wanted]
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
    """The model of a run and the triplets to draw; what cannot be read is said."""
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
    """Names given by commas or one by one."""
    return [name.strip() for each in ids or () for name in each.split(",") if name.strip()]


def _saver(folder: Path, format: Format) -> Callable[[str, Figure], None]:
    """What writes a figure under a name, whole or not at all, and says where."""
    from trireid.files import file_name, replacing
    from trireid.visualize.text import readable

    def save(name: str, figure: Figure) -> None:
        path = folder / f"{file_name(name)}.{format.value}"
        with replacing(path) as temporary, readable(figure):
            options: dict[str, Any] = {"pil_kwargs": {"optimize": True}} if format is Format.png else {}
            figure.savefig(temporary, format=format.value, facecolor="white", **options)
        say(f"written: {path}")

    return save
