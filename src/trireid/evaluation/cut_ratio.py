"""The ratio of a cut, chosen on identities that the model has not seen. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from torch import Tensor

from trireid.errors import InputError


def choose_ratio(scores: Mapping[float, Sequence[float]], *, tolerance: float = 0.005) -> float:
    """The smallest ratio that costs no more than a tolerance, and no larger one does either.

    Ratios are tried from the largest, which is the reference, downwards; the first that is worse ends the search, so
    that a lucky small ratio below a bad one is not taken.

    Args:
        scores: by ratio, the mAP on held-out identities of one or more runs, in [0, 1]; the runs are averaged.
        tolerance: loss of mAP that is accepted, in [0, 1].

    Raises:
        InputError: there is no ratio, one has no score, or the tolerance is out of range.

    Example:
        >>> choose_ratio({1.0: [0.60], 0.9: [0.61], 0.7: [0.597], 0.5: [0.55], 0.4: [0.60]})
        0.7
    """
    if not scores or not all(scores.values()):
        raise InputError("a ratio is chosen from at least one ratio, each with at least one score")
    if not 0.0 <= tolerance <= 1.0:
        raise InputError(f"tolerance is {tolerance}; it must lie in [0, 1], in units of mAP")
    ratios = sorted(scores, reverse=True)
    chosen, least = ratios[0], mean(scores[ratios[0]]) - tolerance
    for ratio in ratios:
        if mean(scores[ratio]) < least:
            break
        chosen = ratio
    return chosen


def foreseen_share(scores: Tensor, mask: Tensor) -> Tensor:
    """Share of the attention that a predictor foresees which goes to the kept patches: its confidence in a cut.

    The softmax of the scores of `learned` and `consensus` is what they were trained to make of the late attention.

    Args:
        scores: `(..., N)`, -inf for patches that were dropped before.
        mask: `(..., N)` bool, true where kept.

    Returns:
        `(...,)` in [0, 1].

    Example:
        >>> import torch
        >>> foreseen_share(torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([True, True, True, False])).item()
        0.75
    """
    return (scores.float().softmax(dim=-1) * mask).sum(dim=-1)
