"""Error rates of a model from the embeddings of labelled items, for every pair of presences. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import combinations_with_replacement
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from trireid.embedding.embeddings import Embeddings, check_same_model
from trireid.errors import InputError, printable
from trireid.evaluation.calibration import Calibration, PairRates, lowest_rate, needed_identities, presence_letters
from trireid.evaluation.identity_bootstrap import Counts, identity_weights
from trireid.evaluation.pair_counts import Part
from trireid.evaluation.pair_rates import pair_rates
from trireid.names import Exclusion

MOST_GROUPS = 512
"""Of more identities, groups are sampled, so that the table of all pairs of groups stays small."""
LEAST_REPLICATES = 100
_ALL_LETTERS = ("r", "n", "t", "rn", "rt", "nt", "rnt")


def calibrate(
    embeddings: Embeddings,
    *withheld: Embeddings,
    exclude: Exclusion = "camera",
    target_fmr: float | None = None,
    confidence: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Find the error rates at every threshold, for every pair of presences that occurs.

    All pairs of different items count, but for what `exclude` hides. The default hides what a camera sees twice of one
    object, which is easier to match than what two cameras see, and keeps the other objects of the same camera, which
    are harder to tell apart than those of another camera.

    Args:
        embeddings: labelled items that the model was not trained on.
        withheld: the same items embedded from fewer modalities; items of one key are never a pair.
        exclude: `camera` and `scene` leave out the pairs of one identity in one camera or scene, `cross_camera` all
            pairs in one camera, `none` nothing.
        target_fmr: a false match rate that at least one pair of presences must support.
        confidence: of the intervals.
        replicates, seed: samples of the identities.
        progress: called with the number of pairs of presences that are done, and of all.

    Raises:
        InputError: an item without an identity, embeddings of several models, or too few identities.

    Example:
        >>> from trireid import Item, ModelIdentity
        >>> model = ModelIdentity("0" * 64, feature="global", blocks=((0,), (1,), (2,)), width=96)
        >>> random = np.random.default_rng(0)
        >>> vectors = random.normal(size=(40, 96)).repeat(2, axis=0).astype(np.float32)  # two items of each object
        >>> items = [Item({}, key=str(number), identity=str(number // 2)) for number in range(80)]
        >>> calibration = calibrate(Embeddings(vectors, np.ones((80, 3), dtype=bool), tuple(items), model))
        >>> round(calibration.threshold(("rgb", "nir", "tir"), ("rgb", "nir", "tir"), fmr=0.05), 1)
        0.2
    """
    check_settings(exclude, target_fmr, confidence, replicates)
    table = _table((embeddings, *withheld), exclude)
    pairs = _shared_pairs(table, embeddings.model.blocks)
    weights = identity_weights(table.num_groups, replicates=replicates, seed=seed)
    unplaced = _unplaced(table, exclude)
    rates, notes = _all_rates(table, pairs, exclude, weights, confidence, target_fmr, progress)
    model, num_identities = embeddings.model, len(np.unique(table.identity))
    about = (exclude, confidence, replicates, seed, len(embeddings), num_identities)
    calibration = Calibration(model.fingerprint, model.feature, rates, *about, description=model.description)
    return replace(calibration, version=version("trireid"), notes=(*unplaced, *notes, *_unsupported(rates, target_fmr)))


def check_identities(num_identities: int, target_fmr: float) -> None:
    """Refuse a target that so many identities cannot support, before anything is embedded.

    Raises:
        InputError: the pairs of identities are too few.
    """
    lowest = lowest_rate(num_identities * (num_identities - 1) // 2)
    if lowest > target_fmr:
        reach = f"the lowest that they support is {lowest:.3g}" if lowest <= 1.0 else "they support no rate"
        raise InputError(
            f"a false match rate of {target_fmr:g} cannot be calibrated with {num_identities} identities: "
            f"{needed_identities(target_fmr)}; {reach}"
        )


@dataclass(frozen=True)
class _Table:
    """All items of a calibration, numbered, row for row."""

    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    letters: NDArray[np.str_]
    identity: NDArray[np.int64]
    item: NDArray[np.int64]
    hidden: NDArray[np.int64]
    group: NDArray[np.int64]
    num_groups: int


def check_settings(exclude: str, target_fmr: float | None, confidence: float, replicates: int) -> None:
    """Refuse settings of `calibrate` that have no meaning, before anything is embedded.

    Raises:
        InputError: one of them is out of its range.
    """
    if exclude not in get_args(Exclusion):
        raise InputError(f"exclude is {printable(exclude)!r}; allowed are {', '.join(get_args(Exclusion))}")
    if target_fmr is not None and not 0.0 < target_fmr <= 1.0:
        raise InputError(f"the target is a false match rate of {target_fmr:g}; it must lie above 0 and up to 1")
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is {confidence:g}; it must lie between 0 and 1")
    if replicates < LEAST_REPLICATES:
        raise InputError(f"replicates is {replicates}; an interval needs at least {LEAST_REPLICATES}")


def _table(parts: Sequence[Embeddings], exclude: Exclusion) -> _Table:
    """The items of all parts, checked."""
    for part in parts[1:]:
        check_same_model(part.model, parts[0].model)
    items = [item for part in parts for item in part.items]
    if not items:
        raise InputError("there are no items to calibrate with; give embeddings of labelled items")
    unlabelled = [item.key for item in items if item.identity is None]
    if unlabelled:
        raise InputError(
            f"{len(unlabelled)} of {len(items)} items have no identity ({printable(str(unlabelled[0]))} is the first); "
            "a calibration needs labelled items: leave the others out, or give them an identity"
        )
    vectors, present = np.concatenate([part.vectors for part in parts]), np.concatenate([p.present for p in parts])
    identity = _numbers([item.identity for item in items])
    # In an order that does not depend on the names, so that a group is as good as any other.
    order = np.random.default_rng(0).permutation(int(identity.max()) + 1)
    num_groups = min(len(order), MOST_GROUPS)
    places = [item.scene if exclude == "scene" else item.camera for item in items]
    return _Table(
        vectors=vectors,
        present=present,
        letters=np.array([presence_letters(row) for row in present]),
        identity=identity,
        item=_numbers([item.key for item in items]),
        hidden=_numbers([None] * len(items) if exclude == "none" else places),
        group=(order % num_groups)[identity],
        num_groups=num_groups,
    )


def _unplaced(table: _Table, exclude: Exclusion) -> list[str]:
    """A note where the rule cannot hide pairs, since items have no camera or scene."""
    missing, total = int((table.hidden < 0).sum()), len(table.hidden)
    if exclude == "none" or not missing:
        return []
    place = "scene" if exclude == "scene" else "camera"
    if missing == total:
        return [f"no item has a {place}: exclude {exclude!r} leaves out nothing, all pairs of different items count"]
    return [f"{missing} of {total} items have no {place}: exclude {exclude!r} leaves out none of their pairs"]


def _numbers(names: Sequence[str | None]) -> NDArray[np.int64]:
    """A number for each name, in the order of the names; -1 for None."""
    codes = {name: number for number, name in enumerate(sorted({name for name in names if name is not None}))}
    return np.array([-1 if name is None else codes[name] for name in names], dtype=np.int64)


def _shared_pairs(table: _Table, blocks: Sequence[Sequence[int]]) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """The pairs of presences that share a block, and which blocks `(K,)` these are."""
    found = [letters for letters in _ALL_LETTERS if (table.letters == letters).any()]
    filled = {
        letters: np.array([any("rnt"[index] in letters for index in block) for block in blocks]) for letters in found
    }
    pairs = [(one, other, filled[one] & filled[other]) for one, other in combinations_with_replacement(found, 2)]
    return [(one, other, shared) for one, other, shared in pairs if shared.any()]


def _all_rates(
    table: _Table,
    pairs: Sequence[tuple[str, str, NDArray[np.bool_]]],
    exclude: Exclusion,
    weights: Counts,
    confidence: float,
    target: float | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[PairRates, ...], list[str]]:
    """The rates of all pairs of presences, and a line on each that cannot be calibrated.

    Raises:
        InputError: none can.
    """
    rates: list[PairRates] = []
    skipped: list[str] = []
    for done, (first, second, shared) in enumerate(pairs, start=1):
        found = pair_rates(
            *_parts(table, first, second, shared),
            names=(first, second),
            exclude=exclude,
            weights=weights,
            confidence=confidence,
            target=target,
        )
        if isinstance(found, PairRates):
            rates.append(found)
        else:
            skipped.append(f"{first} against {second} is not calibrated: {found}")
        if progress is not None:
            progress(done, len(pairs))
    if not rates:
        raise InputError(f"nothing can be calibrated: {skipped[0]}")
    return tuple(rates), skipped


def _parts(table: _Table, first: str, second: str, shared: NDArray[np.bool_]) -> tuple[Part, Part]:
    """The items with each of two presences; the same object twice where they are equal."""
    one = _part(table, first, shared)
    return one, one if first == second else _part(table, second, shared)


def _part(table: _Table, letters: str, shared: NDArray[np.bool_]) -> Part:
    rows = np.flatnonzero(table.letters == letters)
    rows = rows[np.lexsort((table.identity[rows], table.group[rows]))]
    vectors = table.vectors[rows].astype(np.float64)
    vectors = vectors.reshape(len(rows), len(shared), -1)[:, shared].reshape(len(rows), -1)  # (n, D of shared blocks)
    length = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    unit = (vectors / length).astype(np.float32)
    return Part(unit, table.identity[rows], table.item[rows], table.hidden[rows], table.group[rows])


def _unsupported(rates: Sequence[PairRates], target: float | None) -> list[str]:
    """A note for each pair of presences that has too few identities for the target.

    Raises:
        InputError: none has enough.
    """
    if target is None:
        return []
    if all(each.lowest > target for each in rates):
        check_identities(max(each.num_identities for each in rates), target)
        raise InputError(
            f"a false match rate of {target:g} cannot be calibrated: the exclusion leaves too few pairs of identities, "
            f"the lowest rate that they support is {min(each.lowest for each in rates):.3g}; add items or exclude less"
        )
    return [
        f"{each.first} against {each.second} has {each.num_identities} identities, which support false match rates "
        f"from {each.lowest:.3g} on: no threshold for {target:g}"
        for each in rates
        if each.lowest > target
    ]
