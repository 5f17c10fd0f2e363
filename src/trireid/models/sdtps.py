"""SDTPS: few patches of each modality, chosen under the guidance of all three, aggregated into fewer slots.

Source: SEPS (ICLR 2026, arXiv 2511.01390) carried over to three spectra; docs/sdtps.md has the whole flow. The paper
states neither beta, nor tau, nor the aggregation ratio, nor the normalisation of the scores: the defaults are
explained in docs/sdtps.md. Shapes: B batch, M modality, N patches, K kept, A slots, D channels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models import selection as select
from trireid.models.cells import cell_of_place, cell_softmax
from trireid.models.contrast import finish_slots, slot_values
from trireid.models.modality import ModalityLayerNorm, ModalityLinear, mask_absent
from trireid.models.slot_pooling import SlotReader
from trireid.models.spectrum_weight import make_weight, weigh_blocks
from trireid.names import (
    Choice,
    ContrastName,
    Mask,
    Noise,
    Normalisation,
    PresetName,
    Relaxation,
    ScoreName,
    Scoring,
    SlotPoolingName,
    SpectrumWeightName,
)
from trireid.types import MODALITIES, NUM_MODALITIES, Selection

PRESETS: MappingProxyType[PresetName, MappingProxyType[str, Any]] = MappingProxyType(
    {
        "reference": MappingProxyType(
            {
                "relaxation": "softmax",
                "noise": "relaxation",
                "mask": "log",
                "normalisation": "min_max",
                "learned_guides": False,
                "reader": "mean",
            }
        ),
        "sound": MappingProxyType(
            {
                "relaxation": "k_hot",
                "noise": "shared",
                "mask": "masked_softmax",
                "normalisation": "quantile",
                "learned_guides": False,
                "reader": "attention",
            }
        ),
    }
)
"""Two settings of one implementation: `reference` follows the method exactly, `sound` corrects its faults."""

SPARSE_RATIOS = MappingProxyType({"reference": 0.5, "sound": 1.0})
"""Share of the patches that a preset keeps where none is given. After the last block a choice saves no compute, and no
table of docs/results.md shows it above the same head without it beyond the noise; the choice inside the ViT is
`model.slimming`."""


def slot_count(num_patches: int, *, sparse_ratio: float, aggr_ratio: float) -> int:
    """Number of aggregated slots, `max(1, int(N * aggr_ratio * sparse_ratio))`.

    Source: SEPS (arXiv 2511.01390), aggregation ratio.
    """
    return max(1, int(round(num_patches * aggr_ratio * sparse_ratio, 9)))


ALL_SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
SMALLEST_WEIGHT = 1e-6  # of a patch in a soft choice, so that its logarithm is finite


class SDTPSOutput(NamedTuple):
    """What the head gives.

    Attributes:
        feature: `(B, F)`, the slots read out and concatenated over the modalities.
        slots: `(B, M, A + 1, D)`, the aggregated slots and, last, the token of the dropped patches.
        selection: the choice itself.
        modality_weights: `(B, M)` weight of each modality in the feature; None where it has none.
    """

    feature: Tensor
    slots: Tensor
    selection: Selection
    modality_weights: Tensor | None = None


class SDTPS(nn.Module):
    """Sparse selection of patches and their aggregation, for `(B, M, N, D)` in one code path.

    Args:
        dim: D.
        num_patches: N, checked at every call.
        grid: patch grid (rows, columns); None is one row.
        num_modalities: M.
        sparse_ratio: share of the patches that is kept, in (0, 1].
        aggr_ratio: slots per kept patch, in (0, 1].
        beta: weight of the guided scores against the predicted one, in [0, 0.5].
        tau: temperature of the relaxation, > 0.
        use_gumbel: draw Gumbel noise in training.
        relaxation: gradient of the keep decision: `softmax` (sums to 1), `k_hot` (sums to K) or `none`. Where
            Gumbel is off, `softmax` is not used.
        noise: with Gumbel on, `none` adds none, `relaxation` adds noise to the backward pass alone,
            `shared` chooses and relaxes by the same noisy scores.
        mask: `log` masks gathered logits; `masked_softmax` runs over all patches in training, so that dropped patches
            learn what they would have been worth, and gathers in evaluation.
        normalisation: of the guided scores over the patches.
        learned_guides: pass the guides through a learned map that does receive gradient.
        reader: how the slots become a feature, see `trireid.models.slot_pooling`.
        scoring: `guided`; `random` as a control, or `cut` (scores given at the call, those of a cut inside the ViT),
            which have neither predictor nor learned guides.
        scores: the terms of a guided score; the others are left out, and guides that stay keep the sum of the weights.
        choice: `hard` keeps K patches; `soft` keeps all, weighted in the aggregation by the K-hot relaxation of the
            scores, which sums to K and has temperature tau.
        keep_all_in_test: choose in training only, as a regularisation, and keep all patches in evaluation.
        guide_gradient: let the cosines pass gradient to patches and guides: through the fused token and, with a `soft`
            choice or a relaxation, through the other slots.
        spectrum_weight: weight of a whole modality of an item in the feature, see `trireid.models.spectrum_weight`.
        contrast: what the slots and the dropped token are made of, see `trireid.models.contrast`.
        cells: (rows, columns) of slots that are cells of the image, see `trireid.models.cells`; None: learned slots.
        place_grid: patch grid of the image, which the cells divide, where the patches are those that a cut left; all of
            its patches are taken as well (a dense start of training), and the same share is kept. None: grid.

    Raises:
        InputError: for values out of range.

    Source: SEPS (arXiv 2511.01390), sparse patch selection and aggregation; docs/sdtps.md lists each requirement.

    Deviation: the last map of the aggregation has no bias, because softmax over the patches cancels it; the token of
        the dropped patches is defined at ratio 1.
    """

    def __init__(
        self,
        dim: int,
        num_patches: int,
        *,
        grid: tuple[int, int] | None = None,
        num_modalities: int = NUM_MODALITIES,
        sparse_ratio: float = 0.5,
        aggr_ratio: float = 0.4,
        beta: float = 0.25,
        tau: float = 1.0,
        use_gumbel: bool = False,
        relaxation: Relaxation = "softmax",
        noise: Noise = "relaxation",
        mask: Mask = "log",
        normalisation: Normalisation = "min_max",
        learned_guides: bool = False,
        reader: SlotPoolingName = "mean",
        scoring: Scoring = "guided",
        scores: tuple[ScoreName, ...] = ALL_SCORES,
        choice: Choice = "hard",
        keep_all_in_test: bool = False,
        guide_gradient: bool = False,
        spectrum_weight: SpectrumWeightName = "none",
        contrast: ContrastName = "none",
        cells: tuple[int, int] | None = None,
        place_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        _check_ranges(dim=dim, aggr_ratio=aggr_ratio, beta=beta, tau=tau, scores=scores)
        _check_choices(relaxation, noise, mask, normalisation, scoring, choice, spectrum_weight, contrast)
        self.num_patches, self.grid = num_patches, _checked_grid(grid, num_patches)
        self.num_kept, self.sparse_ratio = select.keep_count(num_patches, sparse_ratio), sparse_ratio
        self.dense_grid = place_grid or self.grid
        self.num_slots = slot_count(num_patches, sparse_ratio=sparse_ratio, aggr_ratio=aggr_ratio)
        self.beta, self.tau, self.use_gumbel = beta, tau, use_gumbel
        self.relaxation, self.noise, self.mask_form = relaxation, noise, mask
        self.normalisation, self.scoring, self.scores, self.contrast = normalisation, scoring, scores, contrast
        self.choice, self.keep_all_in_test, self.guide_gradient = choice, keep_all_in_test, guide_gradient

        cell = None if cells is None else cell_of_place(self.dense_grid, cells)
        self.cell: Tensor | None  # (places,) int64
        self.register_buffer("cell", cell, persistent=False)
        self.num_slots = self.num_slots if cells is None else cells[0] * cells[1]

        # Other scores ask neither; parameters without a use would stop a parallel run.
        guided, hidden, narrow = scoring == "guided", max(1, dim // 4), max(1, int(0.2 * dim))
        per_modality = partial(ModalityLinear, num_modalities)
        self.predictor: nn.Sequential | None = None
        if guided and "predicted" in scores:
            self.predictor = nn.Sequential(per_modality(dim, hidden), nn.GELU(), per_modality(hidden, 1))
        norm, inner = ModalityLayerNorm(num_modalities, dim), per_modality(dim, narrow)
        logits = per_modality(narrow, self.num_slots if cells is None else 1, bias=False)
        self.aggregation = nn.Sequential(norm, inner, nn.GELU(), logits)
        self.scale = nn.Parameter(torch.ones(num_modalities, 1, 1))
        learns = learned_guides and guided and set(scores) != {"predicted"}
        self.guide_map = per_modality(dim, dim) if learns else None
        self.reader = SlotReader(reader, dim=dim, num_slots=self.num_slots + 1, num_modalities=num_modalities)
        self.feature_dim, self.blocks = self.reader.feature_dim, self.reader.blocks
        self.spectrum_weight = make_weight(spectrum_weight, num_modalities=num_modalities)

    def forward(
        self,
        patches: Tensor,
        guides: Tensor,
        *,
        global_features: Tensor | None = None,
        present: Tensor | None = None,
        places: Tensor | None = None,
        cut_scores: Tensor | None = None,
    ) -> SDTPSOutput:
        """Choose, aggregate and read out.

        Args:
            patches: `(B, M, N, D)`.
            guides: `(B, M, D)`, the vector of each modality that the cosines are taken with.
            global_features: `(B, M, D)`, used beside the slots by the pooling `hdm`; None takes the guides.
            present: `(B, M)` bool; absent modalities do not guide and give zero slots. None: all present.
            places: `(B, M, N)` int64, the place of each patch in the grid that cells divide; None: in order.
            cut_scores: `(B, M, N)`, the scores that a cut gave these patches; needed where scoring is `cut`.

        Raises:
            InputError: if the number of patches is not the one given at construction, or scores are missing.
        """
        if patches.shape[2] not in (self.num_patches, math.prod(self.dense_grid)):
            raise InputError(
                f"SDTPS was built for {self.num_patches} patches and got {patches.shape[2]}: "
                "build it with the patch count of the backbone at this image size"
            )
        scores = self.score(patches, guides, present=present, cut_scores=cut_scores)  # (B, M, N)
        indices, mask, decision = self.decide(scores)
        slots, weights = self.aggregate(patches, indices, mask, decision, places=places)  # (B, M, A, D)
        dropped = select.fuse_dropped(slot_values(patches, self.contrast), scores, mask)  # (B, M, D)
        slots = finish_slots(torch.cat([slots, dropped.unsqueeze(2)], dim=2), self.contrast)  # (B, M, A + 1, D)
        slots = mask_absent(slots, present)
        feature = self.reader(slots, guides if global_features is None else global_features, present=present)  # (B, F)
        importance = None
        if self.spectrum_weight is not None:
            cosines = select.cosine_scores(patches.detach(), guides.detach())
            importance = self.spectrum_weight(patches, cosines, present=present)  # (B, M)
            feature = weigh_blocks(feature, importance, self.blocks, present)
        grid = self.grid if patches.shape[2] == self.num_patches else self.dense_grid
        chosen = Selection(indices=indices, scores=scores.detach(), mask=mask, grid=grid, weights=weights.detach())
        return SDTPSOutput(feature, slots, _of_present(chosen, present), importance)

    def score(
        self, patches: Tensor, guides: Tensor, *, present: Tensor | None = None, cut_scores: Tensor | None = None
    ) -> Tensor:
        """Score of every patch, `(B, M, N)` float32: `(1 - 2b) s_p + b (s_m2 + s_m3 + 2 s_im)`. Source:

        S3 and S4 of docs/sdtps.md. The cosines carry no gradient unless `guide_gradient` is set; learned guides do,
        through the map that makes them.
        """
        normalise = select.min_max_normalise if self.normalisation == "min_max" else select.quantile_normalise
        if self.scoring == "random":
            return select.random_scores(patches[..., 0], training=self.training)
        if self.scoring == "cut":
            if cut_scores is None:
                raise InputError("the scores of SDTPS are those of a cut, and none was given: use model.slimming")
            return normalise(cut_scores.float())
        total = patches.new_zeros(patches.shape[:3], dtype=torch.float32)
        if self.predictor is not None:
            with torch.autocast(patches.device.type, enabled=False):  # low-precision scores tie
                exact = patches if patches.dtype == torch.float64 else patches.float()
                predicted = torch.sigmoid(self.predictor(exact)[..., 0].float())  # (B, M, N)
            total = (1.0 - 2.0 * self.beta) * predicted
        if set(self.scores) == {"predicted"}:
            return total
        if not self.guide_gradient:
            patches, guides = patches.detach(), guides.detach()
        if self.guide_map is not None:
            guides = guides + self.guide_map(guides)
        cosines = select.cosine_scores(patches, guides)  # (B, M, G, N)
        if present is None:
            present = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        weights = select.guide_weights(present, allowed=self._allowed_guides(present))  # (B, M, G)
        return total + self.beta * (normalise(cosines) * weights.unsqueeze(-1)).sum(dim=2)  # (B, M, N)

    def _allowed_guides(self, present: Tensor) -> Tensor | None:
        """`(M, G)` bool, which guides the scores of each modality use; None for all."""
        if set(self.scores) == set(ALL_SCORES):
            return None
        own = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
        as_other = torch.stack([own.new_full((), name in self.scores) for name in MODALITIES])  # (G,)
        return torch.where(own, "own" in self.scores, as_other)

    def decide(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Kept indices `(B, M, K)`, mask `(B, M, N)` and decision `(B, M, N)`.

        The decision is 0 or 1 with a soft gradient in training; for a soft choice it is the weight of each patch.
        """
        num_kept = select.keep_count(scores.shape[-1], self.sparse_ratio)
        perturbed = chooser = scores
        if self.training and self.use_gumbel and self.noise != "none":
            noise = select.gumbel_noise(scores)
            # `reference` perturbs the scores as they are. Shared noise must not drown the scores that choose: it is
            # scaled by tau, which samples K patches without replacement from softmax(s / tau).
            perturbed = scores + (noise * self.tau if self.noise == "shared" else noise)
            chooser = perturbed if self.noise == "shared" else scores
        if self.choice == "soft" or (self.keep_all_in_test and not self.training):
            mask = torch.ones_like(scores, dtype=torch.bool)
            indices = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
            if self.choice == "hard":
                return indices, mask, mask.float()
            return indices, mask, select.relax_k_hot(perturbed, num_kept, tau=self.tau).clamp_min(SMALLEST_WEIGHT)
        indices, mask = select.select_top(chooser.detach(), num_kept)
        if self.training and self.relaxation == "k_hot":
            relaxed = select.relax_k_hot(perturbed, num_kept, tau=self.tau)
        elif self.training and self.relaxation == "softmax" and self.use_gumbel:
            relaxed = select.relax_softmax(perturbed, tau=self.tau)
        else:
            return indices, mask, mask.float()
        return indices, mask, select.straight_through(mask, relaxed)

    def aggregate(
        self, patches: Tensor, indices: Tensor, mask: Tensor, decision: Tensor, *, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Slots `(B, M, A, D)` and their weights over the kept patches `(B, M, A, K)`. Source: S7, S8."""
        values = slot_values(patches, self.contrast)
        spread = indices.unsqueeze(2).expand(-1, -1, self.num_slots, -1)  # (B, M, A, K)
        if self.cell is not None:
            cell = self.cell[: patches.shape[2]].expand(mask.shape) if places is None else self.cell[places]
            logits = self._aggregation_logits(patches)[:, :, 0]  # (B, M, N)
            everywhere = cell_softmax(logits, decision, cell, self.num_slots)  # (B, M, A, N)
            return everywhere.to(values.dtype) @ values, everywhere.gather(-1, spread)
        if self.mask_form == "masked_softmax" and self.training:
            logits = self._aggregation_logits(patches)  # (B, M, A, N)
            everywhere = select.masked_softmax(logits, decision, mask)
            return everywhere.to(values.dtype) @ values, everywhere.gather(-1, spread)
        kept = select.gather_patches(patches, indices)  # (B, M, K, D)
        weights = select.log_masked_softmax(self._aggregation_logits(kept), decision.gather(-1, indices))
        return weights.to(values.dtype) @ select.gather_patches(values, indices), weights

    def _aggregation_logits(self, patches: Tensor) -> Tensor:
        logits: Tensor = self.aggregation(patches) * self.scale  # (B, M, N, A)
        return logits.transpose(-1, -2)  # (B, M, A, N)


def _of_present(chosen: Selection, present: Tensor | None) -> Selection:
    """The selection with zeros for absent modalities, of which no patch is kept. Present `(B, M)` bool or None."""
    if present is None:
        return chosen
    assert chosen.weights is not None
    absent = ~present.unsqueeze(-1)  # (B, M, 1)
    return replace(
        chosen,
        indices=chosen.indices.masked_fill(absent, 0),
        scores=chosen.scores.masked_fill(absent, 0.0),
        mask=chosen.mask & ~absent,
        weights=chosen.weights.masked_fill(absent.unsqueeze(-1), 0.0),
    )


def _checked_grid(grid: tuple[int, int] | None, num_patches: int) -> tuple[int, int]:
    grid = grid if grid is not None else (1, num_patches)
    if grid[0] * grid[1] != num_patches:
        raise InputError(f"grid {grid} has {grid[0] * grid[1]} cells for {num_patches} patches")
    return grid


def _check_ranges(*, dim: int, aggr_ratio: float, beta: float, tau: float, scores: tuple[str, ...]) -> None:
    if dim < 1:
        raise InputError(f"dim is {dim}; it must be at least 1")
    if not 0.0 < aggr_ratio <= 1.0:
        raise InputError(f"aggr_ratio is {aggr_ratio}; it must lie in (0, 1]")
    if not 0.0 <= beta <= 0.5:
        raise InputError(f"beta is {beta}; it must lie in [0, 0.5]")
    if not tau > 0.0:
        raise InputError(f"tau is {tau}; it must be greater than 0")
    if not scores or len(set(scores)) < len(scores) or not set(scores) <= set(ALL_SCORES):
        raise InputError(f"scores are {list(scores)}; give one or more of {', '.join(ALL_SCORES)}, each once")


def _check_choices(
    relaxation: str,
    noise: str,
    mask: str,
    normalisation: str,
    scoring: str,
    choice: str,
    spectrum_weight: str,
    contrast: str,
) -> None:
    for name, value, allowed in (
        ("relaxation", relaxation, Relaxation),
        ("noise", noise, Noise),
        ("mask", mask, Mask),
        ("normalisation", normalisation, Normalisation),
        ("scoring", scoring, Scoring),
        ("choice", choice, Choice),
        ("spectrum_weight", spectrum_weight, SpectrumWeightName),
        ("contrast", contrast, ContrastName),
    ):
        if value not in get_args(allowed):
            raise InputError(f"{name} is {value!r}; allowed are {', '.join(get_args(allowed))}")
