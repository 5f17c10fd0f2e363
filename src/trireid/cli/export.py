"""`trireid export`: a trained model as a file for other programs, with its check."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trireid.cli.console import note, say, show_table
from trireid.errors import InputError

if TYPE_CHECKING:
    from trireid.export.parity import Parity


class Target(StrEnum):
    """What can be written."""

    onnx = "onnx"
    torch = "torch"


class Check(StrEnum):
    """What else the file can be run in."""

    openvino = "openvino"


def export(
    run: Annotated[Path, typer.Argument(help="A run folder (its last checkpoint) or a .safetensors checkpoint.")],
    out: Annotated[
        Path, typer.Option(help="The .onnx or .pt2 file to write; the table of its check is written beside it.")
    ],
    to: Annotated[Target, typer.Option(help="Format: onnx (.onnx), or torch (.pt2, by torch.export).")] = Target.onnx,
    modalities: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Fix the inputs to these, e.g. rgb,tir or rt; default: chosen at run time."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset, 18 to 25; default 18.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store and compute the ViT in half precision.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Matrix products in 8-bit integers; features may differ by 10 %.")
    ] = False,
    check: Annotated[list[Check] | None, typer.Option(help="Check the file in this runtime, too.")] = None,
) -> None:
    """Export a trained model to ONNX or torch.export, run it on images, and keep it only if the features agree."""
    from trireid.cli.evaluate import parse_missing
    from trireid.export.parity import ParityError

    chosen = None if modalities is None else parse_missing(modalities, option="--modalities")
    given: dict[str, Any] = {"modalities": chosen, "half": half, "progress": True}
    try:
        if to is Target.torch:
            from trireid.export.program import export_torch

            _refuse_for_torch({"--opset": opset, "--int8": int8, "--check": check})
            done = export_torch(run, out, **given)
        else:
            from trireid.export.onnx import export_onnx

            done = export_onnx(run, out, opset=opset, int8=int8, check=[each.value for each in check or []], **given)
    except ParityError as error:
        show_parity(error.parity)
        raise
    show_parity(done.parity)
    about = done.description
    taken = "any of rgb, nir, tir" if about.has_present else ", ".join(about.modalities)
    size = f"{done.path.stat().st_size / 1e6:.1f} MB"
    form = "torch.export" if about.opset is None else f"opset {about.opset}"
    say(f"written: {done.path} ({form}, {about.precision}, {size}), for {taken}")
    say(f"checked: {done.parity_path}")
    if about.opset is None:
        say(f"use:     torch.export.load({str(done.path)!r}).module()")
        return
    say(f"use:     trireid.OnnxEmbedder({str(done.path)!r}).embed([{{'rgb': 'image.jpg'}}])")


def _refuse_for_torch(options: dict[str, object]) -> None:
    """Refuse options that a program of torch cannot have.

    Raises:
        InputError: one of them is given.
    """
    for name, value in options.items():
        if value:
            raise InputError(f"{name} is for --to onnx: leave it out with --to torch")


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
