"""Choosing patches: pure functions of tensors, used by the SDTPS head and by slimming inside the ViT.

Shapes: B batch, M modality, G guide modality (same axis as M), N patches, K kept, D channels.
Scores, softmax and ranking are in float32 whatever the input type, because low-precision scores tie.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trireid.errors import InputError
from trireid.models.compiling import is_exporting


def keep_count(num_patches: int, keep_ratio: float) -> int:
    """Number of kept patches, `max(1, ceil(N * ratio))`. Source: SEPS (arXiv 2511.01390), top-K selection.

    The product is rounded to 9 digits first, so that 10 * 0.7 is 7 and not 8 by floating point.

    Raises:
        InputError: if the ratio is outside (0, 1].
    """
    if not 0.0 < keep_ratio <= 1.0:
        raise InputError(f"keep ratio is {keep_ratio}; it must lie in (0, 1]")
    return max(1, math.ceil(round(num_patches * keep_ratio, 9)))


def cosine_scores(patches: Tensor, guides: Tensor) -> Tensor:
    """Cosine of every patch with the guide of every modality.

    Args:
        patches: `(B, M, N, D)`.
        guides: `(B, M, D)`, one vector per modality.

    Returns:
        `(B, M, G, N)` float32 in [-1, 1]; `[b, m, g]` holds patches of modality m against the guide of modality g.
    """
    unit_patches = functional.normalize(patches.float(), dim=-1)
    unit_guides = functional.normalize(guides.float(), dim=-1)
    with torch.autocast(patches.device.type, enabled=False):
        return torch.einsum("bmnd,bgd->bmgn", unit_patches, unit_guides)


def min_max_normalise(scores: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Stretch the last axis to [0, 1] by its minimum and maximum. Constant rows become 0."""
    low = scores.amin(dim=-1, keepdim=True)
    high = scores.amax(dim=-1, keepdim=True)
    return (scores - low) / (high - low + eps)


def quantile_normalise(scores: Tensor, *, low: float = 0.05, high: float = 0.95, eps: float = 1e-8) -> Tensor:
    """Stretch the last axis to [0, 1] between two quantiles and clip there, so that one outlier does not set the scale.

    Deviation: SEPS's code normalises by minimum and maximum; one outlying patch then squeezes all others together.
    """
    values = scores.float()
    # A sort of a graph asks for the length at run time, which some programs that run graphs do not take.
    ordered = values.topk(values.shape[-1], largest=False).values if is_exporting() else values.sort(dim=-1).values
    start, end = _quantile_of_sorted(ordered, low), _quantile_of_sorted(ordered, high)  # (..., 1)
    return ((scores - start) / (end - start + eps)).clamp(0.0, 1.0)


def _quantile_of_sorted(ordered: Tensor, share: float) -> Tensor:
    """Quantile `(..., 1)` of ascending values `(..., N)`, linear between neighbours, as `torch.quantile` gives it.

    The places are known without looking at a value; torch.quantile wants them as a tensor, which a GPU waits for.
    """
    position = share * (ordered.shape[-1] - 1)
    below = math.floor(position)
    above = min(below + 1, ordered.shape[-1] - 1)
    return torch.lerp(ordered[..., below : below + 1], ordered[..., above : above + 1], position - below)


def guide_weights(
    present: Tensor,
    *,
    own: float = 2.0,
    other: float = 1.0,
    num_modalities: int | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Weight of every guide for every modality, with absent guides left out and the rest scaled up to the same sum.

    Args:
        present: `(B, M)` bool.
        own: weight of a modality's own guide.
        other: weight of each other modality's guide.
        num_modalities: of the whole model, where `present` lists fewer; None: M.
        allowed: `(M, G)` bool, which guides a modality uses at all; those it does not are as absent. None: all.

    Returns:
        `(B, M, G)` float32; each row sums to own + other * (M - 1), or to 0 where no guide is present.
    """
    count = present.shape[1]
    base = torch.where(torch.eye(count, dtype=torch.bool, device=present.device), own, other)  # (M, G)
    total = own + other * ((num_modalities or count) - 1)
    if allowed is not None:
        base = base * allowed
    weights = base * present[:, None, :].float()  # (B, M, G)
    return weights * (total / weights.sum(dim=-1, keepdim=True).clamp_min(1e-12))


def select_top(scores: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """The highest scores of the last axis; ties go to the lower index, and indices come back in ascending order.

    Args:
        scores: `(..., N)` finite floats.
        num_kept: K, 1 <= K <= N.

    Returns:
        indices `(..., K)` int64 ascending, and mask `(..., N)` bool.
    """
    scores = scores.float()
    if torch.compiler.is_compiling():  # a sort takes minutes to compile for a GPU; comparing all pairs is one kernel
        scores = scores.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # first, as in a sort: K are kept
        mine, others = scores.unsqueeze(-1), scores.unsqueeze(-2)  # (..., N, 1), (..., 1, N)
        place = torch.arange(scores.shape[-1], device=scores.device)
        ahead = (others > mine) | ((others == mine) & (place < place.unsqueeze(-1)))
        mask = ahead.sum(dim=-1) < num_kept
    else:
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :num_kept], True)
    return true_places(mask, num_kept), mask


def true_places(mask: Tensor, count: int) -> Tensor:
    """Ascending places `(..., count)` int64 of what is true in a mask `(..., N)`, which is true count times a row."""
    if torch.compiler.is_compiling():  # as in `select_top`
        place = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
        target = torch.where(mask, mask.cumsum(dim=-1) - 1, count)  # the last column takes what is false
        places = place.new_zeros(*mask.shape[:-1], count + 1).scatter(-1, target, place)
        return places[..., :count]
    return mask.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :count]


def gather_patches(patches: Tensor, indices: Tensor) -> Tensor:
    """Patches `(..., N, D)` at indices `(..., K)` -> `(..., K, D)`."""
    return patches.gather(-2, indices.unsqueeze(-1).expand(*indices.shape, patches.shape[-1]))


def fused_weights(scores: Tensor, mask: Tensor) -> Tensor:
    """Weight of every patch in the fused token: the softmax of the scores of the dropped ones, 0 for those kept.

    Where nothing was dropped (ratio 1) all patches are fused, so that the token is always defined and always trains
    the scores.

    Args:
        scores: `(..., N)`, -inf for patches that were dropped before.
        mask: `(..., N)` bool, true where kept.

    Returns:
        `(..., N)` float32, its sum is 1.
    """
    everything_kept = mask.all(dim=-1, keepdim=True)
    excluded = mask & ~everything_kept
    return scores.float().masked_fill(excluded, float("-inf")).softmax(dim=-1)


def fuse_dropped(patches: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """One token out of the dropped patches, weighted by `fused_weights`.

    Source: SEPS (arXiv 2511.01390), redundant patches.

    Deviation: the literal form leaves a zero token where nothing was dropped.

    Args:
        patches: `(..., N, D)`; scores: `(..., N)`; mask: `(..., N)` bool, true where kept.

    Returns:
        `(..., D)` in the type of `patches`.
    """
    weights = fused_weights(scores, mask)
    with torch.autocast(patches.device.type, enabled=False):
        return (weights.to(patches.dtype).unsqueeze(-2) @ patches)[..., 0, :]  # (..., 1, N) @ (..., N, D)


def gumbel_noise(scores: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise in the shape of `scores`, float32."""
    uniform = torch.rand(scores.shape, device=scores.device, dtype=torch.float32, generator=generator)
    return -torch.log(-torch.log(uniform.clamp(1e-10, 1.0 - 1e-7)))


def k_hot_threshold(scaled: Tensor, num_kept: int, *, sections: int = 32) -> Tensor:
    """Threshold t of `sum sigmoid(x - t) = K`, found by narrowing a bracket to one of its sections at a time.

    Every round looks at all inner borders at once: 32 sections take 8 rounds in float32, some eighty kernels on a GPU.
    The number of rounds depends on the type alone, so that nothing waits for a value.

    Args:
        scaled: `(..., N)`, scores in units of the temperature.
        num_kept: K, 1 <= K < N; at K = N no finite threshold exists.
        sections: parts of the bracket, at least 2; more of them are fewer rounds and more work.

    Returns:
        `(..., 1)`.
    """
    # If all scores were equal, this offset would solve the equation: shifted by it, the extremes bracket t.
    offset = math.log(num_kept / (scaled.shape[-1] - num_kept))
    low, high = scaled.amin(-1, keepdim=True) - offset, scaled.amax(-1, keepdim=True) - offset  # (..., 1)
    width, spread = high - low, scaled.unsqueeze(-2)  # (..., 1), (..., 1, N)
    borders = torch.arange(1, sections, device=scaled.device, dtype=scaled.dtype)  # (S - 1,)
    num_bits = 65 if scaled.dtype == torch.float64 else 40  # more digits than the type holds
    for _ in range(math.ceil(num_bits / math.log2(sections))):
        width = width / sections
        thresholds = torch.addcmul(low, width, borders)  # (..., S - 1)
        total = torch.sigmoid(spread - thresholds.unsqueeze(-1)).sum(-1)  # (..., S - 1), falls from left to right
        low = torch.addcmul(low, width, (total > num_kept).sum(-1, keepdim=True, dtype=low.dtype))
    return low + width / 2


class _KHot(torch.autograd.Function):
    """Forward: search for the threshold t. Backward: implicit derivative, `(diag(w) - w w' / sum w) / tau`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, num_kept: int, tau: float) -> Tensor:
        if num_kept == scores.shape[-1]:
            relaxed = torch.ones_like(scores)
        else:
            # What all scores have in common cancels; without it the digits are left for the differences.
            scaled = (scores - scores.mean(-1, keepdim=True)) / tau
            # A CPU pays for the work, a GPU for the number of kernels.
            sections = 4 if scores.device.type == "cpu" else 32
            relaxed = torch.sigmoid(scaled - k_hot_threshold(scaled, num_kept, sections=sections))
        ctx.save_for_backward(relaxed)
        ctx.tau = tau
        return relaxed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (relaxed,) = ctx.saved_tensors
        slope = relaxed * (1.0 - relaxed)
        # sum w is 0 where every decision is saturated (K = N): the gradient is 0 there, not 0 / 0.
        total = slope.sum(-1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        weighted = slope * grads[0]
        return (weighted - slope * (weighted.sum(-1, keepdim=True) / total)) / ctx.tau, None, None


def relax_k_hot(scores: Tensor, num_kept: int, *, tau: float) -> Tensor:
    """K-hot relaxation: `p_i = sigmoid((s_i - t) / tau)` with t such that `sum p = K`.

    The derivative is the implicit one, whose rows sum to 0 (docs/sdtps.md).

    Args:
        scores: `(..., N)`; computed in float32 at least.
        num_kept: K, 1 <= K <= N; at K = N all are 1 and the gradient is 0.
        tau: temperature > 0, in units of the scores.

    Returns:
        `(..., N)` in (0, 1), each row sums to K.
    """
    if scores.dtype != torch.float64:
        scores = scores.float()
    result: Tensor = _KHot.apply(scores, num_kept, tau)
    return result


def relax_softmax(scores: Tensor, *, tau: float) -> Tensor:
    """Softmax relaxation `softmax(s / tau)`, `(..., N)`; each row sums to 1.

    Source: Gumbel-Softmax (Jang et al., ICLR 2017).
    """
    return (scores if scores.dtype == torch.float64 else scores.float()).div(tau).softmax(dim=-1)


def straight_through(mask: Tensor, relaxed: Tensor) -> Tensor:
    """The hard 0/1 decision in the forward pass, the gradient of `relaxed` in the backward pass. `(..., N)`."""
    return mask.to(relaxed.dtype) + (relaxed - relaxed.detach())


def masked_softmax(logits: Tensor, decision: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the kept patches, with a gradient for the dropped ones as if they had been kept.

    `W ~ D * exp(l)` over all N: the forward pass equals softmax over the kept patches; the backward pass gives every
    patch, kept or dropped, the gradient of its own decision. Dropped logits above the largest kept one are capped
    there, so that this gradient is bounded by that of a kept patch.

    Args:
        logits: `(..., A, N)`; decision: `(..., N)` 0/1 with a straight-through gradient; mask: `(..., N)` bool.

    Returns:
        `(..., A, N)` float32, rows sum to 1, exactly 0 where dropped.
    """
    kept = mask.unsqueeze(-2)  # (..., 1, N)
    logits = logits.float()
    ceiling = logits.detach().masked_fill(~kept, float("-inf")).amax(dim=-1, keepdim=True)  # (..., A, 1)
    weight = decision.float().unsqueeze(-2) * torch.exp((logits - ceiling).clamp_max(0.0))
    return weight / weight.sum(dim=-1, keepdim=True)


def log_masked_softmax(logits: Tensor, decision: Tensor) -> Tensor:
    """Softmax of `logits + log(D)` over patches that were already gathered: every D is 1, its gradient is bounded.

    Source: the mask of SDTPS, with a bounded gradient. At D = 1, log D is 0 and its derivative 1, where
    `-(1 - D) * 1e10` would have the same forward pass and a gradient 1e10 times too large.

    Args:
        logits: `(..., A, K)`; decision: `(..., K)`, 1 in the forward pass.
    """
    return (logits.float() + torch.log(decision.float()).unsqueeze(-2)).softmax(dim=-1)


def random_scores(like: Tensor, *, training: bool) -> Tensor:
    """Uniform scores in the shape of `like` `(..., N)`, the control of every guided choice.

    In evaluation all rows share one fixed draw, so that a feature depends neither on its batch nor on the call.
    """
    if training:
        return torch.rand(like.shape, device=like.device)
    return _fixed_draw(like.shape[-1], like.device).expand(like.shape)


@lru_cache(maxsize=16)
def _fixed_draw(length: int, device: torch.device) -> Tensor:
    """`(N,)`, cached, because a copy to the device in every batch would wait for it and could not be recorded."""
    with torch.inference_mode(False):
        return torch.rand(length, generator=torch.Generator().manual_seed(0)).to(device)
