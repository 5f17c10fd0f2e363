"""Add a head of your own to the model, and take a few training steps on random images.

    python examples/add_a_head.py

A head is a module with `feature_dim`, `blocks` and `forward(patches, global_features, *, present)`. Losses, evaluation,
search and reports use its feature under the name "head". ARCHITECTURE.md says how to give it a name in the settings.
"""

import torch
from torch import Tensor, nn

from trireid.losses import reid_loss
from trireid.models.backbone import Backbone, create_vit
from trireid.models.bnneck import BNNeckClassifier
from trireid.models.pife import PIFE
from trireid.models.reid import ReIDModel
from trireid.types import MODALITY_BLOCKS, NUM_MODALITIES


class MaximumHead(nn.Module):
    """The maximum over the patches of each modality, side by side: `(B, M * D)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.feature_dim = NUM_MODALITIES * dim
        self.blocks = MODALITY_BLOCKS  # one block per modality: what two items share is compared block by block

    def forward(self, patches: Tensor, global_features: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Feature `(B, M * D)` of patches `(B, M, N, D)`; zeros where a modality is absent."""
        feature = self.norm(patches).amax(dim=2)  # (B, M, D)
        if present is not None:
            feature = feature * present[..., None]
        return feature.flatten(1)


def main() -> None:
    """Put the model together and train it to tell four identities apart."""
    torch.manual_seed(0)
    vit = create_vit("tiny", image_size=(64, 32))
    backbone = Backbone(vit, num_cameras=2)
    head = MaximumHead(backbone.dim)
    classifiers = {
        "global": BNNeckClassifier(NUM_MODALITIES * backbone.dim, num_classes=4),
        "head": BNNeckClassifier(head.feature_dim, num_classes=4),
    }
    model = ReIDModel(backbone, pife=PIFE(backbone.dim), head=head, classifiers=classifiers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = torch.rand(16, NUM_MODALITIES, 3, 64, 32)
    label, camera = torch.arange(16) % 4, torch.arange(16) % 2
    for step in range(5):
        losses = reid_loss(model(images, camera=camera), label)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        print(f"step {step}: loss {losses['total'].item():.3f}")
    model.eval()
    with torch.inference_mode():
        out = model(images, present=torch.tensor([[True, False, True]]).expand(16, -1))  # without near-infrared
    print(f"head feature {tuple(out.features['head'].shape)}, joint feature {tuple(out.embedding.shape)}")


if __name__ == "__main__":
    main()
