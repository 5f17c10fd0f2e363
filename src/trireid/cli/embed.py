"""`trireid embed`: the features of images of one's own, written to a file."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trireid.cli.console import is_main_process, note, progress, say, show_table
from trireid.cli.embed_settings import BY_CAMERA, CENTRED, centre_by_camera, given_facts, given_ranges
from trireid.cli.options import check_centring
from trireid.errors import InputError

if TYPE_CHECKING:
    from trireid.embedding.item_table import ItemList
    from trireid.embedding.items import Item
    from trireid.embedding.streaming import StreamingEmbedder

embed_app = typer.Typer()

Run = Annotated[
    Path, typer.Argument(help="A run folder (its last checkpoint), a checkpoint, or an exported .onnx file.")
]
Inputs = Annotated[
    list[Path] | None,
    typer.Argument(metavar="INPUT...", help="CSV files, or folders with sub-folders rgb, nir and tir."),
]
Out = Annotated[Path, typer.Option(help="Name without ending: writes OUT.safetensors and OUT.csv.")]
Image = Annotated[Path | None, typer.Option(help="Instead of INPUT: this image of a single item.")]
Key = Annotated[str | None, typer.Option(help="Key of the single item; default: the name of its first file.")]
Identity = Annotated[str | None, typer.Option(help="Identity of the single item.")]
Camera = Annotated[str | None, typer.Option(help="Camera of the single item.")]
Scene = Annotated[str | None, typer.Option(help="Scene of the single item.")]
Time = Annotated[str | None, typer.Option("--time", help="Time of the single item: seconds since 1970, or ISO 8601.")]
PrefixKeys = Annotated[
    bool, typer.Option("--prefix-keys", help="Prefix each key with the name of its INPUT, e.g. cam1/17 and cam2/17.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="data.range.tir=[LOW,HIGH] for images with more bits than those of the training; with --split also "
        "data.root, data.format, data.skip_bad and data.workers; repeat as needed.",
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Instead of INPUT: a split of the run's data set: train, query, gallery or test.")
]
Feature = Annotated[str, typer.Option(help="Feature to write: global, head or joint.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Items per batch; default: the run's evaluate.batch_size.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or fp8; default: as the run.")]
Centre = Annotated[
    str | None,
    typer.Option(
        "--centring",
        help="Subtract the mean feature: train, of the training images; camera, of each camera of these items; none. "
        "Default: as the run.",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="List items that cannot be read and leave them out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted call where it stopped.")]
AggregateBy = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Write one vector for all items that agree in this column; several: identity,camera."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@embed_app.command("embed")
def embed(
    run: Run,
    out: Out,
    source: Inputs = None,
    rgb: Image = None,
    nir: Image = None,
    tir: Image = None,
    key: Key = None,
    identity: Identity = None,
    camera: Camera = None,
    scene: Scene = None,
    time_: Time = None,
    prefix_keys: PrefixKeys = False,
    split: Split = None,
    set_: SetOption = None,
    feature: Feature = "joint",
    device: Device = "auto",
    batch_size: BatchSize = None,
    precision: Precision = None,
    centring: Centre = None,
    skip_bad: SkipBad = False,
    resume: Resume = False,
    aggregate_by: AggregateBy = None,
    as_json: AsJson = False,
) -> None:
    """Write the features of images, as `trireid test` computes them, for a gallery or for other programs."""
    from trireid.embedding.opening import open_embedder
    from trireid.embedding.sharded import embed_to_files
    from trireid.embedding.streaming import report

    check_centring(centring)
    single = {name: path for name, path in (("rgb", rgb), ("nir", nir), ("tir", tir)) if path is not None}
    if sum(map(bool, (source, single, split))) != 1:
        raise InputError("give one of: INPUT (CSV files or folders), --rgb/--nir/--tir, or --split")
    about = {"key": key, "identity": identity, "camera": camera, "scene": scene, "time": time_}
    facts = given_facts(about, single)
    ranges = given_ranges(run, set_ or [], split)
    given = read_items(run, source or [], single, split, overrides=set_ or [], prefix_keys=prefix_keys)
    if facts:
        given = replace(given, items=tuple(replace(item, **facts) for item in given.items))
    for line in given.notes:
        note(line)
    place, share = _place(run, device)
    how: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "ranges": ranges}
    embedder = open_embedder(run, device=place, feature=feature, centring=_of_model(run, centring), **how)
    if precision == "fp8":
        calibrate(embedder, given.items)
    started = time.monotonic()
    with progress("embedding") as bar:
        bar.reach(0, -(-len(given.items) // share[1]))
        parts: dict[str, Any] = {"share": share, "aggregate_by": aggregate_by, "resume": resume, "skip_bad": skip_bad}
        counts = embed_to_files(embedder, given.items, out, **parts, advance=bar.advance)
    if counts is not None:
        if split is not None:
            counts.known.clear()  # these are the cameras of the training
        _finish_centring(out, embedder, by_camera=centring == BY_CAMERA)
        report(counts)
        _show(_result(out, embedder, counts, seconds=time.monotonic() - started), as_json=as_json)


def _of_model(run: Path, centring: str | None) -> str | None:
    """What the model subtracts: nothing where the embeddings are centred by camera in the end."""
    from trireid.embedding.opening import is_exported

    if centring != BY_CAMERA:
        return centring
    return None if is_exported(run) else "none"


def _finish_centring(out: Path, embedder: StreamingEmbedder, *, by_camera: bool) -> None:
    """Centre by camera what was written, and report how the vectors are centred."""
    if by_camera:
        centre_by_camera(out)
    elif embedder.model.centring == "train":
        note(CENTRED)


def calibrate(embedder: StreamingEmbedder, items: Sequence[Item]) -> None:
    """Let the first batch of all items choose the scales: the same in every process, and after `--resume`."""
    from trireid.embedding.embedder import Embedder

    assert isinstance(embedder, Embedder)  # exported files refuse a precision
    embedder.calibrate(items[: embedder.batch_size])


def read_items(
    run: Path,
    sources: list[Path],
    single: dict[str, Path],
    split: str | None,
    *,
    overrides: Sequence[str] = (),
    prefix_keys: bool = False,
) -> ItemList:
    """The items of files, folders, single images or a split of the run's data set.

    Args:
        run: a run folder, a checkpoint or an exported file.
        sources: CSV files and folders.
        single: one item, its images by modality.
        split: of the run's data set.
        overrides: settings of the data set of a split.
        prefix_keys: put the names of the sources before their keys.
    """
    from trireid.embedding.item_inputs import read_inputs
    from trireid.embedding.item_table import ItemList
    from trireid.embedding.items import Item
    from trireid.embedding.opening import refuse_exported

    if single:
        return ItemList(
            (Item({name: str(path) for name, path in single.items()}, key=next(iter(single.values())).stem),)
        )
    if split is not None:
        refuse_exported(run, "--split", "give images in CSV files or folders, or the run")
        from trireid.embedding.splits import split_items

        return split_items(run, split, overrides)
    return read_inputs(sources, prefix_keys=prefix_keys)


def _place(run: Path, device: str) -> tuple[Any, tuple[int, int]]:
    """The device of this process, and its (number, number of all processes)."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return device, (0, 1)
    from trireid.embedding.opening import refuse_exported

    refuse_exported(run, "embedding by several processes", "start the command by itself, or give the run")
    from trireid.train.device import make_accelerator, resolve_device

    accelerator = make_accelerator(device=resolve_device(device), precision="fp32")
    return accelerator.device, (accelerator.process_index, accelerator.num_processes)


def _result(out: Path, embedder: StreamingEmbedder, counts: Any, *, seconds: float) -> dict[str, Any]:
    from trireid.embedding.embedding_files import file_pair
    from trireid.embedding.embeddings import Embeddings
    from trireid.names import MODALITIES

    made = Embeddings.load(out)
    vectors, table = file_pair(out)
    patterns = Counter(map(tuple, made.present.tolist()))
    presence = {
        "+".join(name for name, has in zip(MODALITIES, pattern, strict=True) if has): number
        for pattern, number in patterns.most_common()
    }
    return {
        "items": len(made),
        "left_out": len(counts.bad),
        "presence": presence,
        "feature": made.model.feature,
        "width": made.model.width,
        "fingerprint": made.model.fingerprint,
        "device": str(embedder.device),
        "precision": embedder.precision,
        "seconds": round(seconds, 3),
        "images_per_second": round(int(made.present.sum()) / seconds, 1),
        "model_share": round(counts.model / counts.seconds, 3) if counts.seconds else None,
        "decoding_cores": round(counts.decoding / counts.seconds, 2) if counts.seconds else None,
        "vectors": str(vectors),
        "table": str(table),
    }


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(result))
        return
    presence = ", ".join(f"{number} {name}" for name, number in result["presence"].items())
    rows = [
        ["items", str(result["items"])],
        ["left out", str(result["left_out"])],
        ["modalities", presence],
        ["vectors", f"{result['feature']}, {result['width']} numbers each"],
        ["images per second", f"{result['images_per_second']:g}"],
    ]
    if result["model_share"] is not None:
        rows.append(["time of the model", f"{result['model_share']:.0%} of the time"])
        rows.append(["decoding", f"{result['decoding_cores']:g} cores on average"])
    show_table("embedded", ["", result["device"]], rows)
    if is_main_process():
        say(f"written: {result['vectors']} and {result['table']}")
