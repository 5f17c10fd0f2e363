"""`trireid export`: a trained model as a file for other programs, with its check."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trireid.cli.console import note, say, show_table

if TYPE_CHECKING:
    from trireid.export.parity import Parity


class Target(StrEnum):
    """What can be written."""

    onnx = "onnx"


class Check(StrEnum):
    """What else the file can be run in."""

    openvino = "openvino"


def export(
    run: Annotated[Path, typer.Argument(help="A run folder (its last checkpoint) or a .safetensors checkpoint.")],
    out: Annotated[Path, typer.Option(help="File to write, .onnx; the table of its check goes beside it.")],
    to: Annotated[Target, typer.Option(help="Form of the file: onnx.")] = Target.onnx,
    modalities: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Fix the file to these, e.g. rgb,tir or rt (any, told at run time)."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Opset of ONNX, 18 to 25 (18).")] = None,
    half: Annotated[bool, typer.Option("--half", help="The ViT in half precision.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Matrix products in 8-bit integers: 10 % may differ.")] = False,
    check: Annotated[list[Check] | None, typer.Option(help="Also run the file in: openvino.")] = None,
) -> None:
    """Write a trained model as an ONNX file, run the file on images, and keep it only if it gives the same features."""
    from trireid.cli.evaluate import parse_missing
    from trireid.export.onnx import export_onnx
    from trireid.export.parity import ParityError

    try:
        done = export_onnx(
            run,
            out,
            modalities=None if modalities is None else parse_missing(modalities, option="--modalities"),
            opset=opset,
            half=half,
            int8=int8,
            check=[each.value for each in check or []],
            progress=True,
        )
    except ParityError as error:
        show_parity(error.parity)
        raise
    show_parity(done.parity)
    about = done.description
    taken = "any of rgb, nir, tir" if about.has_present else ", ".join(about.modalities)
    size = f"{done.path.stat().st_size / 1e6:.1f} MB"
    say(f"written: {done.path} (opset {about.opset}, {about.precision}, {size}), for {taken}")
    say(f"checked: {done.parity_path}")
    say(f"use:     trireid.OnnxEmbedder({str(done.path)!r}).embed([{{'rgb': 'image.jpg'}}])")


def show_parity(parity: Parity) -> None:
    """Print the check as a table, a row for each runtime and presence, the worst of its batch sizes."""
    from trireid.export.runtimes import RUNTIMES

    groups = list(dict.fromkeys((row.runtime, row.presence) for row in parity.rows))
    names = list(parity.rows[0].errors)
    table = []
    for group in groups:
        rows = [row for row in parity.rows if (row.runtime, row.presence) == group]
        ties, other = sum(row.near_ties for row in rows), sum(row.other_patches for row in rows)
        kept = f"{other} items differ" if other else f"{ties} near ties" if ties else "same"
        errors = [f"{max(row.errors[name] for row in rows):.1e}" for name in names]
        table.append([f"{RUNTIMES[group[0]]}, {group[1]}", *errors, kept])
    batches = ", ".join(str(batch) for batch in dict.fromkeys(row.batch for row in parity.rows))
    title = f"relative error of each feature against the model, batches of {batches} (allowed: {parity.tolerance:g})"
    show_table(title, ["runtime, modalities", *names, "kept patches"], table)
    note(f"checked on {parity.images}")
