"""`trireid centre`: a copy of a checkpoint whose features are centred wherever they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trireid.cli.console import say
from trireid.errors import InputError, printable

SUFFIX = ".safetensors"


def centre(
    run: Annotated[Path, typer.Argument(help="A run folder (its last checkpoint) or a .safetensors checkpoint.")],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Where the training images are: data.root=PATH."),
    ] = None,
) -> None:
    """Copy a checkpoint so that its features are centred by their mean over the training images."""
    from trireid.config.load import override_config
    from trireid.files import check_writable
    from trireid.train.centring import centre_checkpoint
    from trireid.train.checkpoint import config_here, load_checkpoint

    if out.suffix != SUFFIX:
        raise InputError(f"--out is {printable(str(out))}: its name must end in {SUFFIX}")
    check_writable(out)
    centre_checkpoint(run, out, config=override_config(config_here(load_checkpoint(run)), set_ or []))
    say(f"written: {out}")
    say("use it in place of the run: trireid test, embed, gallery, calibrate, export and serve then centre features")
