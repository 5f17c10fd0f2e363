"""Hold out training identities for model selection, so that the epoch is not chosen on the test set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trireid.data.consistency import unmatched_queries
from trireid.data.randomness import seeded_generator
from trireid.data.records import Record
from trireid.errors import DataError
from trireid.types import Exclusion

MIN_TRAINING_IDENTITIES = 2


def hold_out(
    train: tuple[Record, ...], num_identities: int, *, seed: int, exclude: Exclusion = "camera"
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Split the training records by identity into (training, validation).

    Only identities whose every triplet finds a match under the protocol can be held out. Which ones depends on their
    names and the seed, not on the order of the records.

    Args:
        train: training records.
        num_identities: how many identities to hold out; 0 holds out none.
        seed: seed of the choice of identities.
        exclude: exclusion rule that the validation will be ranked with.

    Raises:
        DataError: too few identities can be ranked, or too few are left to train on.
    """
    if num_identities == 0:
        return train, ()
    candidates = rankable_identities(train, exclude)
    num_all = len({record.identity for record in train})
    allowed = max(0, min(len(candidates), num_all - MIN_TRAINING_IDENTITIES))
    if num_identities > allowed:
        raise DataError(
            f"data.val_ids {num_identities}: at most {allowed} of the {num_all} training identities can be held out "
            f"(each needs a match with exclude={exclude}, and {MIN_TRAINING_IDENTITIES} must stay); choose fewer"
        )
    order = torch.randperm(len(candidates), generator=seeded_generator(seed, "hold_out")).tolist()
    chosen = {candidates[position] for position in order[:num_identities]}
    kept = tuple(record for record in train if record.identity not in chosen)
    return kept, tuple(record for record in train if record.identity in chosen)


def rankable_identities(records: Sequence[Record], exclude: Exclusion) -> list[str]:
    """The sorted identities of which every triplet, as a query, has a match among the others."""
    unmatched = {record.identity for record in unmatched_queries(records, records, exclude)}
    return sorted({record.identity for record in records} - unmatched)
