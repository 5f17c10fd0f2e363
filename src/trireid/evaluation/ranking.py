"""What is ranked: a query side and a gallery side with features, labels and records, and how they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from trireid.data.records import Record
from trireid.errors import InputError
from trireid.evaluation.features import FeatureSet
from trireid.evaluation.protocols import take
from trireid.names import LARGEST_POWER
from trireid.types import Labels, Protocol


@dataclass(frozen=True)
class Rerank:
    """Settings of k-reciprocal re-ranking, see `rerank.k_reciprocal`."""

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3


@dataclass(frozen=True)
class Side:
    """One side of a ranking: features, labels and records, row for row.

    Attributes:
        features: of n items.
        labels: `(n,)` each.
        records: n records; empty where only the numbers are known.
        num_left_out: items of the split that have no features, because withholding leaves them no modality.
    """

    features: FeatureSet
    labels: Labels
    records: tuple[Record, ...] = ()
    num_left_out: int = 0

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of_split(
        cls,
        features: FeatureSet,
        labels: Labels,
        records: Sequence[Record] = (),
        *,
        name: str,
        withheld: Sequence[str] = (),
    ) -> Self:
        """The items of a split that have features.

        Args:
            features: their `item` is the position in the split.
            labels: of the whole split.
            records: of the whole split, or none.
            name: "query" or "gallery", for messages.
            withheld: modalities that were withheld; only then may the features lack items.

        Raises:
            InputError: there is not one feature for each (other) label, in order.
        """
        known = torch.arange(len(labels))
        if not torch.equal(features.item, known[torch.isin(known, features.item)] if withheld else known):
            raise InputError(
                f"the {name} loader gave {len(features)} items for {len(labels)} labels; it must give each record "
                f"exactly once, numbered from 0"
            )
        kept = tuple(records[item] for item in features.item.tolist()) if records else ()
        return cls(features, take(labels, features.item), kept, num_left_out=len(labels) - len(features))


@dataclass(frozen=True)
class Ranking:
    """All that a ranking needs.

    Attributes:
        query: the items to search for.
        gallery: the items to search in; the same object as `query` where one set is both.
        protocol: which gallery items a query must not see.
        normalise: L2-normalise the features before the Euclidean distance.
        rerank: settings of k-reciprocal re-ranking; None: not re-ranked.
        adaptive_fusion: power of the weights by which each query weighs its spectra (`fusion.fusion_weights`); 0: whole
            features are compared. Not together with `rerank`, or without `normalise`.

    Raises:
        InputError: on creation, if `adaptive_fusion` is not a power or another setting excludes it.
    """

    query: Side
    gallery: Side
    protocol: Protocol
    normalise: bool = True
    rerank: Rerank | None = None
    adaptive_fusion: float = 0.0

    def __post_init__(self) -> None:
        power = self.adaptive_fusion
        if not 0.0 <= power <= LARGEST_POWER:
            raise InputError(f"adaptive_fusion is {power:g}; allowed are 0 (off) to {LARGEST_POWER:g}")
        if power and (self.rerank is not None or not self.normalise):
            other = "re-ranking" if self.rerank is not None else "normalise=False"
            raise InputError(
                f"adaptive_fusion={power:g} weighs the cosines of the spectra, and {other} ranks by other distances: "
                "use one of them"
            )

    @property
    def query_is_gallery(self) -> bool:
        """True where one set is query and gallery at once."""
        return self.query is self.gallery

    @property
    def sides(self) -> dict[str, Side]:
        """The sides by name, "query" and "gallery"; only "query" where one set is both."""
        return {"query": self.query} | ({} if self.query_is_gallery else {"gallery": self.gallery})
