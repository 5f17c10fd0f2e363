"""Losses of the (logits, feature) pairs of a model: cross-entropy and batch-hard triplet. torch only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trireid.errors import InputError
from trireid.types import MODALITIES, ReIDOutput

_LEFT_OUT = -100


def id_loss(logits: Tensor, label: Tensor, *, label_smoothing: float = 0.1, valid: Tensor | None = None) -> Tensor:
    """Cross-entropy of the identity classifier, in float32 at least.

    Args:
        logits: `(B, C)`.
        label: `(B,)` int64 in `[0, C)`.
        label_smoothing: share of the target spread evenly over all classes, in `[0, 1)`.
        valid: `(B,)` bool, items that count. None: all.

    Returns:
        Scalar mean over the items that count, 0 where none does.
    """
    logits = _full_precision(logits)
    if valid is None:
        return functional.cross_entropy(logits, label, label_smoothing=label_smoothing)
    target = label.masked_fill(~valid, _LEFT_OUT)
    total = functional.cross_entropy(
        logits, target, label_smoothing=label_smoothing, ignore_index=_LEFT_OUT, reduction="sum"
    )
    return total / valid.sum().clamp(min=1)


def hardest_pairs(feature: Tensor, label: Tensor, *, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Farthest positive and nearest negative of every item of a batch, found without a gradient.

    An item is among its own positives, at distance 0: an identity with one image pairs with itself.

    Args:
        feature: `(B, F)`, un-normalised.
        label: `(B,)` int64.
        valid: `(B,)` bool, items that have this feature; the others are no item's positive or negative. None: all.

    Returns:
        positive: `(B,)` int64 index of the farthest item of the same identity.
        negative: `(B,)` int64 index of the nearest item of another identity (any index where there is none).
        has_negative: `(B,)` bool, false where the item is not valid or the batch holds no other identity.
    """
    with torch.no_grad():
        distance = _squared_distance(feature)  # (B, B)
        same = label[:, None] == label[None, :]  # (B, B)
        other = ~same
        if valid is not None:
            other = other & valid & valid[:, None]
            same = (same & valid) | torch.eye(len(label), dtype=torch.bool, device=label.device)
        positive = distance.masked_fill(~same, -torch.inf).argmax(dim=1)  # (B,)
        negative = distance.masked_fill(~other, torch.inf).argmin(dim=1)  # (B,)
        return positive, negative, other.any(dim=1)


def batch_hard_triplet(
    feature: Tensor, label: Tensor, *, margin: float | None = None, valid: Tensor | None = None
) -> Tensor:
    """Batch-hard triplet loss on Euclidean distances of un-normalised features.

    The hardest pairs are mined on the `(B, B)` distances without a gradient; the `2B` distances that enter
    the loss are then computed from the differences themselves, so that they are exact also for nearly equal
    features, and the gradient of a distance of 0 is 0. Items without any negative are left out of the mean;
    a batch that holds a single identity has loss 0 and gradient 0 (an error would need the labels on the
    host at every step).

    Args:
        feature: `(B, F)`.
        label: `(B,)` int64.
        margin: None for the soft margin `softplus(d_ap - d_an)`, a number for `max(0, d_ap - d_an + margin)`.
        valid: `(B,)` bool, see `hardest_pairs`.

    Returns:
        Scalar mean over the items that have a negative.

    Source: Hermans et al., In Defense of the Triplet Loss, 2017, equation 5 and section 3.2 (soft margin).
    """
    feature = _full_precision(feature)
    positive, negative, has_negative = hardest_pairs(feature, label, valid=valid)
    to_positive = torch.linalg.vector_norm(feature - feature[positive], dim=1)  # (B,)
    to_negative = torch.linalg.vector_norm(feature - feature[negative], dim=1)  # (B,)
    gap = to_positive - to_negative
    each = functional.softplus(gap) if margin is None else functional.relu(gap + margin)  # (B,)
    each = torch.where(has_negative, each, torch.zeros_like(each))
    return each.sum() / has_negative.sum().clamp(min=1)


def reid_loss(
    output: ReIDOutput,
    label: Tensor,
    *,
    id_weight: float = 0.25,
    triplet_weight: float = 1.0,
    label_smoothing: float = 0.1,
    margin: float | None = None,
) -> dict[str, Tensor]:
    """Sum over all (logits, feature) pairs of an output, every pair with the same weight, and its auxiliary losses.

    Features of several modalities enter whole, with zeros where a modality is absent. Comparing only the blocks that
    two items share, as evaluation does, cannot be minimised: among items of one modality the hardest negatives are
    those that look alike in it, and all features collapse to one point (docs/missing.md).

    Args:
        output: of a model in training; every key of `logits` is a key of `features`.
        label: `(B,)` int64 class indices.
        id_weight: weight of each cross-entropy.
        triplet_weight: weight of each triplet loss.
        label_smoothing: see `id_loss`.
        margin: see `batch_hard_triplet`.

    Returns:
        `"total"` with its gradient, and, detached and before weighting, `"<name>/id"` and `"<name>/triplet"`
        of each pair and every auxiliary loss under its own name.

    Raises:
        InputError: The output has no logits, or logits without a feature of that name.
    """
    _check_pairs(output)
    terms: dict[str, Tensor] = {}
    totals: list[Tensor] = []
    for name, logits in output.logits.items():
        # The feature of one modality carries no information on items that lack it: they are left out of its pair.
        valid = output.present[:, MODALITIES.index(name)] if name in MODALITIES else None
        identity = id_loss(logits, label, label_smoothing=label_smoothing, valid=valid)
        triplet = batch_hard_triplet(output.features[name], label, margin=margin, valid=valid)
        totals.append(id_weight * identity + triplet_weight * triplet)
        terms[f"{name}/id"] = identity.detach()
        terms[f"{name}/triplet"] = triplet.detach()
    for name, auxiliary in output.auxiliary.items():
        totals.append(auxiliary)
        terms[name] = auxiliary.detach()
    return {"total": torch.stack(totals).sum(), **terms}


def _check_pairs(output: ReIDOutput) -> None:
    """Refuse an output from which no loss can be made."""
    if not output.logits:
        raise InputError("the output has no logits, at least one pair is needed: call model.train() before the loss")
    orphans = sorted(set(output.logits) - set(output.features))
    if orphans:
        known = sorted(output.features)
        raise InputError(f"logits {orphans} have no feature of that name among {known}: give both or neither")


def _full_precision(value: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it has float64 (autocast hands over half precision)."""
    return value if value.dtype == torch.float64 else value.float()


def _squared_distance(feature: Tensor) -> Tensor:
    """Squared Euclidean distances `(B, B)` of one set, exactly 0 on the diagonal.

    The batch mean is taken off first: it cancels in every difference, and without it the large common part of
    un-normalised features would use up the digits that distinguish near items.
    """
    centred = feature - feature.mean(dim=0)
    with torch.autocast(device_type=feature.device.type, enabled=False):
        product = centred @ centred.T  # (B, B)
    norm = product.diagonal()
    return (norm[:, None] + norm[None, :] - 2 * product).clamp(min=0)
