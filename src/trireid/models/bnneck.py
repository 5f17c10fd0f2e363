"""BNNeck: the feature trains the triplet loss, its batch-normalised copy the classifier."""

from __future__ import annotations

from torch import Tensor, nn

from trireid.models.modality import BatchNorm


class BNNeckClassifier(nn.Module):
    """BatchNorm without a learned shift, then a linear classifier without bias: `(B, F) -> (B, C)`.

    Source: Luo et al., Bag of Tricks (CVPRW 2019), section 3.4.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.bottleneck = BatchNorm(dim)
        self.bottleneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Logits `(B, C)` of features `(B, F)`.

        Args:
            feature: `(B, F)`.
            present: `(B,)` bool, the items that have this feature; None: all. The statistics of a training batch are
                taken over these alone, and the logits of the others are 0 (the losses leave them out).
        """
        logits: Tensor = self.classifier(self._normalise(feature, present))
        return logits

    def _normalise(self, feature: Tensor, present: Tensor | None) -> Tensor:
        if present is None:
            normalised: Tensor = self.bottleneck(feature)
            return normalised
        rows = present.nonzero()[:, 0]  # (P,)
        shown = feature[rows]  # (P, F)
        normalised = self.bottleneck(shown)
        return normalised.new_zeros(feature.shape).index_copy(0, rows, normalised)  # (B, F)
