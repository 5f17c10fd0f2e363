"""Labelled items that a model was not trained on, and their embeddings by every subset of the modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trireid.config.schema import Config
from trireid.data.records import Record
from trireid.data.splits import hold_out
from trireid.embedding.embeddings import Embeddings
from trireid.embedding.interface import ItemEmbedder
from trireid.embedding.item_table import read_item_table
from trireid.embedding.items import Item
from trireid.embedding.splits import record_item
from trireid.errors import ConfigError, DataError, printable
from trireid.evaluation.missing import subset_cases
from trireid.names import Exclusion
from trireid.train.checkpoint import Checkpoint
from trireid.train.inputs import scan_index


@dataclass(frozen=True)
class UnseenItems:
    """Labelled items that a model was not trained on.

    Attributes:
        items: each key once.
        about: what they are of.
        exclude: the rule of their data set's protocol.
        notes: what a reader of rates on them must know, one line each.
    """

    items: tuple[Item, ...]
    about: str
    exclude: Exclusion
    notes: tuple[str, ...]


def items_of_table(path: Path) -> UnseenItems:
    """The items of a CSV file, as `trireid embed` reads it.

    Raises:
        DataError: the file or a row cannot be read.
    """
    table = read_item_table(path)
    return UnseenItems(table.items, str(path), "camera", table.notes)


def items_of_run(checkpoint: Checkpoint, config: Config, *, progress: bool = False) -> UnseenItems:
    """The identities that a run held out (`data.val_ids`), or, where it held out none, its test split.

    Args:
        checkpoint: of the run; which identities were held out is in its settings.
        config: where the data are.
        progress: show a bar.

    Raises:
        DataError: something is wrong with the data set.
        ConfigError: the settings hold out other identities than the run.
    """
    trained = checkpoint.config
    if (config.data.val_ids, config.train.seed) != (trained.data.val_ids, trained.train.seed):
        raise ConfigError(
            "data.val_ids and train.seed say which identities the run was not trained on "
            f"({trained.data.val_ids} and {trained.train.seed}); leave them as they are"
        )
    index = scan_index(config, progress=progress)
    exclude = index.protocol.exclude
    notes = [f"{len(index.faults)} faulty items are left out"] if index.faults else []
    _, records = hold_out(index.train, trained.data.val_ids, seed=trained.train.seed, exclude=exclude)
    if not records:
        records = (*index.query, *index.gallery)
        notes.append(
            "the run held out no identities (data.val_ids), so that its test split is used: error rates and metrics of "
            "the same split at these thresholds are biased; calibrate on other labelled items with --data"
        )
    name = "held-out identities" if trained.data.val_ids else "test split"
    items = tuple(record_item(record) for record in _once(records))
    return UnseenItems(items, f"{config.data.root} ({name})", exclude, tuple(notes))


def _once(records: Sequence[Record]) -> tuple[Record, ...]:
    """Each record once: queries may be in the gallery, too."""
    found: dict[str, Record] = {}
    for record in records:
        if found.setdefault(record.name, record).images != record.images:
            raise DataError(f"two different items have the name {printable(record.name)}; give each a name of its own")
    return tuple(found.values())


def embed_presences(
    embedder: ItemEmbedder, items: Sequence[Item], *, all_presences: bool, progress: bool = False
) -> list[Embeddings]:
    """Embed items as they are, or by every subset of the modalities, the others withheld.

    Returns:
        One for each subset that some item has; without `all_presences` a single one.

    Raises:
        TrireidError: as `Embedder.embed`.
    """
    if not all_presences:
        return [embedder.embed(items, progress=progress)]
    parts = []
    for withheld in subset_cases(embedder.modalities).values():
        kept = [name for name in embedder.modalities if name not in withheld]
        # An item that lacks one of these modalities is in the case of a smaller subset.
        shown = [
            replace(item, images={name: item.images[name] for name in kept})
            for item in items
            if all(name in item.images for name in kept)
        ]
        if shown:
            parts.append(embedder.embed(shown, progress=progress))
    return parts
