"""A learned score of a patch for slimming inside the ViT, from the patch and the CLS tokens of all modalities.

Shapes: R rows (images whose modality is present), N patches still there, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchPredictor(nn.Module):
    """MLP D -> D / 4 -> 1 with GELU over [patch ; own CLS ; mean of the other CLS tokens], shared by the modalities.

    No gradient reaches the tokens through it. It is trained by the attention of the
    late blocks (`trireid.models.guidance.foresight_loss`) and the fused token.

    Args:
        dim: D.

    Source: predicted score of SEPS (arXiv 2511.01390). Deviation: it sees the guides as well, where SDTPS adds their
        cosines; inside the ViT these select the background (docs/results.md).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(1, dim // 4)
        self.patch = nn.Linear(dim, hidden)
        self.own = nn.Linear(dim, hidden, bias=False)
        self.other = nn.Linear(dim, hidden, bias=False)
        self.score = nn.Linear(hidden, 1)

    def forward(self, patches: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Scores `(R, N)` float32 of patches `(R, N, D)` beside CLS tokens `(R, D)`; other is 0 where none is there."""
        seen, own, other = (self._normed(tokens) for tokens in (patches, own, other))
        hidden = functional.gelu(self.patch(seen) + (self.own(own) + self.other(other)).unsqueeze(1))
        with torch.autocast(patches.device.type, enabled=False):  # low-precision scores tie
            scores: Tensor = self.score(hidden.to(self.score.weight.dtype))[..., 0]
        return scores

    def _normed(self, tokens: Tensor) -> Tensor:
        tokens = tokens.detach().to(self.patch.weight.dtype)
        return functional.layer_norm(tokens, tokens.shape[-1:])
