"""The camera embedding: what a camera does to its images, learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models.compiling import is_exporting


class CameraEmbedding(nn.Module):
    """SIE: one learned vector per camera. An unknown camera (-1, or no camera at all) gets the mean of the known ones.

    Source: TransReID (ICCV 2021), section 3.3; the rule for unknown cameras is ours.
    """

    def __init__(self, num_cameras: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_cameras, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, camera: Tensor | None, batch_size: int) -> Tensor:
        """Vectors `(B, D)` for camera indices `(B,)` int64 or None.

        Raises:
            InputError: an index that is no camera; not checked on a GPU, where it would have to wait.
        """
        mean = self.weight.mean(dim=0, keepdim=True)
        if camera is None:
            return mean.expand(batch_size, -1)
        known = self.weight.shape[0]
        looks = camera.device.type == "cpu" and not is_exporting()
        if looks and bool(((camera < -1) | (camera >= known)).any()):
            raise InputError(
                f"camera holds {int(camera.min())} to {int(camera.max())}; the model knows 0 to "
                f"{known - 1}, and -1 is an unknown camera"
            )
        return torch.cat([self.weight, mean])[camera]  # index -1 is the mean
