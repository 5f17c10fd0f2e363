"""BNNeck: the feature trains the triplet loss, its batch-normalised copy the classifier."""

from __future__ import annotations

from torch import Tensor, nn


class BNNeckClassifier(nn.Module):
    """BatchNorm without a learned shift, then a linear classifier without bias: `(B, F) -> (B, C)`.

    Source: Luo et al., Bag of Tricks (CVPRW 2019), section 3.4.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.bottleneck = nn.BatchNorm1d(dim)
        self.bottleneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits `(B, C)` of features `(B, F)`."""
        logits: Tensor = self.classifier(self.bottleneck(feature))
        return logits
