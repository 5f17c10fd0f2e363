"""SDTPS: few patches of each modality, chosen under the guidance of all three, aggregated into fewer slots.

Source: SEPS (ICLR 2026, arXiv 2511.01390) carried over to three spectra; docs/sdtps.md has the whole flow. The paper
states neither beta, nor tau, nor the aggregation ratio, nor the normalisation of the scores: the defaults are
explained in docs/sdtps.md. Shapes: B batch, M modality, N patches, K kept, A slots, D channels.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models import selection as select
from trireid.models.modality import ModalityLayerNorm, ModalityLinear, mask_absent
from trireid.models.slot_pooling import SlotReader
from trireid.names import Mask, Noise, Normalisation, PresetName, Relaxation, Scoring, SlotPoolingName
from trireid.types import NUM_MODALITIES, Selection

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


class SDTPSOutput(NamedTuple):
    """What the head gives.

    Attributes:
        feature: `(B, F)`, the slots read out and concatenated over the modalities.
        slots: `(B, M, A + 1, D)`, the aggregated slots and, last, the token of the dropped patches.
        selection: the choice itself.
    """

    feature: Tensor
    slots: Tensor
    selection: Selection


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
        scoring: `guided`, or `random` as a control, which has neither predictor nor learned guides.

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
    ) -> None:
        super().__init__()
        _check_ranges(dim=dim, aggr_ratio=aggr_ratio, beta=beta, tau=tau)
        _check_choice("relaxation", relaxation, Relaxation)
        _check_choice("noise", noise, Noise)
        _check_choice("mask", mask, Mask)
        _check_choice("normalisation", normalisation, Normalisation)
        _check_choice("scoring", scoring, Scoring)
        self.num_patches = num_patches
        self.grid = grid if grid is not None else (1, num_patches)
        if self.grid[0] * self.grid[1] != num_patches:
            raise InputError(f"grid {self.grid} has {self.grid[0] * self.grid[1]} cells for {num_patches} patches")
        self.num_kept = select.keep_count(num_patches, sparse_ratio)
        self.num_slots = slot_count(num_patches, sparse_ratio=sparse_ratio, aggr_ratio=aggr_ratio)
        self.beta, self.tau, self.use_gumbel = beta, tau, use_gumbel
        self.relaxation, self.noise, self.mask_form = relaxation, noise, mask
        self.normalisation, self.scoring = normalisation, scoring

        # Random scores ask neither; parameters without a use would stop a parallel run.
        guided, hidden = scoring == "guided", max(1, dim // 4)
        self.predictor: nn.Sequential | None = None
        if guided:
            self.predictor = nn.Sequential(
                ModalityLinear(num_modalities, dim, hidden), nn.GELU(), ModalityLinear(num_modalities, hidden, 1)
            )
        narrow = max(1, int(0.2 * dim))
        self.aggregation = nn.Sequential(
            ModalityLayerNorm(num_modalities, dim),
            ModalityLinear(num_modalities, dim, narrow),
            nn.GELU(),
            ModalityLinear(num_modalities, narrow, self.num_slots, bias=False),
        )
        self.scale = nn.Parameter(torch.ones(num_modalities, 1, 1))
        self.guide_map = ModalityLinear(num_modalities, dim, dim) if learned_guides and guided else None
        self.reader = SlotReader(reader, dim=dim, num_slots=self.num_slots + 1, num_modalities=num_modalities)
        self.feature_dim, self.blocks = self.reader.feature_dim, self.reader.blocks

    def forward(
        self,
        patches: Tensor,
        guides: Tensor,
        *,
        global_features: Tensor | None = None,
        present: Tensor | None = None,
    ) -> SDTPSOutput:
        """Choose, aggregate and read out.

        Args:
            patches: `(B, M, N, D)`.
            guides: `(B, M, D)`, the vector of each modality that the cosines are taken with.
            global_features: `(B, M, D)`, used beside the slots by the pooling `hdm`; None takes the guides.
            present: `(B, M)` bool; absent modalities do not guide and give zero slots. None: all present.

        Raises:
            InputError: if the number of patches is not the one given at construction.
        """
        if patches.shape[2] != self.num_patches:
            raise InputError(
                f"SDTPS was built for {self.num_patches} patches and got {patches.shape[2]}: "
                "build it with the patch count of the backbone at this image size"
            )
        scores = self.score(patches, guides, present=present)  # (B, M, N)
        indices, mask, decision = self.decide(scores)
        slots, weights = self.aggregate(patches, indices, mask, decision)  # (B, M, A, D)
        dropped = select.fuse_dropped(patches, scores, mask)  # (B, M, D)
        slots = torch.cat([slots, dropped.unsqueeze(2)], dim=2)  # (B, M, A + 1, D)
        slots = mask_absent(slots, present)
        feature = self.reader(slots, guides if global_features is None else global_features, present=present)  # (B, F)
        chosen = Selection(indices=indices, scores=scores.detach(), mask=mask, grid=self.grid, weights=weights.detach())
        return SDTPSOutput(feature=feature, slots=slots, selection=_of_present(chosen, present))

    def score(self, patches: Tensor, guides: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Score of every patch, `(B, M, N)` float32: `(1 - 2b) s_p + b (s_m2 + s_m3 + 2 s_im)`. Source:

        S3 and S4 of docs/sdtps.md. The cosines carry no gradient; learned guides do, through the map that makes them.
        """
        if self.predictor is None:
            return select.random_scores(patches[..., 0], training=self.training)
        with torch.autocast(patches.device.type, enabled=False):  # low-precision scores tie
            exact = patches if patches.dtype == torch.float64 else patches.float()
            predicted = torch.sigmoid(self.predictor(exact)[..., 0].float())  # (B, M, N)
        guides = guides.detach()
        if self.guide_map is not None:
            guides = guides + self.guide_map(guides)
        cosines = select.cosine_scores(patches.detach(), guides)  # (B, M, G, N)
        normalise = select.min_max_normalise if self.normalisation == "min_max" else select.quantile_normalise
        if present is None:
            present = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        weights = select.guide_weights(present)  # (B, M, G)
        guided = (normalise(cosines) * weights.unsqueeze(-1)).sum(dim=2)  # (B, M, N)
        return (1.0 - 2.0 * self.beta) * predicted + self.beta * guided

    def decide(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Kept indices `(B, M, K)`, mask `(B, M, N)` and decision `(B, M, N)` (0/1, soft gradient in training)."""
        perturbed = chooser = scores
        if self.training and self.use_gumbel and self.noise != "none":
            noise = select.gumbel_noise(scores)
            # `reference` perturbs the scores as they are. Shared noise must not drown the scores that choose: it is
            # scaled by tau, which samples K patches without replacement from softmax(s / tau).
            perturbed = scores + (noise * self.tau if self.noise == "shared" else noise)
            chooser = perturbed if self.noise == "shared" else scores
        indices, mask = select.select_top(chooser.detach(), self.num_kept)
        if self.training and self.relaxation == "k_hot":
            relaxed = select.relax_k_hot(perturbed, self.num_kept, tau=self.tau)
        elif self.training and self.relaxation == "softmax" and self.use_gumbel:
            relaxed = select.relax_softmax(perturbed, tau=self.tau)
        else:
            return indices, mask, mask.float()
        return indices, mask, select.straight_through(mask, relaxed)

    def aggregate(self, patches: Tensor, indices: Tensor, mask: Tensor, decision: Tensor) -> tuple[Tensor, Tensor]:
        """Slots `(B, M, A, D)` and their weights over the kept patches `(B, M, A, K)`. Source: S7, S8."""
        spread = indices.unsqueeze(2).expand(-1, -1, self.num_slots, -1)  # (B, M, A, K)
        if self.mask_form == "masked_softmax" and self.training:
            logits = self._aggregation_logits(patches)  # (B, M, A, N)
            everywhere = select.masked_softmax(logits, decision, mask)
            return everywhere.to(patches.dtype) @ patches, everywhere.gather(-1, spread)
        kept = select.gather_patches(patches, indices)  # (B, M, K, D)
        weights = select.log_masked_softmax(self._aggregation_logits(kept), decision.gather(-1, indices))
        return weights.to(patches.dtype) @ kept, weights

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


def _check_ranges(*, dim: int, aggr_ratio: float, beta: float, tau: float) -> None:
    if dim < 1:
        raise InputError(f"dim is {dim}; it must be at least 1")
    if not 0.0 < aggr_ratio <= 1.0:
        raise InputError(f"aggr_ratio is {aggr_ratio}; it must lie in (0, 1]")
    if not 0.0 <= beta <= 0.5:
        raise InputError(f"beta is {beta}; it must lie in [0, 0.5]")
    if not tau > 0.0:
        raise InputError(f"tau is {tau}; it must be greater than 0")


def _check_choice(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise InputError(f"{name} is {value!r}; allowed are {', '.join(get_args(allowed))}")
