"""`trireid gallery`: keep items, and find those that are nearest to a query."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from trireid.cli.console import note, progress, say, show_table
from trireid.cli.gallery_options import (
    BY_CAMERA,
    After,
    AsJson,
    Before,
    Cameras,
    Centre,
    Device,
    Feature,
    Features,
    Identities,
    Image,
    Keys,
    ModelCentre,
    ModelDevice,
    ModelFeature,
    Name,
    NewCentre,
    NotCameras,
    Partial,
    Place,
    Presences,
    QueryCamera,
    QueryIdentity,
    QueryScene,
    Root,
    Run,
    Scenes,
    SkipBad,
    Split,
    Texts,
    calibrate_by_run,
    centring_of,
    check_before,
    check_first_items,
    embeddings_of,
    filter_of,
    item_facts,
    model_of,
    note_centring,
    opened_gallery,
    plain_item,
    report,
    show_result,
)
from trireid.errors import InputError

gallery_app = typer.Typer(
    name="gallery", no_args_is_help=True, help="Keep items in a folder or on a Milvus server, and search them."
)


@gallery_app.command()
def create(
    gallery: Place,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a .onnx file, or embeddings.")],
    name: Name = "gallery",
    feature: ModelFeature = "joint",
    centring: NewCentre = None,
    root: Root = None,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Create an empty gallery for the vectors of a model."""
    from trireid.gallery.gallery import Gallery

    about: dict[str, Any] = {"name": name, "root": root, "partial": partial, "by_camera": centring == BY_CAMERA}
    with Gallery.create(gallery, model_of(model, feature, centring), **about) as made:
        calibrate_by_run(made, model)
        report(asdict(made.info()), f"created: {gallery} for {made.model}", as_json=as_json)


@gallery_app.command()
def add(
    gallery: Place,
    inputs: Features = None,
    name: Name = "gallery",
    run: Run = None,
    split: Split = None,
    feature: Feature = "joint",
    device: Device = "auto",
    centring: Centre = None,
    skip_bad: SkipBad = False,
    make: Annotated[bool, typer.Option("--create", help="Create the gallery if it does not exist.")] = False,
    root: Root = None,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Add embeddings, or images with --run. An item whose key is in the gallery replaces the one there."""
    from trireid.gallery.gallery import Gallery

    is_new = make and not Gallery.exists(gallery, name=name)
    own = None if is_new else check_before(gallery, name, root, partial=partial)
    how: dict[str, Any] = {"feature": feature, "device": device, "centring": centring_of(run, centring, own)}
    parts, left_out = embeddings_of(inputs or [], run=run, split=split, skip_bad=skip_bad, **how)
    if is_new:
        about: dict[str, Any] = {"name": name, "root": root, "partial": partial, "by_camera": centring == BY_CAMERA}
        check_first_items(parts, about)
        with Gallery.create(gallery, parts.model, **about) as made:
            calibrate_by_run(made, run)
    with Gallery.open(gallery, name=name) as opened, progress("adding") as bar:
        done = opened.add(parts, progress=bar.reach)
        count = len(opened)
    line = f"added {done.added:,} items, replaced {done.replaced:,}; the gallery has {count:,}"
    report({**asdict(done), "left_out": left_out, "items": count}, line, as_json=as_json)


@gallery_app.command()
def label(
    gallery: Place,
    identity: Annotated[str, typer.Argument(help="Identity of the items.")],
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys of the items.")],
    name: Name = "gallery",
    as_json: AsJson = False,
) -> None:
    """Give items an identity."""
    with opened_gallery(gallery, name) as opened:
        count = opened.label(keys, identity)
    report({"labelled": count}, f"labelled {count:,} items", as_json=as_json)


@gallery_app.command()
def unlabel(
    gallery: Place,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys of the items.")],
    name: Name = "gallery",
    as_json: AsJson = False,
) -> None:
    """Remove the identity of items."""
    with opened_gallery(gallery, name) as opened:
        count = opened.unlabel(keys)
    report({"unlabelled": count}, f"unlabelled {count:,} items", as_json=as_json)


@gallery_app.command()
def remove(
    gallery: Place,
    name: Name = "gallery",
    key: Keys = None,
    identity: Identities = None,
    camera: Cameras = None,
    not_camera: NotCameras = None,
    scene: Scenes = None,
    presence: Presences = None,
    after: After = None,
    before: Before = None,
    as_json: AsJson = False,
) -> None:
    """Remove the items that meet all given conditions."""
    where = filter_of(key, identity, camera, not_camera, scene, presence, after, before)
    with opened_gallery(gallery, name) as opened:
        removed, count = opened.remove(where), len(opened)
    line = f"removed {removed:,} items; the gallery has {count:,}"
    report({"removed": removed, "items": count}, line, as_json=as_json)


@gallery_app.command()
def query(
    gallery: Place,
    inputs: Features = None,
    name: Name = "gallery",
    key: Annotated[Texts, typer.Option("--key", help="Query by this gallery item; repeat as needed.")] = None,
    run: Run = None,
    rgb: Image = None,
    nir: Image = None,
    tir: Image = None,
    query_camera: QueryCamera = None,
    query_scene: QueryScene = None,
    query_identity: QueryIdentity = None,
    skip_bad: SkipBad = False,
    feature: Feature = "joint",
    device: Device = "auto",
    centring: Centre = None,
    top: Annotated[int, typer.Option(help="Number of results per query.")] = 10,
    by: Annotated[str, typer.Option(help="List items, or each identity once: item or identity.")] = "item",
    reduce: Annotated[str, typer.Option(help="With --by identity: rank by best or mean of its items.")] = "best",
    exclude: Annotated[
        str, typer.Option(help="Gallery items hidden from a query: none, camera, scene or cross_camera.")
    ] = "none",
    threshold: Annotated[float | None, typer.Option(help="Largest distance of an accepted match.")] = None,
    fmr: Annotated[float | None, typer.Option(help="Instead: accept at this false match rate.")] = None,
    identity: Identities = None,
    camera: Cameras = None,
    not_camera: NotCameras = None,
    scene: Scenes = None,
    presence: Presences = None,
    after: After = None,
    before: Before = None,
    as_json: AsJson = False,
) -> None:
    """Find the nearest items or identities, or report that a query is unknown."""
    where = filter_of(None, identity, camera, not_camera, scene, presence, after, before)
    images = {each: path for each, path in (("rgb", rgb), ("nir", nir), ("tir", tir)) if path is not None}
    if bool(key) + bool(inputs or images) != 1:
        raise InputError("give one of: INPUT (embeddings; with --run images), --rgb/--nir/--tir with --run, or --key")
    facts = {"camera": query_camera, "scene": query_scene, "identity": query_identity}
    more: dict[str, Any] = {"images": images, "skip_bad": skip_bad, "facts": facts}
    with opened_gallery(gallery, name) as opened:
        more["centring"] = centring_of(run, centring, opened.model)
        given = key or embeddings_of(inputs or [], run=run, feature=feature, device=device, **more)[0]
        results = opened.query(
            given,
            top=top,
            by=cast(Any, by),
            reduce=cast(Any, reduce),
            exclude=cast(Any, exclude),
            where=where,
            threshold=threshold,
            fmr=fmr,
        )
        note_centring(opened)
    if as_json:
        say(json.dumps([asdict(result) for result in results]))
    else:
        for result in results:
            show_result(result, decides=threshold is not None or fmr is not None)


@gallery_app.command("list")
def list_(
    gallery: Place,
    name: Name = "gallery",
    key: Keys = None,
    identity: Identities = None,
    camera: Cameras = None,
    not_camera: NotCameras = None,
    scene: Scenes = None,
    presence: Presences = None,
    after: After = None,
    before: Before = None,
    start: Annotated[str | None, typer.Option("--from", help="List only keys after this one.")] = None,
    limit: Annotated[int, typer.Option(help="Most items to list, 1 to 1000.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List items in the order of their keys."""
    where = filter_of(key, identity, camera, not_camera, scene, presence, after, before)
    with opened_gallery(gallery, name) as opened:
        items, count = opened.list(where, after=start, limit=limit), opened.count(where)
    if as_json:
        say(json.dumps({"count": count, "items": [plain_item(item) for item in items]}))
        return
    rows = [[str(item.key), *item_facts(item), "+".join(item.images)] for item in items]
    show_table(f"{len(items):,} of {count:,} items", ["key", "identity", "camera", "scene", "time", "images"], rows)
    if len(items) < count and items:
        note(f"more with --from '{items[-1].key}'")


@gallery_app.command()
def info(gallery: Place, name: Name = "gallery", as_json: AsJson = False) -> None:
    """Show what a gallery contains and which model made its vectors."""
    with opened_gallery(gallery, name) as opened:
        found = opened.info()
    if as_json:
        say(json.dumps(asdict(found)))
        return
    unrelated = "not measured yet (0 is used)"
    if found.unrelated is not None:
        unrelated = f"{found.unrelated:.4f}, measured on {found.unrelated_from:,} items"
    rows = [
        ["items", f"{found.items:,}"],
        *([f"  {names}", f"{count:,}"] for names, count in found.by_presence.items()),
        ["model", str(found.model)],
        ["centring", found.model.centring],
        ["parts stored", "yes" if found.partial else "no: queries with fewer modalities than items are slow"],
        ["cosine of unrelated items", unrelated],
        ["calibrated", "yes" if found.calibrated else "no"],
        ["images relative to", found.root or "-"],
        ["created", f"{found.created} by trireid {found.created_by}"],
    ]
    show_table(f"gallery {found.name!r} at {found.location}", ["", ""], rows)


@gallery_app.command()
def copy(
    gallery: Place,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A folder, or http://host:port of a Milvus server.")],
    name: Name = "gallery",
    target_name: Annotated[str | None, typer.Option(help="Name of the copy; default: as the gallery.")] = None,
    partial: Annotated[
        bool | None,
        typer.Option(
            "--partial/--whole",
            help="With or without the vectors that --partial of `gallery create` stores; default: as the gallery.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a gallery to a folder or a server, then read the copy and compare it."""
    with opened_gallery(gallery, name) as opened, progress("copying") as bar:
        digest = opened.copy(target, name=target_name or name, partial=partial, progress=bar.reach)
        count = len(opened)
    if as_json:
        say(json.dumps({"items": count, "sha256": digest}))
    else:
        say(f"copied {count:,} items to {target}, checked: SHA-256 {digest}")


@gallery_app.command()
def rebuild(
    gallery: Place,
    run: Annotated[Path, typer.Argument(help="The run, checkpoint or exported .onnx file of the other model.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="New gallery: a folder or http://host:port.")],
    name: Name = "gallery",
    target_name: Annotated[str | None, typer.Option(help="Name of the new gallery; default: as the gallery.")] = None,
    feature: ModelFeature = "joint",
    device: ModelDevice = "auto",
    centring: ModelCentre = None,
    as_json: AsJson = False,
) -> None:
    """Make a new gallery of the same items with another model, from the image files that the items name."""
    from trireid.embedding.opening import open_embedder
    from trireid.gallery.rebuilding import rebuild as embed_again

    with opened_gallery(gallery, name) as opened, progress("embedding again") as bar:
        if centring is None and opened.model.centring == BY_CAMERA:
            raise InputError(
                "the gallery is centred by camera, and one by another model cannot be: give --centring none"
            )
        embedder = open_embedder(run, device=device, feature=feature, centring=centring)
        count = embed_again(opened, target, embedder, name=target_name or name, progress=bar.reach)
    result = {"items": count, "fingerprint": embedder.model.fingerprint, "feature": embedder.model.feature}
    report(result, f"built {target} with {count:,} items", as_json=as_json)


@gallery_app.command()
def calibrate(
    gallery: Place,
    calibration: Annotated[Path, typer.Argument(help="calibration.json that `trireid calibrate` wrote.")],
    name: Name = "gallery",
    as_json: AsJson = False,
) -> None:
    """Store a calibration in a gallery, so that `gallery query --fmr` can use it."""
    from trireid.evaluation.calibration import Calibration

    found = Calibration.load(calibration)
    with opened_gallery(gallery, name) as opened:
        opened.set_calibration(found)
    pairs = [{"first": each.first, "second": each.second, "lowest_fmr": each.lowest} for each in found.rates]
    report({"pairs": pairs}, f"calibrated: {len(pairs)} pairs of presences", as_json=as_json)


@gallery_app.command("measure-unrelated")
def measure_unrelated(gallery: Place, name: Name = "gallery", as_json: AsJson = False) -> None:
    """Measure the cosine of unrelated items again; it changes distances between items of different modalities."""
    with opened_gallery(gallery, name) as opened:
        before, now = opened.info().unrelated, opened.measure_unrelated()
    line = f"cosine of unrelated items: {now:.4f} (before: {'not measured' if before is None else f'{before:.4f}'})"
    report({"unrelated": now, "before": before}, line, as_json=as_json)
