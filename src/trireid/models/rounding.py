"""Weights rounded to 8-bit floating point so that a product changes little on the inputs it really gets."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
LARGEST: float = torch.finfo(FLOAT8).max
"""448. Larger values have no e4m3 and are clamped to it."""
DAMPING = 0.01
"""Share of the inputs' mean square that is added to the square of each: few inputs say little about a direction."""
_TOGETHER = 128  # columns whose errors reach the columns after them in one product


def scale_of(largest: Tensor) -> Tensor:
    """What a tensor with this largest absolute value is divided by before it is cast, a float32 scalar.

    Example:
        >>> float(scale_of(torch.tensor(896.0)))
        2.0
    """
    return largest.float().clamp(min=1e-12) / LARGEST


def cast(values: Tensor) -> Tensor:
    """The nearest e4m3, clamped: a plain cast makes NaN of what is too large."""
    return values.clamp(-LARGEST, LARGEST).to(FLOAT8)


def round_weight(weight: Tensor, scale: Tensor, products: Tensor) -> Tensor:
    """Round `weight / scale` to e4m3, column by column, each error made up for by the columns that are still free.

    Args:
        weight: `(N, K)` float32.
        scale: a scalar.
        products: `(K, K)`, the sum of `x x^T` over inputs `x`; zeros: round each weight to its nearest.

    Returns:
        `(N, K)` in e4m3; multiply by the scale.

    Source: GPTQ (arXiv 2210.17323), sections 3.1 to 3.3; columns go from large to small inputs.
    """
    power = products.diagonal().mean()
    if power <= 0:
        return cast(weight / scale)
    order = products.diagonal().argsort(descending=True, stable=True)
    free = (weight / scale)[:, order]  # (N, K), not rounded yet
    damped = products[order][:, order].double()
    damped.diagonal().add_(DAMPING * power)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()  # (K, K); row k: how column k's error is spread
    rounded = torch.empty_like(free)  # in e4m3 only at the end: not every operator takes that type
    for start in range(0, free.shape[1], _TOGETHER):
        end = min(start + _TOGETHER, free.shape[1])
        errors = torch.empty_like(free[:, start:end])
        for column in range(start, end):
            rounded[:, column] = cast(free[:, column]).float()
            error = (free[:, column] - rounded[:, column]) / factor[column, column]
            free[:, column + 1 : end] -= torch.outer(error, factor[column, column + 1 : end])
            errors[:, column - start] = error
        free[:, end:] -= errors @ factor[start:end, end:]
    return rounded[:, order.argsort()].to(FLOAT8)
