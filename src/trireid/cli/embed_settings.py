"""What options of `trireid embed` say about its single item, and the settings that it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trireid.cli.console import note
from trireid.errors import InputError, printable

SPLIT_SETTINGS = ("data.root", "data.format", "data.skip_bad", "data.workers")
"""Settings of the data set of a split."""


BY_CAMERA = "camera"
"""The centring of finished embeddings by the mean of each of their cameras."""
CENTRED = (
    "centred: the mean feature of the training images is subtracted, so these vectors are compared with others that "
    "are centred alike"
)


def centre_by_camera(path: Path) -> None:
    """Subtract from embeddings that were just written the mean of each of their cameras, and report it."""
    from trireid.embedding.embedding_files import write_embeddings
    from trireid.embedding.embeddings import Embeddings

    made = Embeddings.load(path)
    centred = made.centred_by_camera()
    about: dict[str, Any] = {"present": centred.present, "items": centred.items, "model": centred.model}
    write_embeddings(path, [centred.vectors], **about, announced=False)
    sizes = Counter(item.camera for item in made.items)
    alone = sum(size == 1 for size in sizes.values())
    more = f"; with a single item, whose vector becomes 0: {alone}" if alone else ""
    note(
        f"centred by camera: the mean vector of each of {len(sizes)} cameras of these items is subtracted, so they can "
        f"be compared with each other alone (transductive){more}"
    )


def given_facts(facts: Mapping[str, str | None], single: Mapping[str, Path]) -> dict[str, Any]:
    """What options say about the single item, as fields of `Item`.

    Raises:
        InputError: there are options without a single item, or a value is none.
    """
    from trireid.embedding.items import seconds_of

    given: dict[str, Any] = {name: value for name, value in facts.items() if value is not None}
    if given and not single:
        names = ", ".join(f"--{name}" for name in given)
        raise InputError(
            f"{names} are for the single item of --rgb, --nir and --tir: others have their own, in a CSV file"
        )
    if "time" in given:
        given["time"] = seconds_of(given["time"])
    return given


def given_ranges(run: Path, overrides: Sequence[str], split: str | None) -> dict[str, Any]:
    """The ranges that settings give.

    Raises:
        InputError: a setting is of the trained model, or of a data set without `--split`.
        ConfigError: a setting does not exist or has no such value.
    """
    if not overrides:
        return {}
    from trireid.embedding.opening import refuse_exported

    refuse_exported(run, "--set", "its settings are those of the run")
    from trireid.config.load import override_config
    from trireid.embedding.own_ranges import ranges_in
    from trireid.names import MODALITIES
    from trireid.train.checkpoint import config_here, load_checkpoint

    config = override_config(config_here(load_checkpoint(run)), overrides)
    allowed = {f"data.range.{name}" for name in MODALITIES} | ({*SPLIT_SETTINGS} if split is not None else set())
    for override in overrides:
        name = override.partition("=")[0].strip()
        if name not in allowed:
            more = "" if split is not None else f"; with --split also {', '.join(SPLIT_SETTINGS)}"
            raise InputError(
                f"--set {printable(name, limit=60)} changes nothing here: {', '.join(sorted(allowed))} do{more}"
            )
    return ranges_in(overrides, config)
