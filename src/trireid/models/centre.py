"""The mean of the training features, subtracted by the model itself: whatever reads a feature reads it centred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from trireid.types import MODALITIES, Blocks, filled_blocks


class FeatureCentre(nn.Module):
    """Subtracts a mean from the features of a model in evaluation.

    Args:
        means: `(D,)` of `global` and, where there is one, `head`: of each block over the training items that have it.

    Example:
        >>> import torch
        >>> centre = FeatureCentre({"global": torch.ones(3)})
        >>> blocks = {"global": ((0,), (1,), (2,))}
        >>> features = {"global": torch.tensor([[3.0, 2.0, 0.0]])}
        >>> centred = centre(features, blocks=blocks, present=torch.tensor([[True, True, False]]))["global"]
        >>> centred.abs()
        tensor([[2., 1., 0.]])
    """

    def __init__(self, means: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, mean in means.items():
            # It is no weight: a checkpoint holds it beside the weights, whether it is used or not.
            self.register_buffer(f"mean_{name}", mean, persistent=False)

    def set_means(self, means: Mapping[str, Tensor]) -> Self:
        """Replace the means, in the memory where they are, which a recorded evaluation reads."""
        for name, mean in means.items():
            self.get_buffer(f"mean_{name}").copy_(mean)
        return self

    def forward(
        self, features: Mapping[str, Tensor], *, blocks: Mapping[str, Blocks], present: Tensor
    ) -> dict[str, Tensor]:
        """Features by name `(B, D)` float32, centred in the blocks that are filled; the others stay 0.

        Args:
            features: of a model, un-normalised.
            blocks: of `global` and `head`.
            present: `(B, M)` bool.
        """
        centred = {
            name: subtract_means(features[name], filled_blocks(blocks[name], present), self.get_buffer(f"mean_{name}"))
            for name in blocks
        }
        own = centred["global"].unflatten(1, (len(blocks["global"]), -1)).unbind(1)
        return {**features, **dict(zip(MODALITIES, own, strict=True)), **centred}


def subtract_means(features: Tensor, filled: Tensor, mean: Tensor) -> Tensor:
    """Features `(n, D)` less a mean `(n, D)` or `(D,)` in the blocks `(n, K)` bool that are filled; 0 in the others."""
    parts: Tensor = (features.float() - mean.float()).unflatten(1, (filled.shape[1], -1))  # (n, K, D / K)
    centred: Tensor = (parts * filled[..., None]).flatten(1)
    return centred
