"""Options and tables of `trireid gallery`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trireid.cli.console import note, say, show_table
from trireid.cli.options import check_centring
from trireid.errors import InputError, printable
from trireid.files import CALIBRATION_FILE, is_file, real_path

if TYPE_CHECKING:
    from trireid.embedding.embeddings import Embeddings, ModelIdentity
    from trireid.embedding.items import Item
    from trireid.gallery.filters import Filter
    from trireid.gallery.gallery import Gallery
    from trireid.gallery.results import Match, QueryResult

BY_CAMERA = "camera"
"""The centring of a gallery that subtracts the mean of each of its cameras."""
Place = Annotated[str, typer.Argument(metavar="GALLERY", help="A folder, or http://host:port of a Milvus server.")]
Name = Annotated[str, typer.Option("--name", help="Name of the gallery; one server can hold several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Features = Annotated[
    list[Path] | None,
    typer.Argument(metavar="INPUT...", help="Files of `trireid embed`; with --run: CSV files or folders of images."),
]
Run = Annotated[Path | None, typer.Option("--run", help="A run, checkpoint or .onnx file that embeds images.")]
Feature = Annotated[str, typer.Option(help="With --run: feature, global, head or joint.")]
Device = Annotated[str, typer.Option(help="With --run: device, auto, cpu or cuda.")]
Split = Annotated[str | None, typer.Option(help="With --run: a split of its data set: train, query, gallery or test.")]
ModelFeature = Annotated[str, typer.Option("--feature", help="Feature of a run or checkpoint: global, head or joint.")]
Centre = Annotated[
    str | None,
    typer.Option(
        "--centring",
        help="With --run: train (subtract the mean training feature) or none; default: as the gallery, or for a new "
        "one as the run. For a new gallery also camera: subtract the mean feature of each camera.",
    ),
]
ModelCentre = Annotated[
    str | None,
    typer.Option("--centring", help="train (subtract the mean training feature) or none; default: as the run."),
]
NewCentre = Annotated[
    str | None,
    typer.Option(
        "--centring",
        help="Subtract the mean feature: train, of the training images of a run; camera, of each camera of the "
        "gallery; none. Default: as the run.",
    ),
]
ModelDevice = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="With --run: list items that cannot be read and leave them out.")
]
Root = Annotated[Path | None, typer.Option("--root", help="Folder to which stored image paths are relative.")]
QueryCamera = Annotated[str | None, typer.Option(help="With --rgb, --nir, --tir: camera of the query.")]
QueryScene = Annotated[str | None, typer.Option(help="With --rgb, --nir, --tir: scene of the query.")]
QueryIdentity = Annotated[str | None, typer.Option(help="With --rgb, --nir, --tir: identity of the query.")]
Image = Annotated[Path | None, typer.Option(help="With --run: this image of a single query.")]
Texts = list[str] | None
Keys = Annotated[Texts, typer.Option("--key", help="Only this item; repeat as needed.")]
Identities = Annotated[Texts, typer.Option("--identity", help="Only items of this identity; repeat as needed.")]
Cameras = Annotated[Texts, typer.Option("--camera", help="Only items of this camera; repeat as needed.")]
NotCameras = Annotated[Texts, typer.Option("--not-camera", help="No items of this camera; repeat as needed.")]
Scenes = Annotated[Texts, typer.Option("--scene", help="Only items of this scene; repeat as needed.")]
Presences = Annotated[Texts, typer.Option("--presence", help="Only items with exactly these modalities, e.g. rgb,nir.")]
After = Annotated[str | None, typer.Option(help="Only items of this time or later: seconds since 1970, or ISO 8601.")]
Before = Annotated[str | None, typer.Option(help="Only items before this time, given as for --after.")]
Partial = Annotated[
    bool,
    typer.Option("--partial", help="Search fast for queries with fewer modalities, too; needs four times the memory."),
]


@contextmanager
def opened_gallery(location: str, name: str) -> Iterator[Gallery]:
    """A gallery that is closed at the end of the block."""
    from trireid.gallery.gallery import Gallery

    with Gallery.open(location, name=name) as opened:
        yield opened


def check_before(location: str, name: str, root: Path | None, *, partial: bool) -> ModelIdentity:
    """What is wrong with a gallery that items are added to, before they are embedded. Returns its model.

    Raises:
        InputError: it was made with another root, or without `--partial`; or it takes no more items.
        RunError: there is none, or it cannot be opened.
    """
    from trireid.gallery.camera_means import is_full

    with opened_gallery(location, name) as opened:
        found = opened.info()
        if not opened.takes_items:
            raise is_full()
    if root is not None and found.root != str(real_path(root)):
        has = "none" if found.root is None else printable(found.root)
        raise InputError(f"--root is for a gallery that --create makes, and this one has its own ({has}): leave it out")
    if partial and not found.partial:
        raise InputError(
            "--partial is for a gallery that --create makes, and this one was made without: leave it out, or copy the "
            "gallery with --partial"
        )
    return found.model


def centring_of(run: Path | None, given: str | None, own: ModelIdentity | None = None) -> str | None:
    """The centring that a run embeds images with: that of the gallery, or of a new one as given.

    A gallery that centres by camera does it itself, with features that are not centred.

    Args:
        run: that embeds; None: embeddings are there already.
        given: by the user; None: not given.
        own: the model of the gallery; None: there is none yet.

    Raises:
        InputError: it is given without a run, is unknown, or is not that of the gallery.
    """
    from trireid.embedding.opening import is_exported

    if own is None:
        check_centring(given)
    if given == BY_CAMERA and (own is None or own.centring == BY_CAMERA):
        return None if run is None or is_exported(run) else "none"
    if given is not None and own is not None and given != own.centring:
        raise InputError(
            f"--centring is {printable(given, limit=40)}, and the vectors of the gallery have centring {own.centring}: "
            "leave it out, or build another gallery"
        )
    if given is not None and run is None:
        raise InputError(
            f"--centring {printable(given, limit=40)} is for images, with --run: embeddings have their own"
        )
    if own is None or run is None:
        return given
    return None if is_exported(run) else "none" if own.centring == BY_CAMERA else own.centring


def check_first_items(parts: Embeddings, about: Mapping[str, Any]) -> None:
    """Find what is wrong with the items of a new gallery before it is made, so that no empty one is left.

    Args:
        parts: the items.
        about: arguments of `Gallery.create`.

    Raises:
        InputError: a vector or a field cannot be stored, or centring by camera leaves nothing of an item.
    """
    from trireid.gallery.about import new_about
    from trireid.gallery.camera_means import CameraMeans
    from trireid.gallery.rows import check_vectors, rows_of

    layout = new_about(parts.model, **about).layout
    check_vectors(parts, layout)
    centred = CameraMeans.of(parts).subtract(parts) if about["by_camera"] else parts
    rows_of(centred, layout, about["root"])


def note_centring(gallery: Gallery) -> None:
    """Report where distances depend on the gallery as a whole."""
    from trireid.gallery.camera_means import described

    if gallery.camera_means is not None:
        note(described(gallery.camera_means))


def model_of(path: Path, feature: str, centring: str | None) -> ModelIdentity:
    """The model of a run, a checkpoint or embeddings."""
    from trireid.embedding.embeddings import Embeddings
    from trireid.embedding.opening import is_exported, open_embedder

    if not is_exported(path) and path.with_suffix(".csv").is_file():
        centring_of(None, centring)
        return Embeddings.load(path).model
    return open_embedder(path, device="cpu", feature=feature, centring=centring_of(path, centring)).model


def embeddings_of(
    inputs: list[Path],
    *,
    run: Path | None,
    feature: str,
    device: str,
    images: dict[str, Path] | None = None,
    split: str | None = None,
    skip_bad: bool = False,
    facts: Mapping[str, Any] | None = None,
    centring: str | None = None,
) -> tuple[Embeddings, int]:
    """Finished embeddings, or those of images or of a split of the run; and how many items were left out.

    Args:
        inputs: files of embeddings, or with `run` of images.
        run, feature, device: of the model that embeds images.
        images: a single item.
        split: of the run's data set.
        skip_bad: leave out items that cannot be read.
        facts: what is known about the single item.
        centring: of the model, see `centring_of`.
    """
    from trireid.embedding.embeddings import Embeddings, concatenate

    if any((facts or {}).values()) and not images:
        raise InputError(
            "--query-camera, --query-scene and --query-identity are for a query by --rgb, --nir and --tir: items of "
            "files and of the gallery have their own"
        )
    if run is None:
        if skip_bad:
            raise InputError("--skip-bad leaves out images that cannot be read: give it with --run")
        if images or split or not inputs:
            raise InputError("give INPUT: files that `trireid embed` wrote, or images or --split with --run")
        parts = [Embeddings.load(path) for path in inputs]
        return parts[0] if len(parts) == 1 else concatenate(parts), 0
    from trireid.cli.embed import read_items
    from trireid.embedding.opening import open_embedder

    given = read_items(run, inputs, images or {}, split)
    for line in given.notes:
        note(line)
    items = [replace(item, **facts) for item in given.items] if images and facts else list(given.items)
    embedder = open_embedder(run, device=device, feature=feature, centring=centring)
    found = embedder.embed(items, progress=True, skip_bad=skip_bad)
    return found, len(items) - len(found)


def calibrate_by_run(gallery: Gallery, run: Path | None) -> None:
    """Give a new gallery the calibration that `trireid calibrate` wrote for its run or file, if there is one."""
    from trireid.evaluation.calibration import Calibration

    path = None if run is None else calibration_path(run)
    if path is None or not is_file(path):
        return
    if gallery.model.centring == BY_CAMERA:
        note(f"{path} is of features that are not centred by camera: the gallery is not calibrated")
        return
    calibration = Calibration.load(path)
    if (calibration.fingerprint, calibration.feature) == (gallery.model.fingerprint, gallery.model.feature):
        gallery.set_calibration(calibration)
        note(f"the gallery has the calibration {path}: --fmr can be used")
    else:
        note(f"{path} is of another checkpoint or feature of the run: the gallery is not calibrated")


def calibration_path(model: Path) -> Path:
    """Where `trireid calibrate` writes by itself: into the folder of a run, beside any other file."""
    from trireid.embedding.opening import is_exported

    return model.with_suffix(f".{CALIBRATION_FILE}") if is_exported(model) else model / CALIBRATION_FILE


def filter_of(
    key: Texts,
    identity: Texts,
    camera: Texts,
    not_camera: Texts,
    scene: Texts,
    presence: Texts,
    after: str | None,
    before: str | None,
) -> Filter:
    """The filter of the options."""
    from trireid.gallery.filters import Filter

    return Filter(
        keys=key or None,
        identities=identity or None,
        cameras=camera or None,
        not_cameras=not_camera or None,
        scenes=scene or None,
        presence=presence or None,
        after=_seconds(after, "--after"),
        before=_seconds(before, "--before"),
    )


def _seconds(text: str | None, option: str) -> float | None:
    """A time as seconds since 1970; without a time zone it is UTC."""
    from trireid.embedding.items import seconds_of

    if text is None:
        return None
    try:
        return seconds_of(text)
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


def report(result: Mapping[str, Any], line: str, *, as_json: bool) -> None:
    """Print what was done, as JSON or as a line for people."""
    say(json.dumps(result) if as_json else line)


def show_result(result: QueryResult, *, decides: bool) -> None:
    """Print the matches of one query as a table.

    Args:
        result: of the query.
        decides: whether there was a threshold.
    """
    verdict = {True: "known", False: "UNKNOWN", None: "not decided" if decides else ""}[result.known]
    limit = "" if result.threshold is None else f" (* largest distance {result.threshold:.4f})"
    rows = [[str(rank), *_cells(match)] for rank, match in enumerate(result.matches, start=1)]
    header = ["rank", "key", "identity", "distance", "compared", "false match rate", "camera", "scene"]
    show_table(f"query {result.key or ''} {verdict}{limit if verdict else ''}".strip(), header, rows)


def _cells(match: Match) -> list[str]:
    bound = "<= " if match.rate_is_bound else ""
    rate = "-" if match.false_match_rate is None else f"{bound}{match.false_match_rate:.2g}"
    mark = {True: " *", False: "", None: ""}[match.accepted]
    distance = f"{match.distance:.4f}{mark}"
    compared = "+".join(match.compared) or "nothing shared"
    return [match.key, match.identity or "-", distance, compared, rate, match.camera or "-", match.scene or "-"]


def item_facts(item: Item) -> list[str]:
    """Identity, camera, scene and time of an item, as cells of a table."""
    from datetime import UTC, datetime

    try:
        time = "-" if item.time is None else datetime.fromtimestamp(item.time, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        time = f"{item.time:g}"
    return [item.identity or "-", item.camera or "-", item.scene or "-", time]


def plain_item(item: Item) -> dict[str, Any]:
    """An item as JSON."""
    names = ("key", "identity", "camera", "scene", "time", "box", "quality")
    return {
        **{name: getattr(item, name) for name in names},
        "images": dict(item.images),
        "metadata": dict(item.metadata),
    }
