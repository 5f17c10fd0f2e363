"""`trireid centre`: a copy of a checkpoint whose features are centred wherever they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from trireid.cli.console import note, say
from trireid.errors import InputError, printable

SUFFIX = ".safetensors"
SETTINGS = ("data.root", "data.format", "data.skip_bad", "data.workers", "data.cache", "train.device")
"""What may be set: where the training images are, and how they are read."""


def centre(
    run: Annotated[Path, typer.Argument(help="A run folder (its last checkpoint) or a .safetensors checkpoint.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Where the training images are, data.root=PATH; needed if the checkpoint stores no mean.",
        ),
    ] = None,
) -> None:
    """Write a copy of a checkpoint whose features have the mean training feature subtracted."""
    from trireid.config.load import override_config
    from trireid.files import check_writable
    from trireid.train.centring import centre_checkpoint
    from trireid.train.checkpoint import config_here, load_checkpoint

    if out.suffix != SUFFIX:
        raise InputError(f"--out is {printable(str(out))}: its name must end in {SUFFIX}")
    check_writable(out)
    _check_settings(set_ or [])
    checkpoint = load_checkpoint(run)
    config = override_config(config_here(checkpoint), set_ or [])
    if set_ and checkpoint.centre:
        note(f"the mean of the training features is in {run}, and no images are read: --set changes nothing")
    centre_checkpoint(run, out, config=config)
    say(f"written: {out}")
    say("use it in place of the run: trireid test, embed, gallery, calibrate, export and serve then centre features")


def _check_settings(overrides: Sequence[str]) -> None:
    """Refuse settings that are of the trained model, or change nothing here."""
    for override in overrides:
        name, equals, _ = override.partition("=")
        if equals and name.strip() not in SETTINGS:
            raise InputError(f"--set {printable(name, limit=60)} changes nothing here: {', '.join(SETTINGS)} do")
